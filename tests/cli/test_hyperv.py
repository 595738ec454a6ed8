"""`hyperv boot` and `hyperv preflight`, as a user runs them on another system than Windows."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from tests.app.test_hypervpreflight import result_json, step
from tests.boot.hyperv.reading import parsed, wrong
from tests.cli.console import Console
from tests.disks.partition_writer import ESP, write_gpt


def test_a_folder_for_the_host_and_a_preflight_there_and_back(console: Console, tmp_path: Path) -> None:
    disk = write_gpt(tmp_path / "it's $x.img", 4 << 20, [(ESP, 2048, 4095, "EFI")])
    console.run("backup", "--name", "Bob‘s srv", str(disk))
    made = console.json("hyperv", "boot", "Bob‘s srv", "--output", str(tmp_path / "vm"))
    assert {"folder", "script", "via"} <= made.keys()
    assert (made["folder"], made["via"], made["ran"]) == (str(tmp_path / "vm"), "local", False)
    assert made["script"] == str(tmp_path / "vm" / "boot.ps1")
    data = Path(made["script"]).read_bytes()
    assert wrong(parsed(data)) == [] and "'Bob‘‘s srv ".encode() in data

    written = console.json("hyperv", "preflight", "--output", str(tmp_path / "host"))
    assert Path(written["script"]).parent == Path(written["folder"]) == tmp_path / "host"
    file = tmp_path / "back.json"
    file.write_bytes(codecs.BOM_UTF16_LE + json.dumps(result_json()).encode("utf-16-le"))
    read = console.json("hyperv", "preflight", "--read", str(file))
    assert {"ok", "via", "findings", "host", "steps", "kept"} <= read.keys()
    assert read["ok"] is True and read["via"] == "drive" and Path(read["kept"]).exists()

    told = console.run("hyperv", "boot", "Bob‘s srv").stdout
    assert "--via drive (the preflight on HV1" in told and "Not run on Windows" in told
    assert "winfsp/winfsp/issues/651" in told and "WinFsp-MemFs-Extended/issues/18" in told
    assert (console.home / "state/cloudmount/hyperv").is_dir()

    bad = [step("windows"), step("hyper-v", False, error="it is \x1b[31mnot\nthere")]
    file.write_text(json.dumps(result_json(steps=bad)))
    told = console.run("hyperv", "preflight", "--read", str(file)).stdout
    assert "FAILED" in told and "\x1b" not in told
    file.write_text("{}")
    assert "is no result" in console.run("hyperv", "preflight", "--read", str(file), code=7).stderr
