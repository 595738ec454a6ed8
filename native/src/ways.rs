//! Which way the kernel reads each file that it has open: through this process and the page cache, or
//! (pass-through) straight from a complete local copy.
//!
//! Decided here and only here: what the kernel demands of the opens of one inode, else it fails them with
//! EIO. Either all go through the page cache or all pass through, and then with one and the same backing id;
//! so the first that opens an inode decides for all that open it until the last has let go. An inode counts as
//! open from before the kernel is told until it says that it was released, which is longer than the kernel
//! itself holds to it. A copy that changed while it is read this way can't be taken from those who have it
//! open (the kernel reads it by itself); nobody else is given it.
//!
//! Threading: any thread; one lock, held while a backing id is made (which waits for nothing).

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::local::Local;
use crate::opened::Content;

/// Why files can't be passed through, if they can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Possible {
    /// They can.
    Yes,
    /// The kernel does not offer it.
    NoKernel,
    /// This process may not.
    NoRight,
}

/// How an open was entered.
#[derive(Debug, PartialEq, Eq)]
pub enum Way<B> {
    /// Through the page cache.
    Cached,
    /// Straight from the local copy with this backing id.
    Through(Arc<B>),
    /// In no way: the inode is passed through to a file that can't be trusted any more.
    Clash,
}

enum Open<B> {
    Cached(usize),
    Through {
        handles: usize,
        backing: Arc<B>,
        content: Content,
        local: Arc<Local>,
    },
}

/// The files that are open, by the kernel's number. `B` is a backing id, given back when dropped.
pub struct Ways<B> {
    possible: AtomicU8,
    open: Mutex<HashMap<u64, Open<B>>>,
}

impl<B> Ways<B> {
    /// None open, nothing passed through until `allow`.
    pub fn new() -> Self {
        Self {
            possible: AtomicU8::new(Possible::NoKernel as u8),
            open: Mutex::new(HashMap::new()),
        }
    }

    /// Whether files may be passed through from now on.
    pub fn allow(&self, possible: Possible) {
        self.possible.store(possible as u8, Ordering::Relaxed);
    }

    /// As last told.
    pub fn possible(&self) -> Possible {
        match self.possible.load(Ordering::Relaxed) {
            0 => Possible::Yes,
            1 => Possible::NoKernel,
            _ => Possible::NoRight,
        }
    }

    /// Somebody opens the file of this content, of which there may be a local copy that was just proven right;
    /// `back` makes a backing id of that. Unless it is a clash, `leave` must follow.
    pub fn enter(
        &self,
        content: Content,
        offered: Option<&Arc<Local>>,
        back: impl FnOnce(&Local) -> io::Result<B>,
    ) -> Way<B> {
        let mut open = self.open.lock();
        match open.get_mut(&content.number) {
            Some(Open::Cached(handles)) => {
                *handles += 1;
                Way::Cached
            }
            Some(Open::Through {
                handles,
                backing,
                content: known,
                local,
            }) => {
                if *known != content {
                    return Way::Clash;
                }
                if !local.unchanged() {
                    // Somebody touched it; it may have been compared with its digests since.
                    match offered.filter(|offered| offered.is_file_of(local)) {
                        Some(offered) => *local = Arc::clone(offered),
                        None => return Way::Clash,
                    }
                }
                *handles += 1;
                Way::Through(Arc::clone(backing))
            }
            None => {
                let local = offered.filter(|_| self.possible() == Possible::Yes);
                if let Some((local, backing)) =
                    local.and_then(|local| Some((local, Arc::new(back(local).ok()?))))
                {
                    let through = Open::Through {
                        handles: 1,
                        backing: Arc::clone(&backing),
                        content,
                        local: Arc::clone(local),
                    };
                    open.insert(content.number, through);
                    Way::Through(backing)
                } else {
                    open.insert(content.number, Open::Cached(1));
                    Way::Cached
                }
            }
        }
    }

    /// The kernel has released one handle of the file.
    pub fn leave(&self, number: u64) {
        let mut open = self.open.lock();
        let last = match open.get_mut(&number) {
            Some(Open::Cached(handles) | Open::Through { handles, .. }) => {
                *handles -= 1;
                *handles == 0
            }
            None => false,
        };
        let gone = if last { open.remove(&number) } else { None };
        drop(open);
        drop(gone); // gives the backing id back
    }

    /// The drive ends.
    pub fn clear(&self) {
        let gone = std::mem::take(&mut *self.open.lock());
        drop(gone);
    }

    /// How many files are open, and how many of them are passed through.
    pub fn count(&self) -> (usize, usize) {
        let open = self.open.lock();
        let through = open
            .values()
            .filter(|one| matches!(one, Open::Through { .. }))
            .count();
        (open.len(), through)
    }
}

