//! Python's part of a request: how it is called, and what its answers mean.
//!
//! Decided here and only here: the form of these answers. Each is an errno (an `int`; 0 where nothing is
//! to be told), or a tuple, `bytes` or list as `cloudmount_native.pyi` tells. Whatever does not have the
//! form, and any exception, is EIO and told by `sys.unraisablehook`: the drive goes on.
//!
//! Threading: worker threads of Python's, attached to the interpreter.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyInt, PyList};

use crate::core::Core;
use crate::jobs::{Answer, Ask, Job};
use crate::local::Local;
use crate::opened::{gather, with_pages, Content, Folder, Name, Opened};
use crate::queue::Chore;
use crate::server::fill;
use crate::ways::Way;

const BLOCK: u32 = 4096;
/// Bytes of the longest name.
const NAME_MAX: u32 = 255;

const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK,
    flags: 0,
};

/// number, inode, kind, size, seconds, nanoseconds, mode, blocks of 512, links, user, group, seconds valid
type Shown = (u64, u64, u8, u64, i64, u32, u16, u64, u32, u32, u32, f64);

/// What Python answered: what is asked for, or an errno.
enum Told<T> {
    Value(T),
    Errno(i32),
}

fn told<'py, T>(answer: &Bound<'py, PyAny>) -> PyResult<Told<T>>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    if answer.is_instance_of::<PyInt>() {
        return Ok(Told::Errno(answer.extract()?));
    }
    match answer.extract::<T>() {
        Ok(value) => Ok(Told::Value(value)),
        Err(error) => Err(PyTypeError::new_err(error.into().to_string())),
    }
}

fn kind(code: u8) -> PyResult<FileType> {
    match code {
        0 => Ok(FileType::RegularFile),
        1 => Ok(FileType::Directory),
        2 => Ok(FileType::Symlink),
        _ => Err(PyValueError::new_err("a kind is 0, 1 or 2")),
    }
}

fn attributes(shown: Shown, ino: u64) -> PyResult<(FileAttr, Duration)> {
    let (_, _, code, size, seconds, nanoseconds, perm, blocks, nlink, uid, gid, valid) = shown;
    let time = time(seconds, nanoseconds)
        .ok_or_else(|| PyValueError::new_err("a time that the system can't hold"))?;
    let valid = Duration::try_from_secs_f64(valid)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    let attr = FileAttr {
        ino: INodeNo(ino),
        size,
        blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(code)?,
        perm,
        nlink,
        uid,
        gid,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    };
    Ok((attr, valid))
}

fn time(seconds: i64, nanoseconds: u32) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)?
    } else {
        UNIX_EPOCH.checked_add(whole)?
    };
    base.checked_add(Duration::from_nanos(nanoseconds.into()))
}

/// Do what nobody waits for.
pub fn chores(tree: &Bound<'_, PyAny>, chores: Vec<Chore>) {
    let mut forgotten = Vec::new();
    let mut closed = Vec::new();
    for chore in chores {
        match chore {
            Chore::Forget(number, lookups) => forgotten.push((number, lookups)),
            Chore::Close(handle) => closed.push(handle),
        }
    }
    if let Err(error) = tree.call_method1("chores", (forgotten, closed)) {
        error.write_unraisable(tree.py(), Some(tree));
    }
}

/// A job in work; whatever happens, it is answered and ended.
struct Working<'a> {
    core: &'a Core,
    lane: u64,
    job: &'a Job,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if let Some(answer) = self.job.claim() {
            answer.error(Errno::EIO);
        }
        self.core.jobs.end(self.job);
        self.core.queue.done(self.lane);
    }
}

/// Do a job and answer it, unless it was given up.
pub fn answer(core: &Core, tree: &Bound<'_, PyAny>, lane: u64, job: &Job) {
    let _working = Working { core, lane, job };
    if !job.given_up() {
        let failed = match ask(core, tree, job) {
            Ok(0) => None,
            Ok(errno) => Some(Errno::from_i32(errno)),
            Err(error) => {
                error.write_unraisable(tree.py(), Some(tree));
                Some(Errno::EIO)
            }
        };
        if let (Some(errno), Some(answer)) = (failed, job.claim()) {
            answer.error(errno);
        }
    }
}

