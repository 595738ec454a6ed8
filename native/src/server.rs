//! The kernel's requests.
//!
//! Decided here and only here: which of them are answered on the event loops (reads of what is at hand,
//! listings that go on, releases, everything that writes) and which are Python's. Nothing here waits: not
//! for Python, not for a disk. Pages are kept across opens because content never changes.
//!
//! Threading: the event loops call these at the same time.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::core::Core;
use crate::jobs::{Answer, Ask};
use crate::loops::Loops;
use crate::opened::Name;
use crate::queue::Chore;
use crate::ways::Possible;

/// Bytes of the longest direct read (the kernel's own bound is the same).
const LONGEST: u32 = 1 << 20;

/// Serves one drive.
pub struct Server {
    /// What it is answered from.
    pub core: Arc<Core>,
    /// Those that call this.
    pub loops: Arc<Loops>,
    /// How many requests of readahead the kernel may have at once.
    pub background: u16,
}

/// Put names into a listing, from record `first` on.
pub fn fill(mut reply: ReplyDirectory, first: u64, names: &[Name]) {
    for (record, name) in (first + 1..).zip(names) {
        if reply.add(INodeNo(name.inode), record, name.kind, &name.name) {
            break;
        }
    }
    reply.ok();
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_ASYNC_DIO] {
            let _ = config.add_capabilities(wanted); // an older kernel goes without
        }
        // Of a depth of one: another file system may still be put above the drive.
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.core.ways.allow(Possible::NoRight); // until it is known
        }
        let _ = config.set_max_background(self.background);
        let _ = config.set_max_write(LONGEST); // bounds reads too
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ask = Ask::Lookup(parent.0, name.to_owned());
        self.core.ask(request.pid(), ask, Answer::Entry(reply));
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.core.queue.chore(Chore::Forget(number.0, lookups));
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.core.ask(
            request.pid(),
            Ask::Attributes(number.0),
            Answer::Attr(reply),
        );
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        self.core
            .ask(request.pid(), Ask::Target(number.0), Answer::Data(reply));
    }

    fn access(&self, request: &Request, number: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let ask = Ask::Access(number.0, mask.bits());
        self.core.ask(request.pid(), ask, Answer::Empty(reply));
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.core
            .ask(request.pid(), Ask::Space, Answer::Space(reply));
    }

    // Files

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0 {
            reply.error(Errno::EROFS);
            return;
        }
        self.core
            .ask(request.pid(), Ask::Open(number.0), Answer::Open(reply));
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.loops.begin(request.pid());
        let file = self.core.files.read().get(&handle.0).map(Arc::clone);
        match file {
            Some(file) => self
                .core
                .read(request.pid(), file, offset, size as usize, reply),
            None => reply.error(Errno::EBADF),
        }
        self.loops.end();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS); // the kernel doesn't ask again
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok(); // nothing is ever unwritten
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.core.release(handle.0);
    }

    // Folders

    fn opendir(&self, request: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let ask = Ask::OpenFolder(number.0);
        self.core.ask(request.pid(), ask, Answer::Open(reply));
    }

    fn readdir(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let Some(folder) = self.core.folders.read().get(&handle.0).map(Arc::clone) else {
            reply.error(Errno::EBADF);
            return;
        };
        if folder.knows(offset) {
            let names = folder.names.lock();
            let from = usize::try_from(offset).map_or(names.len(), |from| from.min(names.len()));
            fill(reply, offset, &names[from..]);
            return;
        }
        let ask = Ask::Names(folder, offset);
        self.core.ask(request.pid(), ask, Answer::Names(reply));
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let folder = self.core.folders.write().remove(&handle.0);
        reply.ok();
        drop(folder);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    // Whatever writes. The mount is read-only, so the kernel refuses most of it before.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS); // there are none; the kernel doesn't ask again
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
