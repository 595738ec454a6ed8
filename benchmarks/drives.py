"""The ways to a disk in Azure that the boots are compared on, each as its user runs it.

Decided here and only here: their commands and settings.

    local           the plain VHDX on this machine's disk
    cloudmount      `cloudmount mount`, and variants whose repository differs; "booted before" with the trace
                    of an earlier boot, "after a drill" with the boot pack that a drill leaves
    rclone          `rclone mount --vfs-cache-mode full` of the plain VHDX, defaults otherwise
    nbdkit          nbdkit's curl plugin on the plain VHDX, as a block device
    nbdkit cache    the same with its cache filter
    restic          `restic mount` of a repository

rclone, nbdkit and the plain VHDX neither encrypt nor deduplicate: they are the quick ways, not
equals. Every way starts with an empty cache and is stopped afterwards, by its process id. One thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import azurite
from benchmarks.ageing import Ageing
from benchmarks.commands import (
    BenchmarkError,
    Run,
    cloudmount,
    new_repository,
    program,
    run,
    stop,
    version,
    wait_up,
)
from benchmarks.vm import Disk, boot
from cloudmount.app.bootpacks import leave_boot_pack
from cloudmount.app.opening import open_repository
from cloudmount.app.places import connect
from cloudmount.repo.names import TRACES, traces_of
from cloudmount.repo.traces import read_trace

PASSWORD = "benchmark"
PLAIN = "plain"
_UP_SECONDS = 120


class Way(ABC):
    """One way to the disk `image`, whose name its store or repository uses."""

    name: str

    def __init__(self, image: Path) -> None:
        self.image = image
        self.serving: subprocess.Popen[bytes] | None = None
        self.said = b""

    @abstractmethod
    def version(self) -> str:
        """The program's version."""

    def prepare(self, work: Path, done: set[str]) -> dict[str, float]:
        """Put the disk into the store. `done` names what earlier ways have put there. What to tell of it."""
        return {}

    @abstractmethod
    def opened(self, folder: Path) -> contextlib.AbstractContextManager[Disk]:
        """The disk, while the block runs; `folder` is empty and for caches and mounts."""

    def failed(self) -> str | None:
        """How what serves the disk has ended, None while it runs."""
        code = self.serving.poll() if self.serving is not None else None
        return None if code is None else f"{self.name}, exit code {code}"

    def memory(self) -> int:
        """The most memory in bytes that what serves the disk ever had; 0 when nothing does."""
        if self.serving is None:
            return 0
        for line in Path(f"/proc/{self.serving.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    @contextlib.contextmanager
    def _served(
        self, command: list[str], environ: Mapping[str, str], there: Path, drive: Path | None = None
    ) -> Iterator[None]:
        """Run `command` until the block ends; the block begins when `there` exists, below its `drive`."""
        with tempfile.TemporaryFile() as said:
            self.serving = subprocess.Popen(
                command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            try:
                wait_up(self.serving, there.exists, _UP_SECONDS, said)
                yield
            finally:
                try:
                    self._end()
                finally:
                    stop(self.serving, patience=1)  # if that failed
                    self.serving = None
                    if drive is not None and drive.is_mount():
                        subprocess.run([program("fusermount3", "fuse3"), "-u", "-z", str(drive)], check=False)

    def _end(self) -> None:
        """End the serving process."""
        assert self.serving is not None
        stop(self.serving)


class Local(Way):
    """The plain file."""

    name = "local"

    def version(self) -> str:
        return ""

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Disk]:
        yield Disk(str(self.image))


class Cloudmount(Way):
    """CloudMount with a repository as `init` makes it, or with frames of another size. Every boot is the
    repository's first."""

    learns = False

    def __init__(self, image: Path, frame_kib: int | None = None) -> None:
        super().__init__(image)
        self.name = "cloudmount" if frame_kib is None else f"cloudmount {frame_kib} KiB"
        self.repository = f"azure://{self.name.lower().replace(' ', '-')}"
        self._frame_kib = frame_kib
        self.program = cloudmount()

    def version(self) -> str:
        return version([self.program, "--version"])

    def environ(self, folder: Path) -> dict[str, str]:
        """The environment of a user whose caches and state lie in `folder`."""
        return {
            **os.environ,
            "CLOUDMOUNT_REPO": self.repository,
            "CLOUDMOUNT_PASSPHRASE": PASSWORD,
            "AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string(),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def prepare(self, work: Path, done: set[str]) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            environ = self.environ(Path(folder))
            new_repository(environ, self._frame_kib)
            return self._fill(environ, work)

    def _fill(self, environ: dict[str, str], work: Path) -> dict[str, float]:
        return {"backup seconds": self.backup(environ, self.image)}

    def backup(self, environ: dict[str, str], image: Path) -> float:
        return run([self.program, "backup", "--name", "server", image], env=environ).seconds

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Disk]:
        drive = folder / "drive"
        drive.mkdir()
        disk = drive / "server" / "latest" / f"{self.image.stem}.vhdx"
        self._drive, self._environ = drive, self.environ(folder)
        with self._served([self.program, "mount", str(drive)], self._environ, disk, drive):
            yield Disk(str(disk))

    def copied(self, folder: Path) -> tuple[Run, Path]:
        """The whole disk in the empty folder `folder`, measured, caches too; where it lies then."""
        command: list[str | Path] = [self.program, "hydrate", "server", "--to", folder / "copies"]
        return run(command, env=self.environ(folder)), next(folder.glob("copies/server/*/*.vhdx"))

    def _end(self) -> None:
        if self.failed() is None:
            subprocess.run([self.program, "umount", self._drive], env=self._environ, check=False)
        super()._end()
        if not self.learns:
            with connect(self.repository, self._environ) as store:
                for info in list(store.list(TRACES)):
                    store.delete(info.name)

    def back_up(self, work: Path) -> None:
        """Once more."""
        with tempfile.TemporaryDirectory(dir=work) as folder:
            self.backup(self.environ(Path(folder)), self.image)

    def leave_boot_pack(self, folder: Path, *, of_the_oldest: bool = False) -> None:
        """As a drill of the newest snapshot does, or did of the oldest, of the newest trace."""
        repository = open_repository(
            self.repository, PASSWORD, environ=self.environ(folder), tell=print, cached=False
        )
        with repository.store:
            tag = repository.keys.tag("server")
            trace = read_trace(repository, next(repository.store.list(traces_of(tag), limit=1)))
            snapshot = repository.latest("server")
            if of_the_oldest:
                listed = repository.listed(tag)
                snapshot = repository.load(listed[min(listed, key=lambda key: key.sequence)])
            if leave_boot_pack(repository, snapshot, trace, tell=print) is None:
                raise BenchmarkError("no boot pack was left")


class Learned(Cloudmount):
    """CloudMount, where the machine was booted from the repository before."""

    learns = True

    def __init__(self, image: Path) -> None:
        super().__init__(image)
        self.name = "cloudmount, booted before"
        self.repository += "-learned"

    def _fill(self, environ: dict[str, str], work: Path) -> dict[str, float]:
        seconds = self.backup(environ, self.image)
        with tempfile.TemporaryDirectory(dir=work) as folder, self.opened(Path(folder)) as disk:
            boot(disk, Path(folder), 600, self.failed, lambda: None)
        return {"backup seconds": seconds}


class Drilled(Learned):
    """CloudMount, where a drill has left a boot pack."""

    def __init__(self, image: Path) -> None:
        super().__init__(image)
        self.name = "cloudmount, after a drill"
        self.repository += "-drilled"

    def _fill(self, environ: dict[str, str], work: Path) -> dict[str, float]:
        told = super()._fill(environ, work)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            self.leave_boot_pack(Path(folder))
        return told


class Aged(Cloudmount):
    """CloudMount after a backup a day, a share of the disk's data changed each day (ageing.py)."""

    def __init__(self, image: Path, days: int, share: float, frame_kib: int | None = None) -> None:
        super().__init__(image, frame_kib)
        self.name += f", {days} days"
        self.repository += "-aged"
        self._days, self._share = days, share

    def _fill(self, environ: dict[str, str], work: Path) -> dict[str, float]:
        return _aged(self, environ, work, self._days, self._share)


class AgedDrilled(Learned):
    """CloudMount after those days, with the boot pack of a drill that was before them: its frames are those
    of the first day, whatever changed since."""

    def __init__(self, image: Path, days: int, share: float) -> None:
        super().__init__(image)
        self.name = f"cloudmount, a drill {days} days ago"
        self.repository += "-aged"
        self._days, self._share = days, share

    def _fill(self, environ: dict[str, str], work: Path) -> dict[str, float]:
        told = _aged(self, environ, work, self._days, self._share)
        with tempfile.TemporaryDirectory(dir=work) as folder, self.opened(Path(folder)) as disk:
            boot(disk, Path(folder), 600, self.failed, lambda: None)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            self.leave_boot_pack(Path(folder), of_the_oldest=True)
        return told


def _aged(way: Cloudmount, environ: dict[str, str], work: Path, days: int, share: float) -> dict[str, float]:
    """The backups of these days; how long the last one took."""
    seconds = 0.0
    with Ageing(way.image, work, days, share) as ageing:
        for day in ageing.run():
            seconds = way.backup(environ, ageing.disk)
            if day % 10 == 0:
                print(f"boot: {way.name}: day {day}, {seconds:.1f} s", file=sys.stderr)
    return {"last backup seconds": seconds}


class Rclone(Way):
    """rclone's drive over the plain VHDX."""

    name = "rclone"

    def __init__(self, image: Path) -> None:
        super().__init__(image)
        self._program = program("rclone", "rclone")

    def version(self) -> str:
        return version([self._program, "version"])

    def prepare(self, work: Path, done: set[str]) -> dict[str, float]:
        return _upload_plain(self.image, done)

    def _environ(self, folder: Path) -> dict[str, str]:
        (folder / "rclone.conf").touch()
        return {
            **os.environ,
            "RCLONE_CONFIG": str(folder / "rclone.conf"),
            "RCLONE_AZUREBLOB_ACCOUNT": azurite.ACCOUNT,
            "RCLONE_AZUREBLOB_KEY": azurite.KEY,
            "RCLONE_AZUREBLOB_ENDPOINT": azurite.account_url(),
            "RCLONE_AZUREBLOB_USE_EMULATOR": "true",
        }

    def copied(self, folder: Path) -> tuple[Run, Path]:
        """The whole disk in the empty folder `folder`, measured; where it lies then."""
        command: list[str | Path] = [self._program, "copy", f":azureblob:{PLAIN}/{self.image.name}", folder]
        return run(command, env=self._environ(folder)), folder / self.image.name

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Disk]:
        drive = folder / "drive"
        drive.mkdir()
        environ = self._environ(folder)
        command = [self._program, "mount", f":azureblob:{PLAIN}", str(drive), "--vfs-cache-mode", "full"]
        command += ["--cache-dir", str(folder / "cache")]
        with self._served(command, environ, drive / self.image.name, drive):
            yield Disk(str(drive / self.image.name))