/// Ask Python; an errno, or 0 when the job was answered or given up.
fn ask(core: &Core, tree: &Bound<'_, PyAny>, job: &Job) -> PyResult<i32> {
    let py = tree.py();
    match &job.ask {
        Ask::Lookup(parent, name) => {
            let name = PyBytes::new(py, name.as_encoded_bytes());
            let answer = tree.call_method1("lookup", (*parent, name))?;
            let shown = match told::<Option<Shown>>(&answer)? {
                Told::Value(Some(shown)) => shown,
                Told::Value(None) => {
                    if let Some(Answer::Entry(reply)) = job.claim() {
                        // Node 0: the kernel remembers that there is none.
                        reply.entry(&core.missing, &NOTHING, Generation(0));
                    }
                    return Ok(0);
                }
                Told::Errno(errno) => return Ok(errno),
            };
            let (number, inode, ..) = shown;
            let (attr, valid) = attributes(shown, number)?;
            // A number that isn't the inode (see `inodes`): the right one comes with the attributes.
            let attr_valid = if number == inode {
                valid
            } else {
                Duration::ZERO
            };
            match job.claim() {
                Some(Answer::Entry(reply)) => {
                    reply.entry_with_ttls(&attr_valid, &valid, &attr, Generation(0));
                }
                _ => chores(tree, vec![Chore::Forget(number, 1)]), // the kernel never learns of it
            }
        }
        Ask::Attributes(number) => {
            match told::<Shown>(&tree.call_method1("attributes", (*number,))?)? {
                Told::Value(shown) => {
                    let (attr, valid) = attributes(shown, shown.1)?;
                    if let Some(Answer::Attr(reply)) = job.claim() {
                        reply.attr(&valid, &attr);
                    }
                }
                Told::Errno(errno) => return Ok(errno),
            }
        }
        Ask::Target(number) => {
            match told::<PyBackedBytes>(&tree.call_method1("target", (*number,))?)? {
                Told::Value(target) => {
                    if let Some(Answer::Data(reply)) = job.claim() {
                        reply.data(&target);
                    }
                }
                Told::Errno(errno) => return Ok(errno),
            }
        }
        Ask::Open(number) => return open(core, tree, job, *number),
        Ask::Read(file, offset, length) => return read(core, tree, job, file, *offset, *length),
        Ask::OpenFolder(number) => {
            match told::<(u64,)>(&tree.call_method1("open_folder", (*number,))?)? {
                Told::Value((handle,)) => {
                    let folder = Arc::new(Folder::new(handle, Arc::clone(&core.queue)));
                    if let Some(Answer::Open(reply)) = job.claim() {
                        core.folders.write().insert(handle, folder);
                        reply.opened(FileHandle(handle), FopenFlags::empty());
                    }
                }
                Told::Errno(errno) => return Ok(errno),
            }
        }
        Ask::Names(folder, offset) => return names(tree, job, folder, *offset),
        Ask::Space => match told::<(u64, u64)>(&tree.call_method0("space")?)? {
            Told::Value((blocks, files)) => {
                if let Some(Answer::Space(reply)) = job.claim() {
                    reply.statfs(blocks, 0, 0, files, 0, BLOCK, NAME_MAX, BLOCK);
                }
            }
            Told::Errno(errno) => return Ok(errno),
        },
        Ask::Access(number, mask) => {
            let errno: i32 = tree.call_method1("access", (*number, *mask))?.extract()?;
            if errno != 0 {
                return Ok(errno);
            }
            if let Some(Answer::Empty(reply)) = job.claim() {
                reply.ok();
            }
        }
    }
    Ok(0)
}

fn open(core: &Core, tree: &Bound<'_, PyAny>, job: &Job, number: u64) -> PyResult<i32> {
    type Open = (u64, u64, i64, u32, Option<Vec<u8>>);
    let (handle, size, seconds, nanoseconds, local) =
        match told::<Open>(&tree.call_method1("open", (number,))?)? {
            Told::Value(open) => open,
            Told::Errno(errno) => return Ok(errno),
        };
    let content = Content {
        number,
        size,
        time: (seconds, nanoseconds),
    };
    let file = Arc::new(Opened::new(handle, content, Arc::clone(&core.queue)));
    offer(tree, &file, local)?;
    let Some(Answer::Open(reply)) = job.claim() else {
        return Ok(0);
    };
    let local = file.local();
    let back = |local: &Local| reply.open_backing(local.passable()?);
    let way = core.ways.enter(content, local.as_ref(), back);
    if matches!(way, Way::Clash) {
        // What asks comes back for the name, and finds the file under another number.
        let told = tree.call_method1("renumber", (number,));
        reply.error(Errno::ESTALE);
        return told.map(|_| 0);
    }
    core.files.write().insert(handle, file);
    match way {
        // The kernel takes no flag beside it here, not even the one to keep its pages.
        Way::Through(id) => {
            reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &id);
        }
        _ => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
    }
    Ok(0)
}

