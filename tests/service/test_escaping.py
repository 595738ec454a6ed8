"""What stands in unit files, unit names and fstab, as systemd and mount themselves read it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.app.service import _credential_file, program
from cloudmount.errors import UsageError
from cloudmount.service.escaping import fstab_field, quoted, required_path, told, unit_stem
from cloudmount.service.fstab import line_for, name_of
from cloudmount.service.unit import UnitPlan, unit_text
from tests.service.systemd import parsed_by_systemd

HOSTILE = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r\x01\x1b\x7f\"'\\%$;#{}@*?~-.:_ü日"),
        st.characters(exclude_categories=("Cs",), exclude_characters="\0/"),
    ),
    min_size=1,
    max_size=20,
)
PATHS = st.lists(HOSTILE.filter(lambda n: n not in (".", "..")), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


@settings(max_examples=15)
@given(st.lists(PATHS, min_size=20, max_size=40))
def test_units_are_named_as_systemd_names_them(paths: list[str]) -> None:
    short = [p for p in paths if len(os.fsencode(p)) < 50]
    done = subprocess.run(
        ["systemd-escape", "--path", "--", "/", *short], capture_output=True, check=True, timeout=60
    )
    stems = [unit_stem(path).removeprefix("cloudmount-") for path in ("/", *short)]
    assert done.stdout.decode().split() == stems


def test_names_of_bytes_that_are_no_text_and_of_too_many() -> None:
    assert (
        unit_stem("/mnt/\udcff.x/.y") == "cloudmount-mnt-\\xff.x-.y"
        and unit_stem("/.a") == "cloudmount-\\x2ea"
    )
    with pytest.raises(UsageError):
        unit_stem("/" + "a" * 250)


@given(st.lists(HOSTILE, min_size=60, max_size=60), st.lists(PATHS, min_size=10, max_size=10))
@settings(max_examples=4, deadline=None)
def test_systemd_reads_what_was_meant(words: list[str], needs: list[str]) -> None:
    """Its own parser: every word of the command line, every folder, and a description of one line."""
    mountpoint = "/mnt/" + words[0]
    plan = UnitPlan(mountpoint, program(), words, needs, "/etc/credstore.encrypted/cloudmount-x", True)
    seen = parsed_by_systemd(unit_text(plan))
    start = [*program(), "service", "run", "--credentials", "${CREDENTIALS_DIRECTORY}/cloudmount", "--"]
    assert [w.replace("$$", "$") for w in seen.command] == [*start, *words, mountpoint]
    written = {os.path.normpath(p) for p in needs if required_path(p) is not None}
    assert written <= set(seen.required)
    assert seen.description.startswith("CloudMount drive at /mnt/")


@given(st.text(max_size=30))
def test_nothing_breaks_out_of_a_line(text: str) -> None:
    for line in (quoted(text), told(text), fstab_field(text)):
        assert not re.search("[\x00-\x1f\x7f]", line)
    assert not re.sub("%%", "", quoted(text)).count("%") and not re.sub("%%", "", told(text)).count("%")
    assert quoted("\udcff") == '"\\xff"'


@given(PATHS, PATHS)
def test_fstab_reads_what_was_meant(path: str, mountpoint: str) -> None:
    """As mount(8) does: fields by blanks, `\\ooo` is a byte."""
    try:
        name = unit_stem(path)
    except UsageError:
        return
    fields = line_for(name, mountpoint).split(" ")
    assert len(fields) == 6 and fields[2] == "fuse.cloudmount" and not fields[0].startswith("#")
    back = [re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), f.encode()) for f in fields]
    assert name_of(os.fsdecode(back[0])) == name and os.fsdecode(back[1]) == mountpoint


@pytest.mark.parametrize("spec", ["", "cloudmount#", "x", "cloudmount#../etc/passwd"])
def test_what_is_no_drive_of_fstab(spec: str) -> None:
    with pytest.raises(UsageError):
        name_of(spec)


@given(PATHS)
def test_a_credential_lies_where_a_unit_can_name_it(path: str) -> None:
    try:
        below = _credential_file(unit_stem(path), encrypted=True)
    except UsageError:
        return
    assert re.fullmatch("etc/credstore.encrypted/cloudmount-[A-Za-z0-9._-]+", below)


@pytest.mark.parametrize("encrypted", [True, False])
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, encrypted: bool) -> None:
    """`verify` has no word to say; `security` says what is reached without mounts of its own."""
    plan = UnitPlan(
        "/mnt/a b", program(), ["--allow-other", "--hydrate-to=/x %y"], ["/mnt", "/x %y"], "/etc/c", encrypted
    )
    unit = tmp_path / "cloudmount-x.service"
    unit.write_text(unit_text(plan))
    unit.chmod(0o644)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and "cloudmount" not in done.stderr, done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=45", unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]
    for kept in (
        "ProtectSystem",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectHome",
        "PrivateMounts",
        "MountFlags",
    ):
        assert f"\n{kept}=" not in unit.read_text()  # each would hide the drive from everybody else
