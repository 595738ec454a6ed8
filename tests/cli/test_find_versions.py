"""`find` and `versions` as their users meet them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.cli.console import PROGRAM, Console


def test_what_is_found_can_be_copied(console: Console, source: Path, tmp_path: Path) -> None:
    (source / "inner" / "Company.QBW").write_text("qbw")
    (source / os.fsdecode(b"odd \xff:\x1b[31m.qbw")).write_text("odd")
    console.run("backup", "--name", "srv", str(source))
    found = console.json("find", "srv", "*.qbw")
    assert [f["path"] for f in found] == [
        "docs/inner/Company.QBW",
        os.fsdecode(b"docs/odd \xff:\x1b[31m.qbw"),
    ]
    assert [(f["type"], f["size"]) for f in found] == [("file", 3), ("file", 3)]
    for number, match in enumerate(found):
        assert console.json("ls", f"srv:{match['path']}")[0]["mtime"] == match["mtime"]
        console.run("cp", f"srv:{match['path']}", str(tmp_path / str(number)), "--only")
    assert (tmp_path / "0").read_text() + (tmp_path / "1").read_text() == "qbwodd"
    assert [f["path"] for f in console.json("find", "srv", "*/inner/*")] == [
        "docs/inner/Company.QBW", "docs/inner/data.bin",
    ]  # fmt: skip
    assert [f["path"] for f in console.json("find", "srv:docs/inner", "D*")] == ["docs/inner/data.bin"]
    done = console.run("find", "srv", "company.qbw")
    assert done.stdout.endswith("Z  docs/inner/Company.QBW\n") and done.stderr == ""
    assert "\x1b" not in console.run("find", "srv", "*").stdout
    nothing = console.run("find", "srv", "nosuch")
    assert nothing.stdout == "" and "nothing" in nothing.stderr
    assert console.json("find", "srv", "nosuch") == []
    console.run("find", "srv", "/", code=2)
    console.run("find", "srv:none", "*", code=3)


def test_a_reader_who_saw_enough_ends_it(console: Console, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(3000):
        (many / f"a file with a rather long name, number {n}").touch()
    console.run("backup", "--name", "srv", str(many))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {PROGRAM} find srv '*' | head -n 1"],
        env=console.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert len(console.json("ls", "srv:many")) == 3000


def test_versions(console: Console, tmp_path: Path) -> None:
    file, disk = tmp_path / "plan", tmp_path / "disk.img"
    with open(disk, "wb") as image:
        image.truncate(4 << 20)
    for content in ("one", "two", "one", None, "three"):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        console.run("backup", "--name", "srv", *(str(p) for p in (file, disk) if p.exists()))
    told = console.json("versions", "srv:plan")
    assert [v["size"] for v in told] == [3, 3, 3, 5]
    first, second, third, last = (v["content"] for v in told)
    assert first == third and len({first, second, last}) == 3
    listed = {s["id"]: s for s in console.json("snapshots", "srv")}
    assert all(listed[v["snapshot"]]["time"] == v["time"] for v in told)
    lines = console.run("versions", "srv:plan").stdout.splitlines()
    assert len(lines) == 5 and lines[3].endswith(f"same as {told[0]['name']}")
    assert sum("same as" in line for line in lines) == 1
    assert len({v["content"] for v in console.json("versions", "srv:disk.vhdx")}) == 1
    assert console.json("versions", "srv:plan", "--content") == told
    console.run("cp", f"{told[0]['snapshot'][:12]}:plan", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "one"
    console.run("versions", "srv:nosuch", code=3)
    console.run("versions", "none:plan", code=3)
    console.run("versions", "srv/latest:plan", code=2)
