"""The backup programs compared, each as its user runs it.

Decided here and only here: their commands and settings. restic has its defaults. borg has zstd,1 and
fixed chunks of 256 KiB, which its documentation advises for disk images and which is faster here and
smaller than its defaults; encryption is repokey, its documentation's first choice, and with SHA-256 in
hardware faster than repokey-blake2 (measured here: touched 2.1 s beside 5.7 s). CloudMount has its
defaults; variants of it differ in the frames' size only.
Every one has a repository, caches and a home of its own, made anew for each repetition.

A small file is backed up beside the image, always younger than it: borg never takes the youngest file
of a backup for unchanged, so that of a single file it would read all, every time. One thread.
"""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.commands import (
    BenchmarkError,
    Run,
    cloudmount,
    new_repository,
    program,
    run,
    stored_bytes,
    version,
)

PASSWORD = "benchmark"


class Archiver(ABC):
    """One program with a repository below `folder`, which is empty."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.environ = {**os.environ, "HOME": str(folder / "home")}
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            self.environ[variable] = str(folder / variable.lower())

    @abstractmethod
    def version(self) -> str:
        """The program's version."""

    @abstractmethod
    def init(self) -> None:
        """Make the repository. Not measured."""

    @abstractmethod
    def backup(self, image: Path, note: Path) -> Run:
        """One backup of `image` and of the small file beside it, measured."""

    @abstractmethod
    def restore(self, image: Path, target: Path) -> tuple[Run, Path]:
        """Restore `image` into the empty folder `target`, measured; where it lies then."""

    def stored(self) -> int:
        """Bytes in the repository."""
        return stored_bytes(self.repository)

    def verify(self, image: Path, restored: Path) -> None:
        """BenchmarkError unless the restored file is the image, byte for byte."""
        if subprocess.run(["cmp", "--quiet", image, restored], check=False).returncode:
            raise BenchmarkError(f"{self.name} restored something else")


class Cloudmount(Archiver):
    """CloudMount as `cloudmount init` makes it, or with frames of `frame_kib`."""

    def __init__(self, folder: Path, frame_kib: int | None = None) -> None:
        super().__init__(folder)
        self.name = "cloudmount" if frame_kib is None else f"cloudmount {frame_kib} KiB"
        self._frame_kib = frame_kib
        self.environ |= {"CLOUDMOUNT_REPO": str(self.repository), "CLOUDMOUNT_PASSPHRASE": PASSWORD}
        self._program = cloudmount()

    def version(self) -> str:
        return version([self._program, "--version"])

    def init(self) -> None:
        new_repository(self.environ, self._frame_kib)

    def backup(self, image: Path, note: Path) -> Run:
        return run([self._program, "backup", "--name", "server", image, note], env=self.environ)

    def restore(self, image: Path, target: Path) -> tuple[Run, Path]:
        done = run([self._program, "restore", "server", target], env=self.environ)
        return done, target / image.name

    def hydrate(self, target: Path) -> tuple[Run, Path]:
        """Complete a copy of the disk in the empty folder `target`, measured; where it lies then."""
        done = run([self._program, "hydrate", "server", "--to", target], env=self.environ)
        return done, next(target.glob("server/*/*.vhdx"))

    def verify(self, image: Path, restored: Path) -> None:
        """The restored VHDX is not the same file: it is the same disk."""
        formats = ["-f", "vhdx", "-F", "vhdx"] if image.suffix == ".vhdx" else []
        compare = [program("qemu-img", "qemu-utils"), "compare", *formats, str(image), str(restored)]
        done = subprocess.run(compare, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{self.name} restored something else: {done.stdout}{done.stderr}")


class Restic(Archiver):
    """restic with its defaults."""

    name = "restic"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environ |= {"RESTIC_REPOSITORY": str(self.repository), "RESTIC_PASSWORD": PASSWORD}
        self._program = program("restic", "restic")

    def version(self) -> str:
        return version([self._program, "version"])

    def init(self) -> None:
        run([self._program, "init"], env=self.environ)

    def backup(self, image: Path, note: Path) -> Run:
        return run([self._program, "backup", image, note], env=self.environ)

    def restore(self, image: Path, target: Path) -> tuple[Run, Path]:
        done = run([self._program, "restore", "latest", "--target", target], env=self.environ)
        return done, target / image.relative_to("/")


class Borg(Archiver):
    """borg with fixed chunks of 256 KiB and zstd,1."""

    name = "borg"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environ |= {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(folder / "home")}
        self._program = program("borg", "borgbackup")
        self._archives = 0

    def version(self) -> str:
        return version([self._program, "--version"])

    def init(self) -> None:
        run([self._program, "init", "--encryption", "repokey", self.repository], env=self.environ)

    def backup(self, image: Path, note: Path) -> Run:
        self._archives += 1
        options = ["--compression", "zstd,1", "--chunker-params", "fixed,262144"]
        archive = f"{self.repository}::{self._archives}"
        return run([self._program, "create", *options, archive, image, note], env=self.environ)

    def restore(self, image: Path, target: Path) -> tuple[Run, Path]:
        archive = f"{self.repository}::{self._archives}"
        done = run([self._program, "extract", archive], env=self.environ, cwd=target)
        return done, target / image.relative_to("/")
