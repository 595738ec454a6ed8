//! The FUSE hot path of CloudMount: answers the kernel from memory and local copies without taking
//! Python's lock, and asks Python for the rest.
//!
//! Decided here and only here: the life of a session (README.md tells the whole). Two event
//! loops on descriptors of their own serve the kernel; Python's worker threads call `Session.work`.

mod asking;
mod core;
mod jobs;
mod local;
mod loops;
mod memory;
mod opened;
mod patience;
mod queue;
mod server;
mod ways;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{Config, SessionACL};
use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::core::Core;
use crate::loops::Loops;
use crate::queue::Step;
use crate::server::Server;
use crate::ways::{permitted, Possible};

/// Two keep two cores busy; more only take turns, and one is enough for one reader (`loops`).
const LOOPS: usize = 2;

/// One mount.
#[pyclass(frozen, module = "cloudmount_native")]
struct Session {
    core: Arc<Core>,
    session: Mutex<Option<fuser::Session<Server>>>,
}

/// Says that a worker has left, however it leaves.
struct Presence<'a>(&'a Core);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.queue.depart();
    }
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (fd, *, allow_other, memory_bytes, missing_seconds, background))]
    fn new(
        py: Python<'_>,
        fd: i32,
        allow_other: bool,
        memory_bytes: usize,
        missing_seconds: f64,
        background: u16,
    ) -> PyResult<Self> {
        let missing = Duration::try_from_secs_f64(missing_seconds)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let device = duplicate(fd)?;
        let core = Arc::new(Core::new(memory_bytes, missing));
        let acl = if allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(LOOPS);
        config.clone_fd = true;
        let server = Server {
            core: Arc::clone(&core),
            loops: Loops::new(duplicate(fd)?),
            background,
        };
        // Not `fuser::Session::new`: what that mounts it unmounts by path when it ends, although it was
        // unmounted long before, and so it would take the next drive at that path away.
        let session = py.detach(|| fuser::Session::from_fd(server, device, acl, config))?;
        if core.ways.possible() != Possible::NoKernel {
            core.ways.allow(permitted(&session));
        }
        Ok(Self {
            core,
            session: Mutex::new(Some(session)),
        })
    }

    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let Some(session) = self.session.lock().take() else {
            return Err(PyRuntimeError::new_err("a session runs once"));
        };
        py.detach(|| self.serve(session))?;
        Ok(())
    }

    fn work(&self, py: Python<'_>, tree: &Bound<'_, PyAny>) {
        let core = &*self.core;
        let _presence = Presence(core);
        loop {
            match py.detach(|| core.queue.next()) {
                Step::Work {
                    job,
                    chores,
                    another,
                } => {
                    if another {
                        start_another(core, tree);
                    }
                    if !chores.is_empty() {
                        asking::chores(tree, chores);
                    }
                    if let Some((lane, job)) = job {
                        asking::answer(core, tree, lane, &job);
                    }
                }
                Step::Leave => return,
            }
        }
    }

    fn arrive(&self) {
        self.core.queue.arrive();
    }

    fn waiting(&self, seconds: f64) -> usize {
        let at_least = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.core.jobs.waiting(at_least)
    }

    #[getter]
    fn pass_through(&self) -> &'static str {
        match self.core.ways.possible() {
            Possible::Yes => "yes",
            Possible::NoKernel => "kernel",
            Possible::NoRight => "right",
        }
    }

    #[getter]
    fn open_files(&self) -> (usize, usize) {
        self.core.ways.count()
    }

    #[getter]
    fn remembered(&self) -> usize {
        self.core.memory.size()
    }
}

impl Session {
    fn serve(&self, session: fuser::Session<Server>) -> io::Result<()> {
        let core = &*self.core;
        thread::scope(|scope| {
            let named = |name: &str| thread::Builder::new().name(name.to_owned());
            let started = named("cloudmount-requests")
                .spawn_scoped(scope, || core.jobs.watch(|| core.tidy()))
                .and_then(|_| {
                    (0..Core::disk_threads()).try_for_each(|_| {
                        named("cloudmount-disk")
                            .spawn_scoped(scope, || core.read_cold())
                            .map(drop)
                    })
                });
            let served = started.and_then(|()| session.run());
            core.end();
            core.queue.wait_all_left();
            core.jobs.stop();
            served
        })
    }
}

/// A descriptor of our own for what `fd` is; fails for what isn't one.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes and gives plain numbers and touches no memory; any number may be given.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made `own`, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Have Python start one more worker, which was counted already.
fn start_another(core: &Core, tree: &Bound<'_, PyAny>) {
    match tree
        .call_method0("another")
        .and_then(|started| started.extract())
    {
        Ok(true) => {}
        Ok(false) => core.queue.depart(),
        Err(error) => {
            core.queue.depart();
            error.write_unraisable(tree.py(), Some(tree));
        }
    }
}

#[pymodule]
mod cloudmount_native {
    #[pymodule_export]
    use super::Session;
}
