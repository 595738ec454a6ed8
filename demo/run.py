#!/usr/bin/env python3
"""The demo: a machine is backed up twice, mounted, and booted from its backup.

    make demo            (or: .venv/bin/python -m demo.run [--folder FOLDER])

Decided here and only here: what the demo shows. It is the main job on an embedded
default: a folder repository, no account. Everything is done by the same commands that
a person types; each is shown before it runs. Single-threaded; whatever it starts it ends.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from cloudmount.boot.accelerator import Trial
from demo.build_guest import GuestError, build, edit

MIB = 1 << 20
PASSPHRASE = "demo passphrase"
CODE, VARS = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
BOOT_SECONDS = 150
DRIVERS = {
    "native": "native (Rust; reads that are at hand don't wait for Python)",
    "refuse": "refuse (Python; with cargo 1.85 here, the quicker native one would have been built)",
}
MARK = ".cloudmount-demo"


def say(text: str = "") -> None:
    """A line for people."""
    print(text, flush=True)


def step(number: int, title: str) -> None:
    """A heading."""
    say(f"\n{number}. {title}")


class Demo:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drive = folder / "drive"
        self.program = str(Path(sys.executable).with_name("cloudmount"))
        self.environ = {
            **os.environ,
            "CLOUDMOUNT_REPO": str(folder / "repository"),
            "CLOUDMOUNT_PASSPHRASE": PASSPHRASE,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def cloudmount(self, *arguments: str) -> dict[str, Any]:
        """Run a command, shown; its JSON."""
        say(f"   $ cloudmount {shlex.join(arguments)}")
        command = [self.program, *arguments, "--json", "--quiet"]
        done = subprocess.run(command, env=self.environ, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise SystemExit(f"demo: cloudmount {arguments[0]} ended with exit code {done.returncode}")
        value: dict[str, Any] = json.loads(done.stdout or b"{}")
        return value

    def status(self) -> dict[str, Any]:
        """What is up."""
        done = subprocess.run(
            [self.program, "status", "--json"], env=self.environ, stdout=subprocess.PIPE, check=True
        )
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """The drive, while the block runs."""
        say(f"   $ cloudmount mount {self.drive} --daemon")
        command = [self.program, "mount", str(self.drive), "--daemon", "--quiet"]
        subprocess.run(command, env=self.environ, check=True)
        try:
            yield
        finally:
            subprocess.run([self.program, "umount", str(self.drive), "--quiet"], env=self.environ, check=True)

    def boot(self, disk: Path) -> tuple[list[str], float]:
        """Boot a VM from `disk`, its writes going to an overlay; its serial lines, and seconds to ready."""
        overlay, serial = self.folder / "overlay.qcow2", self.folder / "serial.log"
        backing = ["-b", str(disk), "-F", "vhdx"]
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        pflash = "if=pflash,format=raw"
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35",
            "-accel", Trial().result(), "-cpu", "max", "-smp", "2", "-m", "512",
            "-drive", f"{pflash},unit=0,readonly=on,file={CODE}",
            "-drive", f"{pflash},unit=1,snapshot=on,file={VARS}",
            "-drive", f"if=none,id=d,format=qcow2,file={overlay}",
            "-device", "virtio-blk-pci,drive=d,bootindex=0",
            "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
            "-serial", f"file:{serial}",
        ]  # fmt: skip
        say("   $ qemu-img create -f qcow2 -b drive/server/latest/server.vhdx -F vhdx overlay.qcow2")
        say("   $ qemu-system-x86_64 ... overlay.qcow2        (writes go to the overlay, reads to the drive)")
        began = time.monotonic()
        machine = subprocess.Popen(command)
        try:
            while time.monotonic() - began < BOOT_SECONDS:
                text = serial.read_text(errors="replace") if serial.exists() else ""
                if re.search(r"^GUEST-(READY|FAILED).*\n", text, re.M):
                    return re.findall(r"^(GUEST-\S+ .*?)\r?$", text, re.M), time.monotonic() - began
                if machine.poll() is not None:
                    break
                time.sleep(0.05)
            raise SystemExit(f"demo: the guest did not get ready; its serial line is in {serial}")
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(20)
            if machine.poll() is None:
                machine.kill()
                machine.wait()


def fetched(folder: Path) -> int:
    """Bytes of frames that ever came from the repository: what the empty cache holds now."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def run(demo: Demo) -> None:
    """The whole demo."""
    folder = demo.folder
    began = time.monotonic()
    step(1, "A small server: UEFI, a FAT boot partition, an NTFS one with QuickBooks data")
    raw, vhdx = folder / "server.raw", folder / "server.vhdx"
    guest = build(raw)
    _to_vhdx(raw, vhdx)
    say(f"   {vhdx}: {raw.stat().st_size // MIB} MiB of disk, {_used(vhdx) // MIB} MiB in use")

    step(2, "A repository in a folder, and a first backup")
    phrase = demo.cloudmount("init")["recovery_phrase"]
    say(f"   recovery phrase: {' '.join(phrase.split()[:3])} ... (24 words: keep them off this machine)")
    first = demo.cloudmount("backup", "--name", "server", str(vhdx))
    _tell(first)

    step(3, "A day's work in company.QBW, and a second backup")
    guest = edit(raw)
    _to_vhdx(raw, vhdx)
    second = demo.cloudmount("backup", "--name", "server", str(vhdx))
    _tell(second)

    step(4, "The building burns down: the server's disk is gone, its backup becomes a drive")
    vhdx.unlink()
    raw.unlink()
    with demo.mounted():
        (mount,) = demo.status()["mounts"]
        say(f"   driver: {DRIVERS[mount['driver']]}")
        say(f"   $ ls -l {demo.drive}/server/latest/")
        listing = subprocess.run(
            ["ls", "-l", f"{demo.drive}/server/latest/"], check=True, capture_output=True, text=True
        )
        say("".join(f"     {line}\n" for line in listing.stdout.splitlines()).rstrip("\n"))

        step(5, "The server boots from the drive, straight out of encrypted, deduplicated blocks")
        lines, seconds = demo.boot(demo.drive / "server" / "latest" / "server.vhdx")
        for line in lines:
            say(f"   serial line: {line}")
        ready = any(line.startswith("GUEST-READY") for line in lines)
        if not ready or f"GUEST-DATA {guest.qbw_sha256}" not in lines:
            raise SystemExit("demo: the guest did not find company.QBW as it was last saved")
        say("   company.QBW, read inside the guest, is the one that was last saved (SHA-256)")
    _summary(demo, second, seconds, time.monotonic() - began)


