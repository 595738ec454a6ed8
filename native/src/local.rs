//! Files on this machine that hold the whole of a file of the drive.
//!
//! Decided here and only here: when such a copy is believed. It must be a regular file of exactly the
//! right size, and at every read still the one that was opened (inode, size, times of content and
//! status): what somebody changed is not used again, and the tree is asked, which may verify it.
//! A read that would wait for the disk is left to others, so the event loops never wait.
//!
//! Threading: any thread.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(PartialEq, Eq)]
struct Shape {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Shape {
    fn of(found: &Metadata) -> Self {
        Self {
            dev: found.dev(),
            ino: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// What a read of a local copy gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// All the bytes are there.
    All,
    /// They would have to be waited for.
    Later,
    /// It is no longer what was opened, or can't be read: ask the tree.
    Never,
}

/// An open local copy.
pub struct Local {
    file: File,
    shape: Shape,
    refused: AtomicBool,
}

impl Local {
    /// Open the copy at `path` of a file of `size` bytes.
    pub fn open(path: &Path, size: u64) -> io::Result<Self> {
        // A pipe or device put there must not hold the open up.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let found = file.metadata()?;
        if !found.is_file() || found.size() != size {
            return Err(io::Error::other("not a regular file of that size"));
        }
        Ok(Self {
            shape: Shape::of(&found),
            file,
            refused: AtomicBool::new(false),
        })
    }

    /// The file, for the kernel to read by itself, also past its page cache: opening a file so would fail where
    /// the file system of the copy has no direct reads.
    pub fn passable(&self) -> io::Result<&File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(&self.file)
    }

    /// Whether it is what lies at `path` now.
    pub fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| Shape::of(&found) == self.shape)
    }

    /// Whether both are one file, whatever somebody did to it between.
    pub fn is_file_of(&self, other: &Self) -> bool {
        (self.shape.dev, self.shape.ino) == (other.shape.dev, other.shape.ino)
    }

    /// Whether it may still be asked.
    pub fn usable(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// Fill `into` from `offset`, without waiting for the disk.
    pub fn read_now(&self, into: &mut [u8], offset: u64) -> Got {
        if !self.unchanged() {
            return Got::Never;
        }
        let Ok(at) = libc::off64_t::try_from(offset) else {
            return Got::Never;
        };
        let vector = libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: into.len(),
        };
        // SAFETY: the descriptor is open as long as `self` is; `vector` is one valid iovec that names
        // exactly the exclusively borrowed `into`, of which at most `iov_len` bytes are written.
        let read =
            unsafe { libc::preadv2(self.file.as_raw_fd(), &vector, 1, at, libc::RWF_NOWAIT) };
        match usize::try_from(read) {
            Ok(read) if read == into.len() => Got::All,
            // Not in memory, partly in memory, or a file system that doesn't know the flag.
            _ => Got::Later,
        }
    }

    /// Fill `into` from `offset`, waiting for the disk.
    pub fn read(&self, into: &mut [u8], offset: u64) -> Got {
        if self.unchanged() && self.file.read_exact_at(into, offset).is_ok() && self.unchanged() {
            return Got::All;
        }
        self.refused.store(true, Ordering::Relaxed);
        Got::Never
    }

    /// Whether it is still what was opened; once it isn't, it is never used again.
    pub fn unchanged(&self) -> bool {
        let same = self.usable()
            && self
                .file
                .metadata()
                .is_ok_and(|found| Shape::of(&found) == self.shape);
        if !same {
            self.refused.store(true, Ordering::Relaxed);
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn place(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("cloudmount-native-{}-{name}", std::process::id()))
    }

    #[test]
    fn reads_until_it_changes() -> io::Result<()> {
        let path = place("changes");
        fs::write(&path, b"0123456789")?;
        let local = Local::open(&path, 10)?;
        let mut into = [0; 4];
        assert_eq!(local.read(&mut into, 3), Got::All);
        assert_eq!(&into, b"3456");
        assert_eq!(local.read_now(&mut into, 0), Got::All);
        fs::write(&path, b"9876543210")?;
        assert_eq!(local.read_now(&mut into, 0), Got::Never);
        assert!(!local.usable());
        assert_eq!(local.read(&mut into, 0), Got::Never);
        fs::remove_file(path)
    }

    #[test]
    fn only_regular_files_of_the_size() -> io::Result<()> {
        let path = place("size");
        fs::write(&path, b"0123456789")?;
        assert!(Local::open(&path, 11).is_err());
        assert!(Local::open(&std::env::temp_dir(), 10).is_err());
        assert!(Local::open(Path::new("/dev/null"), 0).is_err());
        fs::remove_file(&path)?;
        assert!(Local::open(&path, 10).is_err());
        Ok(())
    }
}
