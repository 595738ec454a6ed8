"""The folder and script of a Hyper-V VM, and in which order a host (here a double) gets script and copies."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudmount.app import hyperv
from cloudmount.app.hyperv import Asked, Made, choose, hyperv_boot
from cloudmount.app.hypervpreflight import keep, read_result
from cloudmount.app.select import select
from cloudmount.boot.hyperv import powershell
from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError, UsageError
from tests.app.test_hypervpreflight import result_json
from tests.backup.lab import Lab
from tests.boot.hyperv.reading import parsed, read_literal, text, walk, wrong
from tests.disks.partition_writer import ESP, write_gpt
from tests.tree.drives import MIB, raw_disk

HOSTILE = "it's ‘$(calc)’ `n „ü“ 文"


class Host:
    """A Hyper-V host's PowerShell: what it was asked to run, and how many copies were complete then."""

    def __init__(self, fails_at: str = "") -> None:
        self.ran: list[tuple[str, int]] = []
        self.fails_at = fails_at

    def __call__(self, script: Path, arguments: Sequence[str]) -> str:
        """Run a script."""
        assert wrong(parsed(script.read_bytes())) == []
        copies = [p for p in (script.parent / "copies").rglob("*.vhdx") if p.stat().st_mode & 0o777 == 0o444]
        self.ran.append((" ".join(arguments), len(copies)))
        if self.fails_at and self.fails_at in arguments:
            raise CloudMountError("boot.ps1: no drive here has it (PowerShell ended with 1)")
        return "srv is on"