class Nbdkit(Way):
    """nbdkit's curl plugin over the plain VHDX, with or without its cache filter."""

    def __init__(self, image: Path, cached: bool) -> None:
        super().__init__(image)
        self.name = "nbdkit cache" if cached else "nbdkit"
        self.socket = Path()
        """Where the device is, while it is opened."""
        self._cached = cached
        self._program = program("nbdkit", "nbdkit")
        plugin = subprocess.run([self._program, "--dump-plugin", "curl"], capture_output=True, check=False)
        if plugin.returncode:
            raise BenchmarkError(
                "nbdkit has no curl plugin here: apt-get install nbdkit (Debian 13: nbdkit-plugin-curl)"
            )

    def version(self) -> str:
        return version([self._program, "--version"])

    def prepare(self, work: Path, done: set[str]) -> dict[str, float]:
        return _upload_plain(self.image, done)

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Disk]:
        socket = self.socket = folder / "nbd.sock"
        filters = ["--filter=cache"] if self._cached else []
        url = azurite.blob_url(PLAIN, self.image.name)
        command = [self._program, "--foreground", "--readonly", "--unix", str(socket), *filters, "curl", url]
        with self._served(command, {**os.environ, "TMPDIR": str(folder)}, socket):
            nbd = f'{{"driver": "nbd", "server": {{"type": "unix", "path": "{socket}"}}}}'
            yield Disk(f'json:{{"driver": "vhdx", "file": {nbd}}}')


