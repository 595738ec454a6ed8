"""What a machine becomes in Hyper-V: where its disks hang, what they are called, and what can't be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.boot.hyperv.literals import script
from cloudmount.boot.hyperv.machine import HypervMachine, NamedDisk, Place, safe_name, table
from cloudmount.boot.machine import MIB, Firmware, Machine
from cloudmount.errors import CloudMountError
from cloudmount.system import windows_refuses
from tests.boot.hyperv.reading import parsed, read_literal, text, walk, wrong

HOSTILE = "it's ‘$(calc)’ `n\u2028 ; [x] %TEMP% „ü“ 文"


def made(
    *disks: NamedDisk, firmware: Firmware = "bios", snapshot: str = "srv/2026-11-22T03-00-00Z", **more: Any
) -> HypervMachine:
    machine = Machine(firmware, more.pop("memory", 4096 * MIB), more.pop("cpus", 4), (), **more)
    return HypervMachine(snapshot, machine, disks, windows=True)


def disks(count: int, sector: int = 512, bootable: int = 0) -> list[NamedDisk]:
    return [NamedDisk(f"d{n}", sector, n == bootable) for n in range(count)]


def filled(it: HypervMachine, **more: Any) -> dict[str, Any]:
    return table(it, **{"via": "local", "program": "cloudmount", "version": "0", "proved_host": "", **more})


def test_a_bios_starts_from_ide_which_has_four_places() -> None:
    it = made(*disks(6))
    assert it.generation == 1
    assert it.places() == [
        Place("IDE", 0, 0), Place("IDE", 0, 1), Place("IDE", 1, 0), Place("IDE", 1, 1),
        Place("SCSI", 0, 0), Place("SCSI", 0, 1),
    ]  # fmt: skip


def test_the_disk_that_starts_a_bios_is_the_first_on_ide() -> None:
    places = made(*disks(6, bootable=5)).places()
    assert places[5] == Place("IDE", 0, 0) and places[0] == Place("IDE", 0, 1)
    assert places[3:5] == [Place("SCSI", 0, 0), Place("SCSI", 0, 1)]


def test_sectors_of_4096_bytes_hang_on_scsi_and_start_no_bios() -> None:
    data = NamedDisk("data", 4096, False)
    assert made(data, *disks(1)).places() == [Place("SCSI", 0, 0), Place("IDE", 0, 0)]
    with pytest.raises(CloudMountError, match="'d0' starts by a BIOS and has sectors of 4096 bytes"):
        made(*disks(1, sector=4096)).places()
    assert made(*disks(1, sector=4096), firmware="uefi").places() == [Place("SCSI", 0, 0)]


def test_a_uefi_has_scsi_only_and_four_controllers_of_it() -> None:
    it = made(*disks(130, bootable=7), firmware="uefi")
    assert it.generation == 2
    assert it.places()[63:66] == [Place("SCSI", 0, 63), Place("SCSI", 1, 0), Place("SCSI", 1, 1)]
    starting = [disk["Starts"] for disk in filled(it)["Disks"]]
    assert starting.index(True) == 7 and starting.count(True) == 1
    with pytest.raises(CloudMountError, match="has 257 disks; Hyper-V takes 256"):
        made(*disks(257), firmware="uefi").places()


@given(st.integers(1, 80), st.integers(0, 79), st.sets(st.integers(0, 79)), st.sampled_from(["bios", "uefi"]))
def test_each_disk_has_a_place_of_its_own(
    count: int, first: int, large: set[int], firmware: Firmware
) -> None:
    first %= count
    large = large - {first} if firmware == "bios" else large
    given = [NamedDisk(f"d{n}", 4096 if n in large else 512, n == first) for n in range(count)]
    places = made(*given, firmware=firmware).places()
    assert len(set(places)) == count
    for number, place in enumerate(places):
        if place.controller == "IDE":
            assert firmware == "bios" and place.number < 2 and place.location < 2 and number not in large
        else:
            assert place.number < 4 and place.location < 64
    if firmware == "bios":
        assert places[first] == Place("IDE", 0, 0)


@given(st.text(max_size=200))
def test_a_safe_name_is_one_that_windows_takes(name: str) -> None:
    safe = safe_name(name)
    assert windows_refuses(safe) is None and len(safe) <= 81
    assert not set(safe) & set("[]*?`$\"'/\\:") - {"'"}


@pytest.mark.parametrize(
    ("name", "safe"),
    [("srv", "srv"), ("Bob's PC", "Bob's PC"), ("NUL", "_NUL"), ("con.x", "_con.x"), ("", "_"), ("...", "_"),
     ("a[1]*?", "a_1___"), ("$x`n", "_x_n"), ("a\nb\udcff", "a_b_"), ("x" * 99, "x" * 80)],
)  # fmt: skip
def test_names_that_windows_does_not_take_are_replaced(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_what_the_machines_file_said_is_in_the_table() -> None:
    macs = ("00:15:5d:01:02:03",)
    it = made(*disks(2), firmware="uefi", secure_boot=True, memory=3 * MIB + 1, cpus=9, macs=macs)
    found = filled(it, via="drive", proved_host="HV1")
    assert (found["Generation"], found["SecureBoot"], found["SecureBootTemplate"]) == (
        2,
        True,
        "MicrosoftWindows",
    )
    assert (
        found["Memory"] == 32 * MIB and found["Processors"] == 9 and found["MacAddresses"] == ["00155d010203"]
    )
    assert (found["Via"], found["ProvedHost"]) == ("drive", "HV1")
    assert found["Disks"][1]["Drive"] == "srv\\2026-11-22T03-00-00Z\\d1.vhdx"
    assert found["Disks"][1]["Copy"] == "copies\\srv\\2026-11-22T03-00-00Z\\d1.vhdx"
    assert found["Disks"][1]["Child"] == "disks\\2-d1.vhdx"
    assert filled(made(*disks(1), memory=32 * MIB + 1))["Memory"] == 34 * MIB
    bios = filled(made(*disks(1), secure_boot=True))
    assert bios["SecureBoot"] is False and bios["Generation"] == 1


@pytest.mark.parametrize("via", ["drive", "local"])
def test_hostile_names_stay_texts_in_the_script(via: str) -> None:
    it = made(NamedDisk(f"docs/{HOSTILE}", 512, True), snapshot=f"{HOSTILE}/2026-11-22T03-00-00Z")
    found = filled(it, via=via, program=f"C:\\{HOSTILE}\\cloudmount.exe")
    data = script("boot.ps1", found)
    root = parsed(data)
    assert wrong(root) == []
    read = {read_literal(text(n))[0] for n in walk(root) if n.type == "verbatim_string_characters"}
    assert f"{HOSTILE}\\2026-11-22T03-00-00Z\\docs\\{HOSTILE}.vhdx" in read
    assert f"C:\\{HOSTILE}\\cloudmount.exe" in read
    # The command that people are told to type is one text, too, in which the name is a literal again.
    told = next(t for t in read if t.startswith("cloudmount hydrate "))
    value, rest = read_literal(told.removeprefix("cloudmount hydrate "))
    assert (value, rest) == (f"{HOSTILE}/2026-11-22T03-00-00Z", " --to")
    outside = data.decode("utf-8-sig").partition("\r\n}\r\n")[2]
    assert "calc" not in outside and outside.isascii()
