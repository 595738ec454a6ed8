"""What a service starts: a real drive, as systemd would have it run, and as mount(8) would for fstab."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.app.service import Wanted, install, program
from cloudmount.mounts.mountpoints import mounted_at
from cloudmount.service import credentials
from cloudmount.service.unit import UnitPlan, unit_text
from tests.service.conftest import PASSPHRASE, System

pytestmark = pytest.mark.mount


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a drive goes; taken down afterwards, whatever happened."""
    path = tmp_path / "a drive"
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if mounted_at(str(path)) is not None:
                subprocess.run(["fusermount3", "-u", "-z", "--", str(path)], check=False, timeout=20)


def limited(text: str) -> list[str]:
    """What starts a program with the capabilities of the unit `text`, and no way to more."""
    (line,) = (x for x in text.splitlines() if x.startswith("CapabilityBoundingSet="))
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in line.partition("=")[2].split()]
    assert "NoNewPrivileges=yes\n" in text
    return ["setpriv", "--bounding-set", ",".join(["-all", *kept]), "--inh-caps", "-all", "--no-new-privs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give up capabilities")
def test_the_unit_s_program_mounts_tells_systemd_and_ends(
    repository: Path, system: System, place: Path, tmp_path: Path
) -> None:
    """With the unit's command line, capabilities and credential; SIGTERM takes the drive down."""
    variables = {"CLOUDMOUNT_REPO": str(repository), "CLOUDMOUNT_PASSPHRASE": PASSPHRASE}
    secret = tmp_path / "credential"
    secret.write_bytes(credentials.as_bytes(variables))
    plan = UnitPlan(str(place), program(), ["--io-timeout=30"], [], "/etc/credential", True)
    told = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(told))
        notified.settimeout(60)
        run = [*program(), "service", "run", "--credentials", str(secret), "--", *plan.arguments, str(place)]
        process = subprocess.Popen(
            [*limited(unit_text(plan)), *run],
            env={**os.environ, "NOTIFY_SOCKET": str(told), "PYTHONUTF8": "1"},
            stderr=subprocess.PIPE,
        )
        try:
            assert notified.recv(100) == b"READY=1"
            found = mounted_at(str(place))
            assert found is not None and found.ours and os.listdir(place) == []
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            assert PASSPHRASE.encode() not in command + environment
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, said
    assert mounted_at(str(place)) is None and PASSPHRASE.encode() not in said


def test_a_wrong_passphrase_ends_it_with_the_code_that_is_not_tried_again(
    repository: Path, system: System, place: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "credential"
    secret.write_bytes(
        credentials.as_bytes({"CLOUDMOUNT_REPO": str(repository), "CLOUDMOUNT_PASSPHRASE": "x"})
    )
    run = [*program(), "service", "run", "--credentials", str(secret), "--", str(place)]
    done = subprocess.run(run, check=False, timeout=60, capture_output=True)
    assert done.returncode == 6 and b"Traceback" not in done.stderr
    plan = UnitPlan(str(place), program(), [], [], "/etc/credential", True)
    assert "RestartPreventExitStatus=2 6\n" in unit_text(plan)


def test_a_line_of_fstab_is_mounted(repository: Path, system: System, place: Path) -> None:
    """As mount(8) starts it, with what it puts behind."""
    made = install(
        Wanted(str(repository), PASSPHRASE, str(place), line="print", root=system.root),
        tell=lambda line: None,
    )
    spec = made.line.split()[0].encode().decode("unicode_escape")
    helper = (system.root / "sbin/mount.fuse.cloudmount").read_text()
    started = [*helper.splitlines()[-1].removeprefix("exec ").removesuffix(' "$@"').split()]
    assert started == [*program(), "service", "fstab"]
    arguments = ["--root", str(system.root), spec, str(place), "-s", "-o", "rw,_netdev"]
    fake = subprocess.run([*started, *arguments, "-f"], check=False, timeout=60, capture_output=True)
    assert fake.returncode == 0 and mounted_at(str(place)) is None, fake.stderr
    done = subprocess.run([*started, *arguments], check=False, timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = mounted_at(str(place))
    assert found is not None and found.ours
    down = [sys.executable, "-m", "cloudmount", "umount", str(place)]
    assert subprocess.run(down, check=False, timeout=60, capture_output=True).returncode == 0
