"""What a Hyper-V host's preflight says, and files that are none."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.app.hypervpreflight import (
    NEEDED,
    REPORTS,
    STEPS,
    keep,
    kept_result,
    read_result,
    result_file,
    write_script,
)
from cloudmount.boot.hyperv.literals import fixed_text
from cloudmount.errors import TargetExistsError, UnreadableInputError
from tests.boot.hyperv.reading import calls, parsed, text, walk, wrong


def step(name: str, ok: bool | None = True, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "tried": True,
        "ok": ok,
        "seconds": 1.5 if ok is not None else None,
        "error": None,
        **more,
    }


def result_json(**changes: Any) -> dict[str, Any]:
    """A result as `preflight.ps1` writes it: all went well."""
    made = {
        "format": "cloudmount-hyperv-preflight",
        "version": 1,
        "program": "0.1.0",
        "host": "HV1",
        "time": "2026-11-22T03:00:00Z",
        "windows": {"caption": "Microsoft Windows 11 Pro", "build": "10.0.26100", "sku": 48},
        "administrator": True,
        "whpx": False,
        "vhdx": "X:\\srv\\latest\\disk.vhdx",
        "work": "C:\\t\\hyperv-preflight-0a1b2c3d",
        "finished": True,
        "left": [],
        "steps": [step(name) for name in STEPS],
    }
    return {**made, **changes}


def steps(**outcomes: Any) -> list[dict[str, Any]]:
    """All well but for these (`test_vhd` is test-vhd)."""
    given = {name.replace("_", "-"): ok for name, ok in outcomes.items()}
    return [step(name, given.get(name, True)) for name in STEPS]


def written(folder: Path, value: Any, encoding: str = "utf-8") -> Path:
    path = folder / "result.json"
    path.write_bytes(json.dumps(value).encode(encoding))
    return path


def test_all_went_well(tmp_path: Path) -> None:
    result = read_result(written(tmp_path, result_json()))
    assert result.ok and result.via == "drive" and result.crashed_at is None
    assert any("can start from the drive on HV1" in f for f in result.findings())


@pytest.mark.parametrize("name", STEPS)
def test_what_must_have_gone_well_for_a_start_from_the_drive(tmp_path: Path, name: str) -> None:
    bad = [step(n, n != name, error="0x80070057") if n == name else step(n) for n in STEPS]
    result = read_result(written(tmp_path, result_json(steps=bad)))
    assert result.via == ("local" if name in NEEDED else "drive")
    assert f"{name} failed: 0x80070057" in result.findings()
    missing = read_result(written(tmp_path, result_json(steps=[step(n) for n in STEPS if n != name])))
    assert missing.via == result.via


def test_a_step_that_never_ended_is_a_crash(tmp_path: Path) -> None:
    until = [step(n) for n in STEPS[:5]] + [step("new-vhd", None)]
    result = read_result(written(tmp_path, result_json(steps=until, finished=False)))
    assert result.crashed_at == "new-vhd" and result.via == "local"
    told = next(f for f in result.findings() if "crashed" in f)
    assert "new-vhd" in told and all(report in told for report in REPORTS)
    between = read_result(written(tmp_path, result_json(finished=False)))
    assert between.via == "local" and any("between two steps" in f for f in between.findings())
    # Also where a later run went well by its flag.
    flagged = read_result(written(tmp_path, result_json(steps=steps(mount_vhd=None))))
    assert flagged.via == "local"


@pytest.mark.parametrize(
    ("sku", "home"), [(101, True), (98, True), (99, True), (100, True), (48, False), (7, False)]
)
def test_windows_home_is_offered_qemu(tmp_path: Path, sku: int, home: bool) -> None:
    value = result_json(
        windows={"caption": "Windows", "build": "10.0", "sku": sku},
        steps=[step("windows"), step("hyper-v", False), step("drive"), step("new-vhd", None, tried=False)],
    )
    result = read_result(written(tmp_path, value))
    assert not result.ok and result.via == "local" and result.crashed_at is None
    assert any("WHPX" in f for f in result.findings()) is home
    assert any("turn on the Windows feature 'Hyper-V'" in f for f in result.findings()) is not home


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(result_json(host="Büro-PC")).encode(),
        codecs.BOM_UTF8 + json.dumps(result_json(host="Büro-PC"), ensure_ascii=False).encode(),
        codecs.BOM_UTF16_LE + json.dumps(result_json(host="Büro-PC"), ensure_ascii=False).encode("utf-16-le"),
        codecs.BOM_UTF16_BE + json.dumps(result_json(host="Büro-PC"), ensure_ascii=False).encode("utf-16-be"),
        codecs.BOM_UTF16_LE + (json.dumps(result_json(host="Büro-PC")) + "\r\n").encode("utf-16-le"),
    ],
)
def test_it_is_read_as_powershell_writes_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert read_result(tmp_path / "x").host == "Büro-PC"


@pytest.mark.parametrize(
    "value",
    [
        [], {}, "text", None, 1, {"format": "other"}, {"format": "cloudmount-hyperv-preflight"},
        result_json(version=2), result_json(version=True), result_json(version="1"), result_json(host=""),
        result_json(host=None), result_json(host=["HV1"]), result_json(steps={}), result_json(steps=["x"]),
        result_json(steps=[{}]), result_json(steps=[step("format-disk")]), result_json(windows=[]),
        result_json(steps=[step("drive"), step("drive")]), result_json(finished="yes"),
        result_json(whpx="no"), result_json(administrator=None), result_json(left="x"),
        result_json(windows={"caption": "W", "sku": "48"}),
        result_json(steps=[step("drive", seconds=-1)]), result_json(steps=[step("drive", seconds=1e300)]),
        result_json(steps=[step("drive", seconds=True)]), result_json(steps=[step("drive", tried=False)]),
        result_json(steps=[step("drive", ok="yes")]), result_json(time=5),
    ],
)  # fmt: skip
def test_what_is_no_result_is_told(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UnreadableInputError, match=r"is no result of preflight\.ps1: "):
        read_result(written(tmp_path, value))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"{", b"[" * 200_000, b"\xff\xfe{\0", b'{"format": NaN}',
     b'{"a": ' + b"9" * 9000 + b"}", b'{"seconds": 1e999}', "{}".encode("utf-16-le"), b"\xff" * 50],
)  # fmt: skip
def test_what_is_no_json_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UnreadableInputError, match=r"is no result of preflight\.ps1: "):
        read_result(tmp_path / "x")


def test_what_can_not_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInputError, match="can't be read: No such file"):
        read_result(tmp_path / "missing")
    with pytest.raises(UnreadableInputError, match="can't be read"):
        read_result(tmp_path)
    (tmp_path / "x").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UnreadableInputError, match="longer than any"):
        read_result(tmp_path / "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(result_json())), JSON)
def test_any_field_may_hold_anything(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(result_json(**{name: value})))
    try:
        result = read_result(path)
    except UnreadableInputError:
        return
    json.dumps(result.kept())
    assert all(finding.encode() for finding in result.findings())


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert kept_result(environ) is None
    result = read_result(written(tmp_path, result_json(left=["a VM \ud83d"], steps=steps(test_vhd=False))))
    assert (
        keep(result, environ) == result_file(environ) == tmp_path / "state/cloudmount/hyperv-preflight.json"
    )
    assert kept_result(environ) == result
    assert result_file(environ).stat().st_mode & 0o777 == 0o600
    keep(read_result(written(tmp_path, result_json(host="HV2"))), environ)
    kept = kept_result(environ)
    assert kept is not None and kept.host == "HV2"
    assert [p.name for p in result_file(environ).parent.iterdir()] == [result_file(environ).name]


def test_the_script_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    path = write_script(tmp_path / "new" / "folder")
    assert wrong(parsed(path.read_bytes())) == [] and path.read_bytes().startswith(codecs.BOM_UTF8)
    assert write_script(path.parent) == path
    path.write_text("mine")
    with pytest.raises(TargetExistsError, match="is another"):
        write_script(path.parent)
    assert path.read_text() == "mine"
    with pytest.raises(TargetExistsError, match="can't be written"):
        write_script(path)


def test_script_and_reader_know_the_same_steps() -> None:
    root = parsed(fixed_text("preflight.ps1").encode())
    literals = [text(n)[1:-1] for n in walk(root) if n.type == "verbatim_string_characters"]
    assert [t for t in literals if t in STEPS and literals.count(t) >= 1][:1] == ["windows"]
    assert set(STEPS) <= set(literals)
    assert sum(call.name == "Invoke-Step" for call in calls(root)) == len(STEPS)
    # What it makes it takes away, whatever happens.
    (last,) = [n for n in walk(root) if n.type == "finally_clause" and "Remove-Traces" in text(n)]
    assert "Save-Report" in text(last) and "Get-Json" in text(last)
    for name in result_json():
        assert f"    {name} = " in fixed_text("preflight.ps1")
