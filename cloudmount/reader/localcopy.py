"""A disk's copy on this machine: a file that fills up piece by piece, and its sidecar.

Decided here and only here: what is trusted, and in which order things reach the disk. Pieces are written, the
file is synced, and only then are they entered in the sidecar, which is synced too (when: `piecewriter`).
With each such step what the file looks like is entered, unless somebody else opened it meanwhile. A file that
looks otherwise when it is opened was changed by somebody else, or was being written when its writer died:
nothing of it is trusted until `verify` compared it with its digests (no store is needed for that).
Before it is finished a file is compared as a whole, unless it was made and filled in one go while nobody else
had it open (`alone`). A finished one is read-only, and looked at with every read. And: nothing
that was not ours is overwritten; one process at a time fills a copy (a lock on the sidecar).

Threading: `claim` and what writes belong to one thread; `put`, `read` and `has` may be called from any. What
was put is entered on the writer's thread; `verify`, `zeros` and `finish` are for when nobody puts.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cloudmount.errors import CloudMountError, NoRoomError, TargetExistsError
from cloudmount.reader.alone import Alone
from cloudmount.reader.filelock import locked_file
from cloudmount.reader.pieces import Pieces
from cloudmount.reader.piecewriter import CHUNK, FULL, PieceWriter, Put, with_room
from cloudmount.reader.positions import Positions, Unmoved
from cloudmount.reader.sidecar import (
    LOST,
    SEEN,
    ZEROS,
    Described,
    Entry,
    Seen,
    Sidecar,
    sidecar_path,
)
from cloudmount.reader.soundness import all_sound, data_ranges, replay
from cloudmount.system import OPEN, TIMES_BY_DESCRIPTOR, pread, set_times, sync_folder

ROOM_SECONDS = 5.0
"""How often a full disk is tried again."""


class CopyInUseError(TargetExistsError):
    """Another process fills this copy."""


class _Replaced(TargetExistsError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} was replaced or removed by somebody while it was in use")


class _Descriptor:
    """A descriptor that is closed when the last who may read from it let go."""

    def __init__(self, path: Path, *, filling: bool = False) -> None:
        self.number = os.open(path, os.O_RDONLY | OPEN)
        if filling and hasattr(os, "posix_fadvise"):
            # The kernel must not read ahead into what is just being written past its cache.
            os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.number)


class LocalCopy:
    """A copy at `path`. Made by `claim` (to be filled) or `finished` (to be read)."""

    def __init__(self, path: Path, sidecar: Sidecar, lock: int) -> None:
        self.path, self.described = path, sidecar.described
        self.trusted = Pieces(self.described.pieces)
        """The pieces that reads may use."""
        self.positions: Positions = Unmoved()
        """Where the disk's bytes lie in it; set before it is used."""
        self.doubtful = False
        """Whether what was written has to be verified before it is used."""
        self.finished = False
        """Whether it is whole, verified and read-only."""
        self.room: Callable[[OSError], None] = _wait_for_room
        """Called when the disk is full, until it no longer is; raises to give up."""
        self._sidecar, self._lock = sidecar, lock
        self._seen: Seen | None = None
        self._reading: _Descriptor | None = None
        self._writer: PieceWriter | None = None
        self._alone: Alone | None = None
        self._made = False
        """Whether all of its file was written since `_alone` watches it."""
        self._bytes = 0
        """Bytes of its file that were written and entered since `_alone` watches it."""

    # Opening

    @classmethod
    def claim(cls, path: Path, wanted: Described, tell: Callable[[str], None]) -> LocalCopy:
        """The copy of `wanted` at `path` to be filled by this process, made when it is missing.

        `CopyInUseError` when another process fills it, `NoRoomError` when the disk is full,
        `TargetExistsError` when something else is there or nothing can be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = locked_file(sidecar_path(path))
            if lock is None:
                raise CopyInUseError(f"{path} is being completed by another process")
            try:
                return cls._claim(path, wanted, lock, tell)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            if error.errno in FULL:
                raise NoRoomError(f"{path}: no room left") from None
            raise TargetExistsError(f"{path}: can't be written: {error.strerror}") from None

    @classmethod
    def _claim(cls, path: Path, wanted: Described, lock: int, tell: Callable[[str], None]) -> LocalCopy:
        there = os.path.lexists(path)
        if there and not stat.S_ISREG(os.lstat(path).st_mode):
            raise TargetExistsError(f"{path} exists and is no file; it is not overwritten")
        if there and not os.fstat(lock).st_size:
            with contextlib.suppress(PermissionError):  # Windows removes nothing that is open
                os.unlink(sidecar_path(path))  # ours: the sidecar is always on the disk before its file
            raise TargetExistsError(f"{path} exists and is not a copy of CloudMount's; it is not overwritten")
        sidecar = Sidecar.open(lock)
        if sidecar is not None and sidecar.described != wanted:
            raise TargetExistsError(
                f"{path} is a copy of another disk ({sidecar.described.disk} of "
                f"{sidecar.described.machine}, {sidecar.described.folder}); choose another folder"
            )
        if sidecar is None and there:
            tell(f"{sidecar_path(path)} is damaged; {path} is filled anew")
        fresh = sidecar is None or not there
        if sidecar is None or fresh:
            sidecar = Sidecar.create(lock, wanted)
            sync_folder(os.fspath(path.parent))
        copy = cls(path, sidecar, lock)
        if there:
            copy._load()
        try:
            if not copy.finished and not copy.doubtful:
                copy.room = _give_up
                copy._open_for_writing(fresh)
        except BaseException:
            copy._end_writing()
            raise
        copy.room = _wait_for_room
        return copy

    @classmethod
    def finished_at(cls, path: Path, wanted: Described) -> LocalCopy | None:
        """A finished, unchanged copy of `wanted` at `path`, to be read; None when there is none."""
        with contextlib.suppress(OSError):
            if os.stat(path).st_mode & 0o222:  # unfinished; its sidecar may be long
                return None
            fd = os.open(sidecar_path(path), os.O_RDONLY | OPEN)
            try:
                sidecar = Sidecar.open(fd)
                if sidecar is None or sidecar.described != wanted:
                    return None
                copy = cls(path, sidecar, -1)
                copy._load()
                if copy.finished:
                    return copy
            finally:
                os.close(fd)
        return None

    def _load(self) -> None:
        """Take what the sidecar tells, if the file still looks as it did."""
        last: Seen | None = None
        self._reading = _Descriptor(self.path)
        for entry in self._sidecar.entries():
            last = replay(entry, self.trusted) or last
        now = Seen.of(os.fstat(self._reading.number))
        finished = last is not None and bool(last.finished)
        if last is not None and last == now.replace(finished=last.finished):
            self._seen = last
            self.finished = finished and self.missing == 0
        else:
            self.doubtful = self.trusted.held > 0
            self.trusted = Pieces(self.described.pieces)

    def _open_for_writing(self, fresh: bool) -> None:
        size = self.described.size
        if os.path.lexists(self.path):
            os.chmod(self.path, 0o600)  # it may have been finished once
        self._made = not os.path.lexists(self.path)
        self._writer = PieceWriter(self.path, self.described.piece, self._commit, self._full)
        file = self._writer.file
        if self._reading is not None and not self._in_place(self._reading.number):
            raise _Replaced(self.path)
        if fresh:
            os.ftruncate(file.fd, 0)
        if os.fstat(file.fd).st_size != size:
            os.ftruncate(file.fd, size)
        self._sidecar.cut()
        file.sync()
        sync_folder(os.fspath(self.path.parent))
        self._reading = _Descriptor(self.path, filling=True)
        self._watch()
        if not self.doubtful:
            self._enter([])

    def _in_place(self, fd: int) -> bool:
        """Whether the open file is still the one at `path`."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        return False

    def close(self) -> None:
        """Enter what is written, and let others have it. Reads under way end as they began."""
        try:
            self.room = _give_up
            # A full disk, or it was stopped: what is not entered is fetched again.
            with contextlib.suppress(OSError, CloudMountError):
                self.commit()
        finally:
            self._end_writing()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1
            self._reading = None

    def _end_writing(self) -> None:
        writer, self._writer = self._writer, None
        alone, self._alone = self._alone, None
        if writer is not None:
            writer.close()
        if alone is not None:
            alone.close()

    # Reading

    @property
    def claimed(self) -> bool:
        """Whether this process may fill it."""
        return self._lock >= 0

    @property
    def missing(self) -> int:
        """Pieces that are not there, or not trusted yet."""
        return self.trusted.count - self.trusted.held

    @property
    def done_bytes(self) -> int:
        """Bytes that are there."""
        d = self.described
        whole = self.trusted.held * d.piece
        if d.size % d.piece and self.trusted.has(d.pieces - 1, d.pieces):
            whole -= d.piece - d.size % d.piece
        return whole

    def has(self, position: int, length: int) -> bool:
        """Whether these bytes are there."""
        piece = self.described.piece
        return self.trusted.has(position // piece, -(-(position + length) // piece))

    def read(self, position: int, length: int) -> bytes | None:
        """These bytes of the file; None when they are not there, or something is wrong with it."""
        reading, finished, seen = self._reading, self.finished, self._seen
        if reading is None or not self.has(position, length):
            return None
        try:
            data = pread(reading.number, length, position)
            # Afterwards: times change before content does.
            changed = finished and Seen.of(os.fstat(reading.number), finished=True) != seen
        except OSError:
            data, changed = b"", True
        if changed or len(data) != length:
            self.distrust()
            return None
        return data

    @property
    def verified_path(self) -> str | None:
        """Where the finished copy lies, while it looks as it did when it was verified."""
        seen = self._seen
        if not self.finished or seen is None:
            return None
        try:
            now = Seen.of(os.stat(self.path), finished=True)
        except OSError:
            return None
        return os.path.abspath(self.path) if now == seen else None

    def distrust(self) -> None:
        """Use nothing of it until it was verified."""
        self.trusted = Pieces(self.described.pieces)  # first: `read` looks at `finished` before
        self.finished, self.doubtful = False, True

    # Writing

    def put(self, pieces: Iterable[Put]) -> None:
        """Write pieces, each at most `CHUNK` bytes, and have them entered soon. May raise what entering
        others met."""
        assert self._writer is not None
        self._writer.put(pieces)

    def commit(self) -> None:
        """Have what was put on the disk, and entered, when this returns."""
        if self._writer is not None:
            self._writer.drain()

    def _commit(self, entries: list[Entry]) -> None:
        """On the writer's thread: bring what is written to the disk, and enter it."""
        assert self._writer is not None
        try:
            self._writer.file.sync()
        except OSError as error:
            # The kernel forgets what it could not write: those pieces are to be written again.
            if error.errno not in FULL:
                raise
            self.room(error)
            return
        self._enter(entries)
        piece, size = self.described.piece, self.described.size
        self._bytes += sum(min(size, (e.first + e.pieces) * piece) - e.first * piece for e in entries)

    def _full(self, error: OSError) -> None:
        self.room(error)

    def _looks(self, *, finished: bool = False) -> Seen:
        assert self._reading is not None
        return Seen.of(os.fstat(self._reading.number), finished=finished)

    def _enter(self, entries: list[Entry], seen: Seen | None = None) -> None:
        """Add to the sidecar, with what the file looks like: `seen`, or now. Then trust it."""
        looks = seen or self._looks()
        told = [Entry(SEEN, 0, 0, looks.pack())] if seen is not None or not self._shared() else []
        if entries or told:
            with_room(lambda: self._sidecar.append([*entries, *told]), self.room)
        for entry in entries:
            replay(entry, self.trusted)
        if told:
            self._seen = looks

    def _watch(self) -> None:
        """Watch it from now on."""
        if self._alone is not None:
            self._alone.close()
        self._alone, self._bytes = Alone(self.path), 0

    def _shared(self) -> bool:
        """Whether somebody else opened it, as far as that is known."""
        alone, reading = self._alone, self._reading
        if alone is None or reading is None or not alone.watching:
            return False
        return not alone.holds(os.fstat(reading.number), self._bytes)

    # Verifying and finishing

    def verify(self, stopped: Callable[[], bool]) -> bool:
        """Compare what was written with its digests: what passes is trusted at once, what doesn't no longer
        is. False when `stopped`, or when somebody changed the file meanwhile."""
        assert self._lock >= 0
        assert self._reading is not None
        self.commit()
        if not self._in_place(self._reading.number):
            raise _Replaced(self.path)
        told, found = Pieces(self.described.pieces), Pieces(self.described.pieces)
        was = Seen.of(os.fstat(self._reading.number))
        whole = False
        if self.doubtful:
            self.trusted = found
        for entry, runs in all_sound(self._reading.number, self.described, self._sidecar.entries()):
            seen = replay(entry, told)
            whole = bool(seen.finished) if seen is not None else whole
            for first, stop in runs:
                found.add(first, stop)
            if stopped():
                return False
        if self._writer is not None:  # who opened it by now changed it by now, or is told of by `status`
            self._made = False
            self._watch()
        status = os.fstat(self._reading.number)
        if Seen.of(status) != was:
            self.distrust()
            return False
        self._sidecar.cut()
        lost = [
            Entry(LOST, first, stop - first)
            for low, high in found.runs(present=False)
            for first, stop in told.runs(low, high, present=True)
        ]
        for first, stop in found.runs(present=False):
            self.trusted.remove(first, stop)
        for first, stop in told.runs(present=False):
            self.trusted.remove(first, stop)
        asis = status.st_size == self.described.size and not status.st_mode & 0o222
        finished = whole and asis and not self.missing
        if not finished and self._writer is None:
            self._open_for_writing(False)
        self._enter(lost, self._looks(finished=finished))
        self.doubtful, self.finished = False, finished
        return True

    def zeros(self, runs: Sequence[tuple[int, int]]) -> None:
        """These runs (first, stop) of pieces, which were never written here, are to read as zeros."""
        writer, reading = self._writer, self._reading
        assert writer is not None
        assert reading is not None
        self.commit()
        piece, size = self.described.piece, self.described.size

        def clear(at: int, length: int) -> None:
            if pread(reading.number, length, at) != bytes(length):
                with_room(lambda: writer.file.write_at(bytes(length), at), self.room)

        for first, stop in runs:
            for low, high in data_ranges(reading.number, first * piece, min(size, stop * piece)):
                for at in range(low, high, CHUNK):
                    clear(at, min(CHUNK, high - at))
        with_room(writer.file.sync, self.room)
        self._enter([Entry(ZEROS, first, stop - first) for first, stop in runs])

    def finish(self, mtime_ns: int, stopped: Callable[[], bool]) -> bool:
        """Compare all of it with its digests where somebody else may have changed it, and make it read-only.
        False when something has to be fetched again, or when `stopped`."""
        self.commit()
        if self.missing:
            return False
        alone = self._is_alone()
        if not alone and (not self.verify(stopped) or self.missing):
            return False
        assert self._writer is not None
        file = self._writer.file
        if not self._in_place(file.fd):
            raise _Replaced(self.path)
        place = file.fd if TIMES_BY_DESCRIPTOR else self.path
        set_times(place, mtime_ns)
        os.chmod(place, 0o444)
        with_room(file.sync, self.room)
        seen = self._looks(finished=True)
        if alone and not self._is_alone():  # only just now
            return False
        self._enter([], seen)
        self.finished = True
        self._end_writing()
        return True

    def _is_alone(self) -> bool:
        """Whether nobody else can have changed what was written since the file was made."""
        alone, reading = self._alone, self._reading
        if alone is None or reading is None or not alone.watching or not self._made:
            return False
        return os.fstat(reading.number).st_size == self.described.size and not self._shared()


def _wait_for_room(error: OSError) -> None:
    time.sleep(ROOM_SECONDS)


def _give_up(error: OSError) -> None:
    raise error
