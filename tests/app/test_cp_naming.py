"""What TARGET means: as `cp -r` has it, but that nothing is ever replaced."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.app.browsing import Found, look_up
from cloudmount.app.companions import companions, renamed
from cloudmount.app.copyplan import plan_copy
from cloudmount.app.cp import CopyProgress, carry_out
from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError
from tests.trees.memory_tree import MemoryDir, MemoryFile

SOURCE = MemoryDir(
    {
        "file": MemoryFile(b"new"),
        "folder": MemoryDir({"file": MemoryFile(b"inner"), "deep": MemoryDir({"x": MemoryFile(b"x")})}),
    }
)
NAMES = ["file", "folder", "new", "t"]
Tree = dict[str, "str | Tree"]

trees: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(
        st.sampled_from([*NAMES, "deep", "x"]), st.sampled_from(["old", "->t", "->nowhere"]), max_size=3
    ),
    lambda inner: st.dictionaries(
        st.sampled_from([*NAMES, "deep", "x"]),
        inner | st.sampled_from(["old", "->t", "->nowhere"]),
        max_size=3,
    ),
    max_leaves=6,
)


def plant(tree: Tree, at: Path) -> None:
    """Make a tree: files, links (`->`) and folders."""
    at.mkdir()
    for name, what in tree.items():
        if isinstance(what, dict):
            plant(what, at / name)
        elif what.startswith("->"):
            (at / name).symlink_to(what[2:])
        else:
            (at / name).write_text(what)


def seen(at: Path) -> dict[str, str]:
    """What lies below a folder."""
    found = {}
    for path in at.rglob("*"):
        below = str(path.relative_to(at))
        found[below] = (
            f"->{os.readlink(path)}" if path.is_symlink() else "dir" if path.is_dir() else path.read_text()
        )
    return found


def copy(path: str, target: str) -> None:
    """Ours."""
    found = look_up(SOURCE, path)
    assert isinstance(found, Found)
    skipped = carry_out(
        plan_copy([], found, Path(target), slash=target.endswith("/")), CopyProgress(), lambda: None
    )
    assert not skipped


@given(
    tree=trees,
    path=st.sampled_from(["file", "folder"]),
    parts=st.lists(st.sampled_from(NAMES), max_size=3),
    slash=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_as_cp_r(tree: Tree, path: str, parts: list[str], slash: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        plant({"file": "new", "folder": {"file": "inner", "deep": {"x": "x"}}}, here / "source")
        plant(tree, here / "ours")
        plant(tree, here / "theirs")
        tail = "/".join(parts) + ("/" if slash and parts else "")
        done = subprocess.run(
            ["cp", "-r", here / "source" / path, f"{here}/theirs/{tail}"], capture_output=True, check=False
        )
        before, theirs = seen(here / "ours"), seen(here / "theirs")
        replaced = any(theirs.get(name) != what for name, what in before.items())
        try:
            copy(path, f"{here}/ours/{tail}")
        except CloudMountError:
            assert seen(here / "ours") == before
            assert done.returncode or replaced
        else:
            assert done.returncode == 0 and not replaced
            assert seen(here / "ours") == theirs


def test_what_is_said_when_a_target_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    for target, kind, said in (
        ("there", TargetExistsError, "not overwritten"),
        ("none/", NotFoundError, "make it first"),
        ("none/x", NotFoundError, "none is not a folder"),
    ):
        with pytest.raises(kind, match=said):
            copy("file", f"{tmp_path}/{target}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(TargetExistsError, match="folder/file exists"):
        copy("folder", str(tmp_path))
    assert seen(tmp_path) == {"there": "x", "folder": "dir", "folder/file": "mine"}


@pytest.mark.parametrize(
    ("name", "beside", "others"),
    [
        (
            "Company.QBW",
            ["company.qbw.tlg", "COMPANY.ND", "Company.QBW.DSN"],
            ["company.qbb", "Company2.QBW.TLG"],
        ),
        ("a.sqlite3", ["a.sqlite3-wal", "a.sqlite3-journal"], ["a.sqlite3-shm", "b.sqlite3-wal"]),
        ("Books.mdf", ["books_log.LDF"], ["books2_log.ldf"]),
        ("we[ir]d*.qbw", ["we[ir]d*.tlg"], ["weid.tlg", "weirdly.tlg"]),
        ("plan.docx", [], ["plan.docx.tlg", "plan.tlg"]),
    ],
)
def test_companions(name: str, beside: list[str], others: list[str]) -> None:
    what, found = companions(name, [name, *beside, *others])
    assert found == beside and bool(what) == bool(beside)


def test_companions_get_the_new_name_too() -> None:
    assert renamed("company.qbw.TLG", "Company.QBW", "old.qbw") == "old.qbw.TLG"
    assert renamed("COMPANY.tlg", "Company.QBW", "old.qbw") == "old.tlg"
    assert renamed("company.tlg", "Company.QBW", "old") == "old.tlg"
    assert renamed("COMPANY.TLG", "Company.QBW", "Company.QBW") == "COMPANY.TLG"