class Restic(Way):
    """restic's drive over a repository."""

    name = "restic"

    def __init__(self, image: Path) -> None:
        super().__init__(image)
        self._program = program("restic", "restic")

    def version(self) -> str:
        return version([self._program, "version"])

    def _environ(self, folder: Path) -> dict[str, str]:
        return {
            **os.environ,
            "RESTIC_REPOSITORY": "azure:restic:/",
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_CACHE_DIR": str(folder / "cache"),
            "AZURE_ACCOUNT_NAME": azurite.ACCOUNT,
            "AZURE_ACCOUNT_KEY": azurite.KEY,
        }

    def prepare(self, work: Path, done: set[str]) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            environ = self._environ(Path(folder))
            run([self._program, "init"], env=environ)
            return {"backup seconds": run([self._program, "backup", self.image], env=environ).seconds}

    def copied(self, folder: Path) -> tuple[Run, Path]:
        """The whole disk in the empty folder `folder`, measured, caches too; where it lies then."""
        command: list[str | Path] = [self._program, "restore", "latest", "--target", folder]
        return run(command, env=self._environ(folder)), folder / self.image.relative_to("/")

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Disk]:
        drive = folder / "drive"
        drive.mkdir()
        disk = drive / "snapshots" / "latest" / self.image.relative_to("/")
        with self._served([self._program, "mount", str(drive)], self._environ(folder), disk, drive):
            yield Disk(str(disk))

    def _end(self) -> None:
        """restic unmounts on an interrupt; asked otherwise it would leave a dead mount."""
        assert self.serving is not None
        stop(self.serving, ask=signal.SIGINT)


def _upload_plain(image: Path, done: set[str]) -> dict[str, float]:
    if PLAIN not in done:
        azurite.upload(PLAIN, image.name, image)
        done.add(PLAIN)
    return {}
