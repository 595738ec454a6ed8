"""Long runs over the container readers: random chains, random damage, several threads.

`campaign(seed, count)`: the same two give the same run. Every round builds a
chain of VHDX or VHD (blocks in every state, 512- and 4096-byte sectors, dirty
logs), proves that it reads right, then damages it some dozen times, undoing
each. What must hold is in `damage`: the right content or one clear error,
within seconds and within `MEMORY`.
"""

from __future__ import annotations

import collections
import os
import random
import resource
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from cloudmount.disks.detect import open_disk, parents_in
from tests.disks.damage import Field, outcome, vhd_fields, vhdx_fields
from tests.disks.disk_model import Model, check_reads
from tests.disks.vhd_writer import DYNAMIC, FIXED, VhdFile
from tests.disks.vhdx_writer import FULL, MIB, PARTIAL, UNDEFINED, UNMAPPED, ZERO, Log, VhdxFile, patch

MEMORY = 256 * 1024  # KiB that the process may grow by over a whole run
DAMAGES = 24  # a round
SECTOR = 4096


class Round:
    """One chain in a folder: its files (child last), what it reads as, each file's fields."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.files: list[Path] = []
        self.fields: list[list[Field]] = []
        # Ranges of each file that a checksum covers, or whose loss is told: flips there are checked.
        self.sealed: list[list[tuple[int, int]]] = []
        self.model = Model(512)

    def guid(self) -> UUID:
        """Reproducible."""
        return UUID(int=self.rng.getrandbits(128))

    def build(self) -> None:
        """A chain of one kind or the other."""
        if self.rng.random() < 0.6:
            self._build_vhdx()
        else:
            self._build_vhd()

    def _build_vhdx(self) -> None:
        rng = self.rng
        logical = rng.choice((512, 4096))
        size = rng.randrange(1, 7 * MIB // logical) * logical
        file = VhdxFile(
            Model(size),
            block=rng.choice((MIB, MIB, 2 * MIB, 4 * MIB)),
            logical=logical,
            physical=rng.choice((512, 4096)),
            disk_id=self.guid(),
            data_write_guid=self.guid(),
            order=rng,
        )
        for n in range(rng.randrange(1, 5)):
            if n:
                file = file.child(self.files[-1].name, order=rng, data_write_guid=self.guid())
            states = (0, 0, UNDEFINED, ZERO, UNMAPPED, FULL, FULL) + ((PARTIAL,) * 3 if n else ())
            for block in range(file.blocks):
                if state := rng.choice(states):
                    file.fill(block, rng, state)
            log: Log | None = None
            entries: tuple[int, ...] = ()
            if rng.random() < 0.4:
                file.log_guid = self.guid()
            path = file.write(self.folder / f"disk{n}.vhdx")
            lay = file.layout
            if file.log_guid.int:
                log, entries = self._dirty(path, file)
            self.files.append(path)
            self.fields.append(vhdx_fields(file, log, entries))
            self.sealed.append([(at, 4096) for at in lay.headers] + [(at, 65536) for at in lay.region_tables])
        self.model = file.model

    def _dirty(self, path: Path, file: VhdxFile) -> tuple[Log, tuple[int, ...]]:
        """Move some of the file's tables into its log."""
        rng, lay = self.rng, file.layout
        log = Log(file.log_guid, head=rng.randrange(256) * SECTOR, sequence=rng.randrange(1, 1 << 40))
        places = [lay.metadata, lay.metadata + 65536, lay.bat, *lay.bitmaps.values(), *lay.payload.values()]
        places = rng.sample(places, rng.randrange(1, min(len(places), 9) + 1))
        size = path.stat().st_size
        with path.open("rb") as f:
            right = {at: os.pread(f.fileno(), SECTOR, at) for at in places}
        entries = []
        for at in places:
            for _ in range(rng.randrange(3)):
                entries.append(log.entry([(at, rng.randbytes(SECTOR)), (at, SECTOR)], flushed=size))
            patch(path, at, rng.choice((bytes(SECTOR), rng.randbytes(SECTOR), right[at])))
        for at, data in right.items():
            entries.append(log.entry([(at, data)], flushed=size))
        if rng.random() < 0.3:
            log.entry(
                [(at, rng.randbytes(SECTOR)) for at in places], flushed=size, torn=rng.randrange(1, 9000)
            )
        log.put(path, file.log_offset)
        # Only entries that lie in one piece have fields a test can find.
        inside = [e for e in entries if e + 3 * SECTOR <= log.length]
        return log, tuple(rng.sample(inside, min(len(inside), 2)))

    def _build_vhd(self) -> None:
        rng = self.rng
        kind = rng.choice((FIXED, DYNAMIC, DYNAMIC))
        file = VhdFile(
            Model(512 * rng.randrange(1, 6 * MIB // 512)),
            kind,
            block=rng.choice((4096, 65536, 512 << 10, 2 * MIB)),
            unique_id=self.guid(),
            order=rng,
        )
        for n in range(rng.randrange(1, 5)):
            if n:
                file = file.child(self.files[-1].name, order=rng, unique_id=self.guid())
            if file.kind == FIXED:
                file.model.scribble(rng, 0, file.model.size, 9)
            else:
                for block in rng.sample(range(file.blocks), min(file.blocks, 12)):
                    file.fill(block, rng, whole=rng.random() < 0.5)
            path = file.write(self.folder / f"disk{n}.vhd")
            self.files.append(path)
            self.fields.append(vhd_fields(file))
            footer = file.model.size if file.kind == FIXED else file.end
            self.sealed.append([(footer, 512)] if file.kind == FIXED else [(0, 1536), (footer, 512)])
        self.model = file.model

    def prove(self) -> None:
        """It reads right, from several threads at once; all but the child are parents."""
        failed: list[BaseException] = []
        with open_disk(self.files[-1]) as disk:

            def work(seed: int) -> None:
                try:
                    check_reads(disk.source, self.model, random.Random(seed), reads=10)
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=work, args=(self.rng.getrandbits(32),)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]
        assert parents_in(self.files) == set(self.files[:-1])

    def damage(self) -> str:
        """One damage somewhere in the chain, what came of it, and everything as it was."""
        rng = self.rng
        n = rng.randrange(len(self.files))
        path = self.files[n]
        kind = rng.choice(("field", "field", "field", "sealed flip", "flip", "cut"))
        if kind == "field":
            field = rng.choice(self.fields[n])
            value = rng.choice(list(field.values(path, rng)))
            with field.put(path, value):
                # Without its last entry a log is just one that was torn earlier.
                checked = field.checked and not field.name.startswith("log")
                return self._outcome(f"{path.name}: {field.name} = {value.hex()}", checked)
        if kind == "cut":
            length = rng.randrange(path.stat().st_size)
            with undone(path, length, path.stat().st_size - length):
                os.truncate(path, length)
                return self._outcome(f"{path.name}: cut to {length}", True)
        at, length = rng.choice(self.sealed[n])
        if kind == "flip":  # tables have no checksum: anything may come, but nothing bad
            at, length = 0, min(path.stat().st_size, 4 * MIB)
        with undone(path, at, length):
            for _ in range(rng.randrange(1, 4)):
                patch(path, at + rng.randrange(length), bytes([rng.randrange(256)]))
            return self._outcome(f"{path.name}: {kind} in {length} bytes at {at}", kind == "sealed flip")

    def _outcome(self, what: str, checked: bool) -> str:
        try:
            text = outcome(self.files[-1], self.model, checked=checked)
        except BaseException as error:
            error.add_note(f"after {what}")
            raise
        return text if text in ("right", "other") else "error"


@contextmanager
def undone(path: Path, offset: int, length: int) -> Iterator[None]:
    """Afterwards these bytes of the file are as they were."""
    with path.open("rb") as f:
        f.seek(offset)
        before = f.read(length)
    try:
        yield
    finally:
        patch(path, offset, before)


def campaign(seed: int, count: int) -> str:
    """`count` rounds; a line about what came of them, or the first failure with its round's seed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: collections.Counter[str] = collections.Counter()
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            try:
                it = Round(Path(folder), random.Random(f"{seed} {number}"))
                it.build()
                it.prove()
                for _ in range(DAMAGES):
                    found[it.damage()] += 1
                it.prove()
            except BaseException as error:
                error.add_note(f"disk readers, seed {seed}, round {number}")
                raise
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY, f"grew by {grown} KiB"
    return f"disk readers: {count} chains; damaged ones: " + ", ".join(
        f"{n} {what}" for what, n in sorted(found.items())
    )
