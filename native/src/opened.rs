//! Files and folders that the kernel holds open.
//!
//! Decided here and only here: which bytes a read may be given without Python (an unchanged local copy,
//! else blocks in memory), which range a miss asks for (whole blocks), that a listing is asked of Python
//! once for each open folder (a listing from its beginning asks anew, so new snapshots appear), and when
//! Python is told that a file is used no more: when the kernel has released it and no read given up is
//! still at work.
//!
//! Threading: any thread.

use std::cell::RefCell;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use fuser::FileType;
use parking_lot::{Mutex, RwLock};

use crate::jobs::Job;
use crate::local::{Got, Local};
use crate::memory::{Block, Memory, BLOCK};
use crate::queue::{Chore, Queue};

/// What a block is kept under: content, and number in it. Content is an inode, its size and its time,
/// because only these together promise the same bytes.
pub type Key = (Content, u64);

/// Which bytes a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Content {
    /// The kernel's number of the node.
    pub number: u64,
    /// Bytes.
    pub size: u64,
    /// When they were made: seconds and nanoseconds.
    pub time: (i64, u32),
}

/// What both kinds share with the drive.
pub type Jobbed = Arc<Queue<Arc<Job>>>;

/// An open file.
pub struct Opened {
    /// Python's name for it.
    pub handle: u64,
    /// Its content.
    pub content: Content,
    /// A copy on this machine, once there is one.
    local: RwLock<Option<Arc<Local>>>,
    queue: Jobbed,
}

impl Opened {
    /// Python opened `handle`.
    pub fn new(handle: u64, content: Content, queue: Jobbed) -> Self {
        Self {
            handle,
            content,
            local: RwLock::new(None),
            queue,
        }
    }

    /// How many of `length` bytes at `offset` there are.
    pub fn clamp(&self, offset: u64, length: usize) -> usize {
        let left = self.content.size.saturating_sub(offset);
        usize::try_from(left).map_or(length, |left| length.min(left))
    }

    /// The local copy, if it may still be used.
    pub fn local(&self) -> Option<Arc<Local>> {
        let local = self.local.read().as_ref().map(Arc::clone);
        local.filter(|local| local.usable())
    }

    /// Whether a local copy was never offered: one that changed is not taken again, whatever its path says.
    pub fn wants_local(&self) -> bool {
        self.local.read().is_none()
    }

    /// There is a local copy now.
    pub fn set_local(&self, local: Local) {
        self.local.write().get_or_insert_with(|| Arc::new(local));
    }

    /// The bytes from memory, when all of them are there.
    pub fn remembered(
        &self,
        memory: &Memory<Key>,
        offset: u64,
        length: usize,
    ) -> Option<Vec<(Block, Range<usize>)>> {
        let mut parts = Vec::with_capacity(2);
        for (number, range) in blocks(offset, length) {
            let bytes = memory.get((self.content, number))?;
            if bytes.len() < range.end {
                return None;
            }
            parts.push((bytes, range));
        }
        Some(parts)
    }

    /// The whole blocks that `length` bytes at `offset` lie in, as offset and length.
    pub fn widened(&self, offset: u64, length: usize) -> (u64, usize) {
        let first = offset / BLOCK * BLOCK;
        let end = (offset + length as u64).div_ceil(BLOCK) * BLOCK;
        let end = end.min(self.content.size);
        (first, usize::try_from(end - first).unwrap_or(length))
    }

    /// Keep what was read at `offset`, as far as it is whole blocks.
    pub fn remember(&self, memory: &Memory<Key>, offset: u64, bytes: &[u8]) {
        if offset % BLOCK != 0 {
            return;
        }
        for (number, part) in (offset / BLOCK..).zip(bytes.chunks(BLOCK as usize)) {
            let end = number * BLOCK + part.len() as u64;
            if part.len() as u64 == BLOCK || end == self.content.size {
                memory.put((self.content, number), part);
            }
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.queue.chore(Chore::Close(self.handle));
    }
}

/// The blocks that a range touches: number, and the part of it.
fn blocks(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + length as u64;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |number| {
        let base = number * BLOCK;
        let low = offset.max(base) - base;
        let high = end.min(base + BLOCK) - base;
        (number, low as usize..high as usize)
    })
}