def _to_vhdx(raw: Path, vhdx: Path) -> None:
    command = [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "vhdx",
        "-o",
        "subformat=dynamic",
        str(raw),
        str(vhdx),
    ]
    subprocess.run(command, check=True)


def _used(path: Path) -> int:
    return path.stat().st_blocks * 512


def _tell(result: dict[str, Any]) -> None:
    say(
        f"   {result['source_bytes'] // MIB} MiB of disk, {result['read_bytes'] / MIB:.1f} MiB read, "
        f"{result['stored_bytes'] / MIB:.1f} MiB stored, {result['seconds']:.1f} s"
    )


def _summary(demo: Demo, backup: dict[str, Any], seconds: float, total: float) -> None:
    came = fetched(demo.folder / "cache")
    size = backup["source_bytes"]
    say(f"\nReady {seconds:.1f} s after power-on. Of {size // MIB} MiB of disk, {came / MIB:.1f} MiB were")
    say(f"ever fetched ({100 * came / size:.1f} %). The whole demo took {total:.0f} s.")
    say("\nThe repository stays. Go on by hand:")
    shown = {k: demo.environ[k] for k in ("CLOUDMOUNT_REPO", "CLOUDMOUNT_PASSPHRASE")}
    say("   export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in shown.items()))
    program = os.path.relpath(demo.program)
    for line in (
        "snapshots                       # what there is",
        "ls server/latest                # as on the drive",
        "check --read-data               # prove every byte",
        "restore server/latest ./back    # the disk as a plain VHDX",
        "mount ./drive                   # the drive, until Ctrl-C",
    ):
        say(f"   {program} {line}")


def main() -> None:
    """Run the demo in its folder; what an earlier run left there goes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).with_name("work")
    parser.add_argument("--folder", type=Path, default=default, help="where to work (default: demo/work)")
    folder: Path = parser.parse_args().folder.resolve()
    if folder.exists():
        if not (folder / MARK).exists():
            raise SystemExit(
                f"demo: {folder} exists and is not the demo's; give a folder that does not exist"
            )
        if os.path.ismount(folder / "drive"):  # a demo that was killed
            subprocess.run([Demo(folder).program, "umount", str(folder / "drive"), "--quiet"], check=False)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    try:
        run(Demo(folder))
    except GuestError as error:
        raise SystemExit(f"demo: {error}") from None
    finally:
        for name in ("server.raw", "server.vhdx", "overlay.qcow2"):
            (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
