//! What was read lately, in a bounded number of bytes.
//!
//! Decided here and only here: that content is kept in blocks of `BLOCK` bytes, aligned in the file;
//! what a kept block costs; and which goes first (second chance: the oldest not used since it was last
//! looked at). A block that Python handed over whole is kept as Python's own object, so it takes no
//! memory of its own while the frame cache below holds it too, and nothing is copied.
//!
//! Threading: any thread; one lock, held for a few hash operations, never while bytes are copied.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::pybacked::PyBackedBytes;

/// Bytes of a block: a stored frame, so that a miss opens one frame and no second.
pub const BLOCK: u64 = 128 << 10;
/// What an entry costs beside its bytes, about: two keys, the entry, the object around the bytes.
pub const ENTRY: usize = 256;

/// Bytes that never change.
pub enum Bytes {
    /// Python's own, alive as long as this is.
    Python(PyBackedBytes),
    /// A copy.
    Own(Box<[u8]>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Python(bytes) => bytes,
            Self::Own(bytes) => bytes,
        }
    }
}

struct Entry {
    bytes: Arc<Bytes>,
    used: bool,
}

struct Kept<K> {
    entries: HashMap<K, Entry>,
    order: VecDeque<K>,
    size: usize,
}

/// Blocks by key, in at most `limit` bytes.
pub struct Memory<K> {
    limit: usize,
    kept: Mutex<Kept<K>>,
}

impl<K: Copy + Eq + Hash> Memory<K> {
    /// An empty one; `limit` counts every entry with `ENTRY` more bytes than it holds.
    pub fn new(limit: usize) -> Self {
        let kept = Kept {
            entries: HashMap::new(),
            order: VecDeque::new(),
            size: 0,
        };
        Self {
            limit,
            kept: Mutex::new(kept),
        }
    }

    /// The block, which counts as a use of it.
    pub fn get(&self, key: K) -> Option<Arc<Bytes>> {
        let mut kept = self.kept.lock();
        let entry = kept.entries.get_mut(&key)?;
        entry.used = true;
        Some(Arc::clone(&entry.bytes))
    }

    /// Keep a block; others go when there is no room for it.
    pub fn put(&self, key: K, bytes: Arc<Bytes>) {
        let cost = bytes.len() + ENTRY;
        if cost > self.limit {
            return;
        }
        let mut gone = Vec::new(); // dropped after the lock: Python's objects may be freed there
        let mut kept = self.kept.lock();
        while kept.size + cost > self.limit {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            match kept.entries.get_mut(&oldest) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    kept.order.push_back(oldest);
                }
                Some(_) => {
                    if let Some(entry) = kept.entries.remove(&oldest) {
                        kept.size -= entry.bytes.len() + ENTRY;
                        gone.push(entry);
                    }
                }
                None => {}
            }
        }
        let entry = Entry { bytes, used: false };
        if let Some(before) = kept.entries.insert(key, entry) {
            kept.size -= before.bytes.len() + ENTRY; // its place in the order stays
            gone.push(before);
        } else {
            kept.order.push_back(key);
        }
        kept.size += cost;
        drop(kept);
        drop(gone);
    }

    /// Bytes kept now, entries counted as they cost.
    pub fn size(&self) -> usize {
        self.kept.lock().size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(length: usize, with: u8) -> Arc<Bytes> {
        Arc::new(Bytes::Own(vec![with; length].into_boxed_slice()))
    }

    #[test]
    fn bounded_to_the_byte() {
        let memory = Memory::new(10 * (1000 + ENTRY));
        for i in 0..1000_u32 {
            memory.put(i, block(1 + i as usize % 1000, 1));
            assert!(memory.size() <= 10 * (1000 + ENTRY));
        }
        let kept: usize = (0..1000)
            .filter_map(|i| memory.get(i))
            .map(|b| b.len() + ENTRY)
            .sum();
        assert_eq!(kept, memory.size());
    }

    #[test]
    fn what_is_used_stays() {
        let memory = Memory::new(4 * (100 + ENTRY));
        for i in 0..100_u32 {
            memory.put(i, block(100, i as u8));
            assert!(memory.get(0).is_some_and(|b| b[0] == 0));
        }
        assert!(memory.get(50).is_none());
        assert!(memory.get(99).is_some());
    }

    #[test]
    fn put_again_counts_once() {
        let memory = Memory::new(1 << 20);
        for length in [100, 200, 50] {
            memory.put(7, block(length, 7));
            assert_eq!(memory.size(), length + ENTRY);
        }
        assert_eq!(memory.get(7).map(|b| b.len()), Some(50));
    }

    #[test]
    fn too_large_is_not_kept() {
        let memory = Memory::new(1000);
        memory.put(1, block(100, 1));
        memory.put(2, block(1000, 2));
        assert!(memory.get(1).is_some());
        assert!(memory.get(2).is_none());
    }
}
