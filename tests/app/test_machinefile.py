"""The file that tells what a machine is beside its disks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloudmount.app.machinefile import Hardware, hardware_of, is_called, read_machine_file
from cloudmount.errors import CloudMountError, UnreadableInputError

NVRAM = bytes(40) + b"_FVH" + b"\xff" * 10_000
WHOLE = """\
firmware = "uefi"
secure_boot = true
memory = "8GiB"
cpus = 4
clock = "local"
ready = "^up$"
nvram = "vars.fd"

[[disks]]
name = "system"
bus = "sata"
[[disks]]
name = "vms/data"

[[nics]]
mac = "00:15:5D:01:02:03"
"""


def written(folder: Path, text: str) -> str:
    """A file that says so."""
    (folder / "vars.fd").write_bytes(NVRAM)
    (folder / "machine.toml").write_text(text)
    return str(folder / "machine.toml")


def test_all_of_it_is_kept(tmp_path: Path) -> None:
    found = read_machine_file(written(tmp_path, WHOLE))
    assert found == Hardware(
        "uefi", True, 8 << 30, 4, "local", "^up$",
        (("system", "sata"), ("vms/data", None)), ("00:15:5d:01:02:03",), NVRAM,
    )  # fmt: skip
    kept = json.loads(json.dumps(found.kept()))
    assert hardware_of({"hardware": kept}) == found and len(kept["nvram"]) < 200


def test_everything_may_be_left_out(tmp_path: Path) -> None:
    assert read_machine_file(written(tmp_path, "# nothing\n")) == Hardware() == hardware_of({})
    assert Hardware().kept() == {}


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("cpus = 4\nfirmware = \n", 2, "TOML"),
        ('cpus = 4\nfirmware = "efi"\n', 2, "'bios', 'uefi'"),
        ("\n\ncolour = 1\n", 3, "'colour' is not known"),
        ("memory = 5", 1, "8GiB"),
        ('cpus = 1\nmemory = "lots"', 2, "not a size"),
        ("memory = true", 1, "no size"),
        ("cpus = 0", 1, "1 to 255"),
        ('cpus = "2"', 1, "1 to 255"),
        ("secure_boot = 1", 1, "true or false"),
        ('firmware = "bios"\nsecure_boot = true', 2, "BIOS"),
        ('ready = "("', 1, "regular expression"),
        ("ready = 1", 1, "regular expression"),
        ('nvram = "none.fd"', 1, "No such file"),
        ('nvram = "machine.toml"', 1, "no firmware volume"),
        ('[[disks]]\nname = "a"\n[[disks]]\nbus = "ide"', 3, "has a name"),
        ('[[disks]]\nname = "a"\n\n[[disks]]\nname = "b"\nbus = "scsi"', 6, "one of 'ide'"),
        ('[[disks]]\nname = "a"\n[[disks]]\nname = "a"', 4, "twice"),
        ('[[disks]]\nname = "a"\nsize = 1', 3, "'size' is not known"),
        ("disks = 1", 1, "[[disks]]"),
        ('cpus = 1\n[[nics]]\nmac = "01:00:00:00:00:00"', 3, "00:15:5d"),
        ("[[nics]]\nmac = 7", 2, "00:15:5d"),
        ("[firmware]\nx = 1", 1, "'bios', 'uefi'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, line: int, why: str) -> None:
    with pytest.raises(UnreadableInputError) as raised:
        read_machine_file(written(tmp_path, text))
    told = str(raised.value)
    assert why in told and f"line {line}" in told and "machine.toml" in told


def test_what_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "machine.toml").write_bytes(b"\xff\xfe")
    for name in ("machine.toml", "none.toml", "."):
        with pytest.raises(UnreadableInputError, match=r"can.t be read|not TOML"):
            read_machine_file(str(tmp_path / name))


@pytest.mark.parametrize("hardware", [{"firmware": "open"}, {"nvram": "!"}, {"disks": 1}, {"new": 1}])
def test_a_newer_programs_words(hardware: dict[str, object]) -> None:
    with pytest.raises(CloudMountError, match=r"machine\.json"):
        hardware_of({"hardware": hardware})


def test_disks_by_their_names() -> None:
    assert is_called("a/srv", "a/srv") and is_called("srv", "srv.vhdx")
    assert not is_called("srv", "srv2") and not is_called("srv", "a/srv")