/// Use a local copy from now on, if it is as it should be; else the tree goes on answering.
fn offer(tree: &Bound<'_, PyAny>, file: &Opened, local: Option<Vec<u8>>) -> PyResult<()> {
    let Some(named) = local.filter(|_| file.wants_local()) else {
        return Ok(());
    };
    let path = PathBuf::from(OsString::from_vec(named.clone()));
    let size = file.content.size;
    if let Ok(local) = tree.py().detach(|| Local::open(&path, size)) {
        // Asked again, so that what was opened is what was meant, whatever was put there between.
        let answer = tree.call_method1("local", (file.handle,))?;
        let still =
            matches!(told::<Option<Vec<u8>>>(&answer)?, Told::Value(Some(now)) if now == named);
        if still && local.is_at(&path) {
            file.set_local(local);
        }
    }
    Ok(())
}

fn read(
    core: &Core,
    tree: &Bound<'_, PyAny>,
    job: &Job,
    file: &Opened,
    offset: u64,
    length: usize,
) -> PyResult<i32> {
    let py = tree.py();
    // Another reader may have brought it while this waited in the queue.
    if let Some(parts) = file.remembered(&core.memory, offset, length) {
        py.detach(|| {
            with_pages(length, |pages| {
                gather(&parts, pages);
                if let Some(Answer::Data(reply)) = job.claim() {
                    reply.data(pages);
                }
            });
        });
        return Ok(0);
    }
    let (wide, wide_length) = file.widened(offset, length);
    let asked = (file.handle, offset, length, wide, wide_length);
    type Read<'py> = (u64, Bound<'py, PyBytes>, Option<Vec<u8>>);
    let (from, bytes, local) = match told::<Read<'_>>(&tree.call_method1("read", asked)?)? {
        Told::Value(read) => read,
        Told::Errno(errno) => return Ok(errno),
    };
    offer(tree, file, local)?;
    let start = offset
        .checked_sub(from)
        .and_then(|start| usize::try_from(start).ok())
        .filter(|start| start.saturating_add(length) <= bytes.as_bytes().len())
        .ok_or_else(|| PyValueError::new_err("other bytes came than were asked for"))?;
    let bytes = PyBackedBytes::from(bytes);
    py.detach(|| {
        file.remember(&core.memory, from, &bytes); // before the reader asks for more of it
        if let Some(Answer::Data(reply)) = job.claim() {
            reply.data(&bytes[start..start + length]);
        }
    });
    Ok(0)
}

fn names(tree: &Bound<'_, PyAny>, job: &Job, folder: &Folder, offset: u64) -> PyResult<i32> {
    let listed =
        match told::<Bound<'_, PyList>>(&tree.call_method1("names", (folder.handle, offset))?)? {
            Told::Value(listed) => listed,
            Told::Errno(errno) => return Ok(errno),
        };
    let mut fresh = Vec::with_capacity(listed.len());
    for item in listed.iter() {
        let (inode, code, name): (u64, u8, Bound<'_, PyBytes>) = item.extract()?;
        fresh.push(Name {
            inode,
            kind: kind(code)?,
            name: OsString::from_vec(name.as_bytes().to_vec()),
        });
    }
    if let Some(Answer::Names(reply)) = job.claim() {
        fill(reply, offset, &fresh);
    }
    let mut known = folder.names.lock();
    if offset == 0 {
        known.clear();
        folder.whole.store(false, Ordering::Release);
    }
    if known.len() as u64 == offset {
        folder.whole.store(fresh.is_empty(), Ordering::Release);
        known.append(&mut fresh);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch() {
        assert_eq!(time(0, 0), Some(UNIX_EPOCH));
        let late = time(1 << 33, 999_999_999).and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        assert_eq!(late, Some(Duration::new(1 << 33, 999_999_999)));
        let early = time(-2, 800_000_000).and_then(|t| UNIX_EPOCH.duration_since(t).ok());
        assert_eq!(early, Some(Duration::new(1, 200_000_000)));
    }
}
