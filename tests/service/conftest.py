"""A repository, and a system of its own whose systemd is a script that writes down what it is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloudmount.app import service
from cloudmount.app.init import init
from cloudmount.service import credentials, systemctl

PASSPHRASE = "correct horse battery"
_SCRIPT = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
for word in {fails}; do case " $* " in *" $word "*) echo "no $word today" >&2; exit 1;; esac; done
case "$*" in *show*) printf '%s\\n' ActiveState=active SubState=running Result=success UnitFileState=enabled
esac
"""


@dataclass(frozen=True, slots=True)
class System:
    """Files below `root`; `asked` is what systemctl was told."""

    root: Path
    bin: Path
    log: Path

    def systemctl(self, *fails: str) -> None:
        """Let systemctl fail where one of these words is among its arguments."""
        path = self.bin / "systemctl"
        path.write_text(_SCRIPT.format(log=self.log, fails=" ".join(fails) or "''"))
        path.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """Its calls so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def tree(self) -> Mapping[str, tuple[int, bytes]]:
        """Everything below the root, with modes and contents."""
        return {
            path.relative_to(self.root).as_posix(): (
                path.lstat().st_mode,
                path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
            )
            for path in self.root.rglob("*")
        }


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a repository."""
    home = tmp_path_factory.mktemp("service")
    environ = {"XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache")}
    init(str(home / "repo"), PASSPHRASE, environ=environ)
    return home / "repo"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """It counts as this computer; its key for credentials is its own."""
    made = System(tmp_path / "root", tmp_path / "bin", tmp_path / "asked")
    (made.root / "etc").mkdir(parents=True)
    made.bin.mkdir()
    made.systemctl()
    monkeypatch.setattr(service, "ROOT", made.root)
    monkeypatch.setattr(systemctl, "_RUNNING", made.root)
    if os.geteuid() != 0:  # another's system is nobody's to install into, and systemd-creds is root's
        monkeypatch.setattr(service, "_check_root", lambda root: None)
        monkeypatch.setattr(credentials, "encrypted", lambda data: bytes(b ^ 0x5A for b in data))
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "secret"))
    for name in ("CLOUDMOUNT_REPO", "CLOUDMOUNT_PASSPHRASE", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    return made