/// Whether the kernel lets this process pass files through, on the served device `device`: it looks at
/// that before at the file, and a folder is no file that could be passed through.
pub fn permitted(device: impl AsFd) -> Possible {
    let refused = std::fs::File::open("/")
        .and_then(|folder| fuser::BackingId::create_raw(device, folder))
        .is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOTTY)));
    if refused {
        Possible::NoRight
    } else {
        Possible::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    const CONTENT: Content = Content {
        number: 7,
        size: 10,
        time: (1, 2),
    };

    struct Copy(PathBuf);

    impl Copy {
        fn new(name: &str) -> io::Result<Self> {
            let name = format!("cloudmount-ways-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, b"0123456789")?;
            Ok(Self(path))
        }

        fn open(&self) -> io::Result<Arc<Local>> {
            Local::open(Path::new(&self.0), 10).map(Arc::new)
        }
    }

    impl Drop for Copy {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn ways() -> Ways<u32> {
        let ways = Ways::new();
        ways.allow(Possible::Yes);
        ways
    }

    fn through(way: &Way<u32>) -> Option<u32> {
        match way {
            Way::Through(id) => Some(**id),
            _ => None,
        }
    }

    #[test]
    fn one_id_until_the_last_lets_go() -> io::Result<()> {
        let copy = Copy::new("id")?;
        let (ways, local) = (ways(), copy.open()?);
        let first = ways.enter(CONTENT, Some(&local), |_| Ok(1));
        assert_eq!(through(&first), Some(1));
        for _ in 0..3 {
            let more = ways.enter(CONTENT, Some(&copy.open()?), |_| Ok(2));
            assert_eq!(through(&more), Some(1));
            ways.leave(7);
        }
        assert_eq!(ways.count(), (1, 1));
        assert_eq!(through(&ways.enter(CONTENT, None, |_| Ok(3))), Some(1));
        ways.leave(7);
        ways.leave(7);
        assert_eq!(ways.count(), (0, 0));
        let Way::Through(id) = first else {
            return Err(io::Error::other("it was passed through"));
        };
        assert_eq!(Arc::strong_count(&id), 1, "nobody else holds it");
        assert_eq!(
            through(&ways.enter(CONTENT, Some(&local), |_| Ok(4))),
            Some(4)
        );
        Ok(())
    }

    #[test]
    fn what_is_open_through_the_cache_stays_so() -> io::Result<()> {
        let copy = Copy::new("cached")?;
        let (ways, local) = (ways(), copy.open()?);
        assert_eq!(ways.enter(CONTENT, None, |_| Ok(1)), Way::Cached);
        assert_eq!(ways.enter(CONTENT, Some(&local), |_| Ok(1)), Way::Cached);
        ways.leave(7);
        assert_eq!(ways.enter(CONTENT, Some(&local), |_| Ok(1)), Way::Cached);
        ways.leave(7);
        ways.leave(7);
        let now = ways.enter(CONTENT, Some(&local), |_| Ok(1));
        assert_eq!(through(&now), Some(1));
        Ok(())
    }

    #[test]
    fn a_copy_that_changed_is_given_to_nobody_else() -> io::Result<()> {
        let copy = Copy::new("changed")?;
        let (ways, local) = (ways(), copy.open()?);
        assert!(through(&ways.enter(CONTENT, Some(&local), |_| Ok(1))).is_some());
        fs::write(&copy.0, b"9876543210")?;
        assert_eq!(ways.enter(CONTENT, None, |_| Ok(2)), Way::Clash);
        // Found right again, or another file: only the same one may be given.
        let again = ways.enter(CONTENT, Some(&copy.open()?), |_| Ok(2));
        assert_eq!(through(&again), Some(1));
        let other = Copy::new("other")?;
        fs::remove_file(&copy.0)?;
        assert_eq!(
            ways.enter(CONTENT, Some(&other.open()?), |_| Ok(2)),
            Way::Clash
        );
        let newer = Content {
            time: (2, 2),
            ..CONTENT
        };
        assert_eq!(
            ways.enter(newer, Some(&other.open()?), |_| Ok(2)),
            Way::Clash
        );
        Ok(())
    }

    #[test]
    fn where_it_can_not_be() -> io::Result<()> {
        let copy = Copy::new("not")?;
        let (ways, local) = (ways(), copy.open()?);
        let refused = |_: &Local| Err(io::Error::from_raw_os_error(libc::ELOOP));
        assert_eq!(ways.enter(CONTENT, Some(&local), refused), Way::Cached);
        ways.leave(7);
        ways.allow(Possible::NoRight);
        assert_eq!(ways.enter(CONTENT, Some(&local), |_| Ok(1)), Way::Cached);
        ways.clear();
        assert_eq!(ways.count(), (0, 0));
        ways.leave(7);
        Ok(())
    }
}
