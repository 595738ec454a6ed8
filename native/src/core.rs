//! What the event loops and the workers share.
//!
//! Decided here and only here: the sizes of the memory and of the two staffs: threads of Python's for
//! what must be asked of the tree, and a few of Rust's for local copies that are not in the page cache.
//!
//! Threading: any thread; no lock is held while anything is waited for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackingId, Errno, ReplyData};
use parking_lot::RwLock;

use crate::jobs::{Answer, Ask, Job, Jobs};
use crate::local::Got;
use crate::memory::Memory;
use crate::opened::{from_local, gather, with_pages, Folder, Key, Opened};
use crate::queue::{Queue, Staff, Step, QUESTIONS};
use crate::ways::Ways;

/// Python's threads. One that waits for the store costs about 200 KiB.
const PYTHON: Staff = Staff {
    most: 512,
    reserved: 32,
    idle: 4,
};
/// Threads that wait for the local disk: enough to keep an NVMe drive busy.
const DISK: Staff = Staff {
    most: 16,
    reserved: 0,
    idle: 16,
};

/// Blocks read between two tidyings: 32 MiB.
const TIDY_BLOCKS: u64 = 256;

/// A read that must wait for the local disk.
pub struct Cold {
    pid: u32,
    file: Arc<Opened>,
    offset: u64,
    length: usize,
    reply: ReplyData,
}

/// One drive.
pub struct Core {
    /// What waits for Python.
    pub queue: Arc<Queue<Arc<Job>>>,
    /// What waits for the local disk.
    pub cold: Queue<Cold>,
    /// Everything that waits for Python or is in work there.
    pub jobs: Jobs,
    /// What was read lately.
    pub memory: Memory<Key>,
    /// How long the kernel may believe that a name is not there.
    pub missing: Duration,
    /// How many blocks had been read when memory was last given back.
    tidied: AtomicU64,
    /// Which way the kernel reads what it has open.
    pub ways: Ways<BackingId>,
    /// Open files by handle.
    pub files: RwLock<HashMap<u64, Arc<Opened>>>,
    /// Open folders by handle.
    pub folders: RwLock<HashMap<u64, Arc<Folder>>>,
}

impl Core {
    /// Nothing open, nothing remembered.
    pub fn new(memory_bytes: usize, missing: Duration) -> Self {
        Self {
            queue: Arc::new(Queue::new(PYTHON)),
            cold: Queue::new(DISK),
            jobs: Jobs::default(),
            memory: Memory::new(memory_bytes),
            missing,
            tidied: AtomicU64::new(0),
            ways: Ways::new(),
            files: RwLock::default(),
            folders: RwLock::default(),
        }
    }

    /// Have Python answer.
    pub fn ask(&self, pid: u32, ask: Ask, answer: Answer) {
        let lane = match &ask {
            Ask::Read(file, _, _) => file.handle,
            _ => QUESTIONS,
        };
        let job = self.jobs.begin(pid, ask, answer);
        if let Err(job) = self.queue.push(lane, job) {
            self.drop_job(&job);
        }
    }

    /// A job that nobody will do.
    fn drop_job(&self, job: &Job) {
        self.jobs.end(job);
        if let Some(answer) = job.claim() {
            answer.error(Errno::EIO);
        }
    }

    /// Answer a read, or have it answered.
    pub fn read(&self, pid: u32, file: Arc<Opened>, offset: u64, length: usize, reply: ReplyData) {
        let length = file.clamp(offset, length);
        if length == 0 {
            reply.data(&[]);
            return;
        }
        if let Some(local) = file.local() {
            let mut reply = Some(reply);
            let got = with_pages(length, |pages| {
                let got = from_local(&local, offset, pages, false);
                if got == Got::All {
                    if let Some(reply) = reply.take() {
                        reply.data(pages);
                    }
                }
                got
            });
            let Some(reply) = reply else { return };
            match got {
                Got::Later => {
                    let lane = file.handle;
                    let cold = Cold {
                        pid,
                        file,
                        offset,
                        length,
                        reply,
                    };
                    if let Err(cold) = self.cold.push(lane, cold) {
                        cold.reply.error(Errno::EIO);
                    }
                    return;
                }
                _ => self.read_remembered(pid, file, offset, length, reply),
            }
            return;
        }
        self.read_remembered(pid, file, offset, length, reply);
    }

    fn read_remembered(
        &self,
        pid: u32,
        file: Arc<Opened>,
        offset: u64,
        length: usize,
        reply: ReplyData,
    ) {
        match file.remembered(&self.memory, offset, length).as_deref() {
            Some([(bytes, range)]) => reply.data(&bytes[range.clone()]),
            Some(parts) => with_pages(length, |pages| {
                gather(parts, pages);
                reply.data(pages);
            }),
            None => self.ask(pid, Ask::Read(file, offset, length), Answer::Data(reply)),
        }
    }

    /// Read what must be waited for, until the drive ends. One of `DISK.most` threads.
    pub fn read_cold(&self) {
        self.cold.arrive();
        loop {
            match self.cold.next() {
                Step::Work { job, another, .. } => {
                    if another {
                        self.cold.depart(); // all of them are there from the beginning
                    }
                    let Some((lane, cold)) = job else { continue };
                    self.read_waiting(cold);
                    self.cold.done(lane);
                }
                Step::Leave => {
                    self.cold.depart();
                    return;
                }
            }
        }
    }

    fn read_waiting(&self, cold: Cold) {
        let Cold {
            pid,
            file,
            offset,
            length,
            reply,
        } = cold;
        let mut reply = Some(reply);
        if let Some(local) = file.local() {
            with_pages(length, |pages| {
                if from_local(&local, offset, pages, true) == Got::All {
                    if let Some(reply) = reply.take() {
                        reply.data(pages);
                    }
                }
            });
        }
        if let Some(reply) = reply {
            self.read_remembered(pid, file, offset, length, reply);
        }
    }

    /// Give freed memory back to the system, now and then while much is read. Python's frames are freed
    /// by other threads than made them, and in no order, so glibc's arenas keep it: 210 to 250 MB
    /// resident after a disk was read through, 140 to 190 with this. (A mapping for each frame, 134, costs
    /// half the speed of such a read.)
    pub fn tidy(&self) {
        let count = self.memory.count();
        let before = self.tidied.load(Ordering::Relaxed);
        if count - before < TIDY_BLOCKS {
            return;
        }
        self.tidied.store(count, Ordering::Relaxed);
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            // SAFETY: takes a plain number, may be called on any thread at any time, and touches only what
            // is free.
            unsafe { libc::malloc_trim(0) };
        }
    }

    /// The kernel has released a file.
    pub fn release(&self, handle: u64) {
        let file = self.files.write().remove(&handle);
        if let Some(file) = file {
            self.ways.leave(file.content.number);
        }
    }

    /// How many threads `read_cold` should have.
    pub fn disk_threads() -> usize {
        DISK.most
    }

    /// The kernel asks for nothing any more: drop what nobody began, and close what was open.
    pub fn end(&self) {
        for cold in self.cold.end() {
            cold.reply.error(Errno::EIO);
        }
        // Before the queue ends, so that workers still close these in Python.
        self.files.write().clear();
        self.folders.write().clear();
        self.ways.clear();
        for job in self.queue.end() {
            self.drop_job(&job);
        }
    }
}