class Desk:
    """A repository with a machine, and an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Lab(folder)
        self.environ = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
        self.said: list[str] = []

    def boot(self, name: str = "srv", asked: Asked = "auto", output: str | None = "vm", **more: Any) -> Made:
        """`hyperv boot`."""
        repository = self.lab.reopened()
        more = {"runner": None, **more}
        return hyperv_boot(
            repository,
            select(repository, name),
            asked,
            self.folder / output if output is not None else None,
            say=self.said.append,
            tell=self.said.append,
            environ=self.environ | more.pop("environ", {}),
            **more,
        )

    def prove(self, **changes: Any) -> None:
        """Keep a preflight."""
        file = self.folder / "result.json"
        file.write_text(json.dumps(result_json(**changes)))
        keep(read_result(file), self.environ)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    write_gpt(tmp_path / "system.img", 8 * MIB, [(ESP, 2048, 8191, "EFI")])
    raw_disk(tmp_path / "data.img", 4 * MIB)
    hardware = {"disks": [{"name": "system"}], "memory": 2 << 30, "cpus": 2, "secure_boot": True}
    made.lab.backup(tmp_path / "data.img", tmp_path / "system.img", hardware=hardware)
    return made


def texts(script: Path) -> list[str]:
    """The literals of a script, in its order."""
    root = parsed(script.read_bytes())
    assert wrong(root) == []
    return [read_literal(text(n))[0] for n in walk(root) if n.type == "verbatim_string_characters"]


def test_elsewhere_folder_and_script_are_all_there_is(desk: Desk) -> None:
    made = desk.boot()
    assert (made.way.via, made.ran, made.folder) == ("local", False, desk.folder / "vm")
    assert "no preflight" in made.way.why
    assert sorted(p.name for p in made.folder.iterdir()) == ["boot.ps1", "hyperv.json"]
    found = texts(made.script)
    snapshot = made.vm.removeprefix("srv ")
    # The machine's file puts the system first.
    assert [t for t in found if t.startswith("copies\\")] == [
        f"copies\\srv\\{snapshot}\\system.vhdx", f"copies\\srv\\{snapshot}\\data.vhdx"
    ]  # fmt: skip
    assert {"2147483648", "cloudmount", "MicrosoftUEFICertificateAuthority", made.vm} <= set(found)


def test_secure_boot_means_uefi_whatever_the_disks_look_like(desk: Desk) -> None:
    desk.lab.backup(desk.folder / "data.img", machine="plain", hardware={"secure_boot": True})
    desk.lab.backup(desk.folder / "data.img", machine="bios", hardware={"firmware": "bios"})
    for machine, generation in (("plain", "2"), ("bios", "1")):
        script = desk.boot(machine, output=machine).script.read_text("utf-8-sig")
        assert f"Generation = ([int64] '{generation}')" in script
        assert f"SecureBoot = ${str(machine == 'plain').lower()}" in script


def test_left_out_the_folder_is_one_of_ours_and_twice_it_is_the_same(desk: Desk) -> None:
    made = desk.boot(output=None)
    assert made.folder == desk.folder / "state/cloudmount/hyperv" / made.vm
    before = made.script.read_bytes()
    assert desk.boot(output=None).script.read_bytes() == before


def test_the_copies_come_first_with_local(desk: Desk) -> None:
    host = Host()
    made = desk.boot(runner=host)
    assert host.ran == [("-Action Start -Verified", 2)]
    assert made.ran and made.way.via == "local" and "srv is on" in desk.said


def test_the_vm_comes_first_from_the_drive(desk: Desk) -> None:
    host = Host()
    made = desk.boot(asked="drive", runner=host)
    assert made.way.via == "drive"
    assert host.ran == [("-Action Start", 0), ("-Action GoLocal -Verified", 2)]
    # Again: the way is kept, and what is there already costs nothing.
    again = desk.boot(runner=host)
    assert again.way.via == "drive"
    assert host.ran[2:] == [("-Action Start", 2), ("-Action GoLocal -Verified", 2)]


def test_a_host_that_says_no_is_told_and_can_be_tried_again(desk: Desk) -> None:
    with pytest.raises(CloudMountError, match="no drive here has it"):
        desk.boot(asked="drive", runner=Host("Start"))
    assert not (desk.folder / "vm" / "copies").exists()
    with pytest.raises(CloudMountError, match="no drive here"):
        desk.boot(asked="drive", runner=Host("GoLocal"))
    host = Host()
    desk.boot(asked="drive", runner=host)
    assert host.ran == [("-Action Start", 2), ("-Action GoLocal -Verified", 2)]


def test_a_second_process_is_refused(desk: Desk) -> None:
    class Twice(Host):
        def __call__(self, script: Path, arguments: Sequence[str]) -> str:
            with pytest.raises(TargetExistsError, match="another process"):
                desk.boot(asked="drive", runner=Host())
            return super().__call__(script, arguments)

    desk.boot(asked="drive", runner=Twice())


def test_auto_takes_the_drive_where_the_host_has_proved_it(desk: Desk) -> None:
    desk.prove()
    made = desk.boot(output="elsewhere")
    assert made.way.via == "drive" and "HV1" in made.way.why
    assert "HV1" in texts(made.script)  # the script starts from the drive on that computer only
    there = desk.boot(output="there", runner=Host(), environ={"COMPUTERNAME": "hv1"})
    assert there.way.via == "drive"
    other = desk.boot(output="other", runner=Host(), environ={"COMPUTERNAME": "HV2"})
    assert other.way.via == "local" and "this is HV2" in other.way.why
    asked = desk.boot(output="asked", asked="drive")
    assert "HV1" not in texts(asked.script)


def test_auto_without_a_proof_is_local(desk: Desk) -> None:
    desk.prove(finished=False)
    assert "has not proved" in desk.boot().way.why
    file = desk.folder / "state/cloudmount/hyperv-preflight.json"
    file.write_text("spoiled")
    way = choose("auto", here=None, tell=desk.said.append, environ=desk.environ)
    assert way.via == "local" and any("is not used" in line for line in desk.said)


def test_what_is_in_the_way_is_left_alone(desk: Desk) -> None:
    (desk.folder / "full").mkdir()
    (desk.folder / "full" / "note").write_text("mine")
    with pytest.raises(TargetExistsError, match="not empty"):
        desk.boot(output="full")
    with pytest.raises(TargetExistsError, match="can't be written"):
        desk.boot(output="data.img")
    made = desk.boot(asked="local")
    with pytest.raises(TargetExistsError, match="made with --via local"):
        desk.boot(asked="drive")
    desk.lab.backup(desk.folder / "data.img", machine="other")
    with pytest.raises(TargetExistsError, match="another VM"):
        desk.boot("other")
    (made.folder / "hyperv.json").write_text('{"via": ["drive"]}')
    with pytest.raises(TargetExistsError, match="damaged"):
        desk.boot()
    assert [p.name for p in (desk.folder / "full").iterdir()] == ["note"]


def test_hostile_names_go_all_the_way(desk: Desk) -> None:
    raw_disk(desk.folder / f"{HOSTILE}.img", 4 * MIB)
    desk.lab.backup(desk.folder / f"{HOSTILE}.img", machine=HOSTILE)
    host = Host()
    made = desk.boot(HOSTILE, output=f"vm {HOSTILE}", runner=host)
    assert host.ran == [("-Action Start -Verified", 1)]
    (copy,) = [t for t in texts(made.script) if t.startswith("copies\\")]
    assert (made.folder / copy.replace("\\", os.sep)).exists()
    assert copy.endswith(f"\\{HOSTILE}.vhdx")


@pytest.mark.parametrize(
    ("machine", "disk", "why"),
    [
        ("srv", "a?b", "can't hold this name"),
        ("nul", "a", "can't hold this name"),
        ("srv", "bytes \udcff", "can't hold this name"),
        ("srv", "line\nfeed", "can't hold this name"),
    ],
)
def test_names_that_windows_can_not_hold_are_one_clear_error(
    desk: Desk, machine: str, disk: str, why: str
) -> None:
    raw_disk(desk.folder / f"{disk}.img", 4 * MIB)
    desk.lab.backup(desk.folder / f"{disk}.img", machine=machine)
    with pytest.raises(TargetExistsError, match=why):
        desk.boot(machine)
    assert not (desk.folder / "vm").exists()


def test_names_that_differ_in_case_only_are_one_on_windows(desk: Desk) -> None:
    raw_disk(desk.folder / "DATA.img", 4 * MIB)
    desk.lab.backup(desk.folder / "DATA.img", desk.folder / "data.img", machine="two")
    with pytest.raises(TargetExistsError, match="one name on Windows"):
        desk.boot("two")


def test_what_is_no_machine(desk: Desk) -> None:
    with pytest.raises(UsageError, match="whole snapshots"):
        desk.boot("srv:data")
    (desk.folder / "note.txt").write_text("a note")
    desk.lab.backup(desk.folder / "note.txt", machine="files")
    with pytest.raises(NotFoundError, match="has no disks"):
        desk.boot("files")


def test_powershell_is_started_by_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert powershell.runner({}) is None
    double = tmp_path / "powershell"
    double.write_text(
        '#!/bin/sh\nfor a; do echo "$a"; done\n[ "$8" != bad ] || { echo "boot.ps1: no" >&2; exit 1; }\n'
    )
    double.chmod(0o755)
    script = tmp_path / f"{HOSTILE}.ps1"
    said = powershell.run([str(double)], script, ["-Action", "Start"])
    assert said.split("\n") == [
        "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", str(script),
        "-Action", "Start",
    ]  # fmt: skip
    with pytest.raises(CloudMountError, match=r"^boot.ps1: no \(PowerShell ended with 1\)$"):
        powershell.run([str(double)], script, ["-Action", "bad"])
    with pytest.raises(CloudMountError, match="can't be started"):
        powershell.run([str(tmp_path / "missing")], script, [])
    monkeypatch.setattr(powershell.system, "WINDOWS", True)
    assert powershell.runner({"SystemRoot": "C:\\W"}) is not None
    assert hyperv._program(None) == "cloudmount"
