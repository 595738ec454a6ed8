//! Requests that Python must answer, each answered once.
//!
//! Decided here and only here: who may answer, and that a killed program does not wait for a dead
//! link. The kernel lets a process die only when its request is answered, so one older than `PATIENCE`
//! whose caller is dying (SIGKILL pending, which every fatal signal becomes) is answered EINTR at once,
//! and the late answer dropped. Signals that don't kill are not followed: programs take EINTR from a
//! regular file for an error.
//!
//! Threading: any thread; `watch` has one of its own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
};
use parking_lot::{Condvar, Mutex};

use crate::opened::{Folder, Opened};

/// Time between looks; a killed program ends within two of them.
pub const PATIENCE: Duration = Duration::from_millis(500);
const KILLED: u64 = 1 << (libc::SIGKILL - 1);

/// How a request is answered.
pub enum Answer {
    /// A look-up.
    Entry(ReplyEntry),
    /// Attributes.
    Attr(ReplyAttr),
    /// A read, or a link's target.
    Data(ReplyData),
    /// A file or folder was opened.
    Open(ReplyOpen),
    /// Part of a listing.
    Names(ReplyDirectory),
    /// `df`.
    Space(ReplyStatfs),
    /// Nothing but that it went well.
    Empty(ReplyEmpty),
}

impl Answer {
    /// Answer with an errno.
    pub fn error(self, errno: Errno) {
        match self {
            Self::Entry(reply) => reply.error(errno),
            Self::Attr(reply) => reply.error(errno),
            Self::Data(reply) => reply.error(errno),
            Self::Open(reply) => reply.error(errno),
            Self::Names(reply) => reply.error(errno),
            Self::Space(reply) => reply.error(errno),
            Self::Empty(reply) => reply.error(errno),
        }
    }
}

/// What is asked of Python. Numbers are the kernel's for nodes.
pub enum Ask {
    /// The child of a folder.
    Lookup(u64, OsString),
    /// A node's attributes.
    Attributes(u64),
    /// A link's target.
    Target(u64),
    /// Open a file.
    Open(u64),
    /// Bytes of an open file: offset and length, within it.
    Read(Arc<Opened>, u64, usize),
    /// Open a folder.
    OpenFolder(u64),
    /// Names of an open folder, from this record on.
    Names(Arc<Folder>, u64),
    /// `df`.
    Space,
    /// Whether a node may be used this way.
    Access(u64, i32),
}

/// One request that waits for Python.
pub struct Job {
    /// What is asked.
    pub ask: Ask,
    id: u64,
    pid: u32,
    since: Instant,
    answer: Mutex<Option<Answer>>,
}

impl Job {
    /// The right to answer; None when the request was given up. Whoever takes it must answer.
    pub fn claim(&self) -> Option<Answer> {
        self.answer.lock().take()
    }

    /// Whether nobody waits for it any more.
    pub fn given_up(&self) -> bool {
        self.answer.lock().is_none()
    }
}

/// Those that have come and not ended.
#[derive(Default)]
pub struct Jobs {
    open: Mutex<HashMap<u64, Arc<Job>>>,
    next: AtomicU64,
    ended: Mutex<bool>,
    ends: Condvar,
}

impl Jobs {
    /// A request has come from process `pid` (0: unknown).
    pub fn begin(&self, pid: u32, ask: Ask, answer: Answer) -> Arc<Job> {
        let job = Arc::new(Job {
            ask,
            id: self.next.fetch_add(1, Ordering::Relaxed),
            pid,
            since: Instant::now(),
            answer: Mutex::new(Some(answer)),
        });
        self.open.lock().insert(job.id, Arc::clone(&job));
        job
    }

    /// Nobody works on it any more.
    pub fn end(&self, job: &Job) {
        self.open.lock().remove(&job.id);
    }

    /// How many have waited that long, those given up not counted.
    pub fn waiting(&self, at_least: Duration) -> usize {
        let open = self.open.lock();
        open.values()
            .filter(|job| job.since.elapsed() >= at_least && !job.given_up())
            .count()
    }

    /// Look for the dying until `stop`; `also` is done between looks.
    pub fn watch(&self, also: impl Fn()) {
        loop {
            let mut ended = self.ended.lock();
            if !*ended {
                self.ends.wait_for(&mut ended, PATIENCE);
            }
            if *ended {
                return;
            }
            drop(ended);
            also();
            let old: Vec<_> = {
                let open = self.open.lock();
                let old = open.values().filter(|job| job.since.elapsed() >= PATIENCE);
                old.map(Arc::clone).collect()
            };
            for job in old {
                if !job.given_up() && dying(job.pid) {
                    if let Some(answer) = job.claim() {
                        answer.error(Errno::EINTR);
                    }
                }
            }
        }
    }

    /// End `watch`.
    pub fn stop(&self) {
        *self.ended.lock() = true;
        self.ends.notify_all();
    }
}

/// Whether a thread has SIGKILL pending.
fn dying(pid: u32) -> bool {
    pid != 0
        && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| killed(&status))
}

fn killed(status: &str) -> bool {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))
        })
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & KILLED != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_dying() {
        assert!(!dying(0));
        assert!(!dying(std::process::id()));
        assert!(killed(
            "Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0\n"
        ));
        assert!(killed(
            "SigPnd:\t0000000000000000\nShdPnd:\t0000000000004100\n"
        ));
        assert!(!killed(
            "SigPnd:\t0000000000004000\nShdPnd:\t0\nSigBlk:\t0100\n"
        ));
        assert!(!killed("SigPnd:\tnonsense\n"));
    }

    #[test]
    fn a_watch_ends() {
        let jobs = Jobs::default();
        jobs.stop();
        jobs.watch(|| ());
        assert_eq!(jobs.waiting(Duration::ZERO), 0);
    }
}