thread_local! {
    /// Where a reply is put together; as long as the longest so far. Fresh memory for each would cost a
    /// page fault for every page: 1.1 instead of 4 GB/s.
    static PAGES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Have `work` use `length` bytes of this thread's own; they hold what an earlier reply left there.
pub fn with_pages<T>(length: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    PAGES.with_borrow_mut(|pages| {
        if pages.len() < length {
            pages.resize(length, 0);
        }
        work(&mut pages[..length])
    })
}

/// Fill `pages` from a local copy.
pub fn from_local(local: &Local, offset: u64, pages: &mut [u8], wait: bool) -> Got {
    if wait {
        local.read(pages, offset)
    } else {
        local.read_now(pages, offset)
    }
}

/// Fill `pages`, exactly as long as all parts, from them.
pub fn gather(parts: &[(Block, Range<usize>)], pages: &mut [u8]) {
    let mut at = 0;
    for (bytes, range) in parts {
        pages[at..at + range.len()].copy_from_slice(&bytes[range.clone()]);
        at += range.len();
    }
}

/// A name in a folder.
pub struct Name {
    /// What `ls -i` shows.
    pub inode: u64,
    /// File, folder or link.
    pub kind: FileType,
    /// Bytes.
    pub name: OsString,
}

/// An open folder.
pub struct Folder {
    /// Python's name for it.
    pub handle: u64,
    /// What was listed so far; record numbers are the kernel's offsets.
    pub names: Mutex<Vec<Name>>,
    /// Whether that is all of it.
    pub whole: AtomicBool,
    queue: Jobbed,
}

impl Folder {
    /// Python opened `handle`.
    pub fn new(handle: u64, queue: Jobbed) -> Self {
        Self {
            handle,
            names: Mutex::new(Vec::new()),
            whole: AtomicBool::new(false),
            queue,
        }
    }

    /// Whether a listing that goes on at `offset` can be answered here.
    pub fn knows(&self, offset: u64) -> bool {
        offset > 0
            && (self.whole.load(Ordering::Acquire) || (self.names.lock().len() as u64) > offset)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.queue.chore(Chore::Close(self.handle));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Staff, Step};

    fn opened(size: u64) -> (Opened, Jobbed) {
        let queue: Jobbed = Arc::new(Queue::new(Staff {
            most: 2,
            reserved: 1,
            idle: 1,
        }));
        let content = Content {
            number: 5,
            size,
            time: (0, 0),
        };
        (Opened::new(9, content, Arc::clone(&queue)), queue)
    }

    fn pattern(offset: u64, length: usize) -> Vec<u8> {
        (offset..offset + length as u64)
            .map(|n| (n % 251) as u8)
            .collect()
    }

    #[test]
    fn a_range_is_answered_only_when_all_of_it_is_there() {
        let size = 5 * BLOCK + 1000;
        let (file, _queue) = opened(size);
        let memory = Memory::new(64 << 20);
        let (offset, length) = file.widened(BLOCK + 5, 3);
        assert_eq!((offset, length), (BLOCK, BLOCK as usize));
        let (last, rest) = file.widened(size - 1, 1);
        assert_eq!((last, rest), (5 * BLOCK, 1000));
        for (at, n) in [
            (offset, length),
            (last, rest),
            (3 * BLOCK, 2 * BLOCK as usize),
        ] {
            file.remember(&memory, at, &pattern(at, n));
        }
        for (at, n, there) in [
            (BLOCK, 1, true),
            (2 * BLOCK - 1, 1, true),
            (2 * BLOCK - 1, 2, false),
            (0, 1, false),
            (3 * BLOCK + 7, (2 * BLOCK) as usize + 900, true),
            (size - 1000, 1000, true),
        ] {
            let parts = file.remembered(&memory, at, n);
            assert_eq!(parts.is_some(), there, "{n} at {at}");
            let found: Vec<u8> = parts
                .into_iter()
                .flatten()
                .flat_map(|(bytes, range)| bytes[range].to_vec())
                .collect();
            assert!(!there || found == pattern(at, n));
        }
    }

    #[test]
    fn parts_of_blocks_are_not_kept() {
        let (file, _queue) = opened(5 * BLOCK);
        let memory = Memory::new(64 << 20);
        file.remember(&memory, 0, &pattern(0, 4096));
        file.remember(&memory, 4096, &pattern(4096, BLOCK as usize));
        assert_eq!(memory.size(), 0);
    }

    #[test]
    fn ranges_end_with_the_file() {
        let (file, _queue) = opened(10);
        assert_eq!(file.clamp(3, 100), 7);
        assert_eq!(file.clamp(10, 1), 0);
        assert_eq!(file.clamp(u64::MAX, 1), 0);
    }

    #[test]
    fn closed_when_nobody_uses_it() {
        let (file, queue) = opened(10);
        let file = Arc::new(file);
        let read = Arc::clone(&file);
        drop(file);
        drop(read);
        match queue.next() {
            Step::Work { chores, .. } => assert_eq!(chores, [Chore::Close(9)]),
            Step::Leave => panic!("there is a chore"),
        }
    }
}
