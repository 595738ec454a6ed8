//! What was read lately, in a bounded number of bytes.
//!
//! Decided here and only here: that content is kept in blocks of `BLOCK` bytes, aligned in the file;
//! what a kept block costs; and which goes first (second chance: the oldest not used since it was last
//! looked at). Blocks are copies (10 us each), and the memory of one that went is used for the next.
//!
//! Threading: any thread; one lock, held for a few hash operations, never while bytes are copied.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes of a block: a stored frame, so that a miss opens one frame and no second.
pub const BLOCK: u64 = 128 << 10;
/// What an entry costs beside its bytes, about: two keys, the entry, the object around the bytes.
pub const ENTRY: usize = 256;

/// So many full blocks that went are held for the next, beside `limit`.
const SPARE: usize = 8;

/// A block's bytes, which never change.
pub type Block = Arc<Box<[u8]>>;

struct Entry {
    bytes: Block,
    used: bool,
}

struct Kept<K> {
    entries: HashMap<K, Entry>,
    order: VecDeque<K>,
    size: usize,
    spare: Vec<Box<[u8]>>,
    count: u64,
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
            spare: Vec::new(),
            count: 0,
        };
        Self {
            limit,
            kept: Mutex::new(kept),
        }
    }

    /// The block, which counts as a use of it.
    pub fn get(&self, key: K) -> Option<Block> {
        let mut kept = self.kept.lock();
        let entry = kept.entries.get_mut(&key)?;
        entry.used = true;
        Some(Arc::clone(&entry.bytes))
    }

    /// Keep a copy of a block; others go when there is no room for it.
    pub fn put(&self, key: K, bytes: &[u8]) {
        let cost = bytes.len() + ENTRY;
        if cost > self.limit {
            return;
        }
        let spare = if bytes.len() as u64 == BLOCK {
            self.kept.lock().spare.pop()
        } else {
            None
        };
        let bytes: Block = Arc::new(match spare {
            Some(mut spare) => {
                spare.copy_from_slice(bytes);
                spare
            }
            None => bytes.into(),
        });
        let mut gone = Vec::new(); // looked at, and most of it dropped, after the lock
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
        kept.count += 1;
        drop(kept);
        for entry in gone {
            // One that is being read just now is freed by its reader.
            if entry.bytes.len() as u64 == BLOCK {
                if let Ok(bytes) = Arc::try_unwrap(entry.bytes) {
                    let mut kept = self.kept.lock();
                    if kept.spare.len() < SPARE {
                        kept.spare.push(bytes);
                    }
                }
            }
        }
    }

    /// How many blocks were ever kept.
    pub fn count(&self) -> u64 {
        self.kept.lock().count
    }

    /// Bytes kept now, entries counted as they cost.
    pub fn size(&self) -> usize {
        self.kept.lock().size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(length: usize, with: u8) -> Vec<u8> {
        vec![with; length]
    }

    #[test]
    fn bounded_to_the_byte() {
        let memory = Memory::new(10 * (1000 + ENTRY));
        for i in 0..1000_u32 {
            memory.put(i, &block(1 + i as usize % 1000, 1));
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
            memory.put(i, &block(100, i as u8));
            assert!(memory.get(0).is_some_and(|b| b[0] == 0));
        }
        assert!(memory.get(50).is_none());
        assert!(memory.get(99).is_some());
    }

    #[test]
    fn put_again_counts_once() {
        let memory = Memory::new(1 << 20);
        for length in [100, 200, 50] {
            memory.put(7, &block(length, 7));
            assert_eq!(memory.size(), length + ENTRY);
        }
        assert_eq!(memory.get(7).map(|b| b.len()), Some(50));
    }

    #[test]
    fn what_is_read_stays_as_it_is() {
        let size = BLOCK as usize;
        let memory = Memory::new(2 * (size + ENTRY));
        memory.put(0, &block(size, 1));
        let held = memory.get(0);
        for i in 1..50_u32 {
            memory.put(i, &block(size, 2));
            assert!(memory.get(i).is_some_and(|b| b.iter().all(|&x| x == 2)));
        }
        assert!(held.is_some_and(|b| b.iter().all(|&x| x == 1)));
    }

    #[test]
    fn too_large_is_not_kept() {
        let memory = Memory::new(1000);
        memory.put(1, &block(100, 1));
        memory.put(2, &block(1000, 2));
        assert!(memory.get(1).is_some());
        assert!(memory.get(2).is_none());
    }
}
