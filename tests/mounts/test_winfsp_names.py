"""Whatever a tree's names are, the drive shows every node once, and finds it in any case."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudmount.mounts import winfsp_names
from cloudmount.mounts.winfsp_names import Found, LinkText, Names
from cloudmount.nodes import Attr, Kind, Node
from cloudmount.winnames import fold
from tests.strategies import names
from tests.trees.memory_tree import MemoryDir, MemoryFile, MemoryLink

TEXT = names().filter(
    lambda name: not any("\ud800" <= c <= "\udc7f" or "\udd00" <= c <= "\udfff" for c in name)
)
"""What `os.fsdecode` makes."""
FILES: st.SearchStrategy[Node] = st.binary(max_size=3).map(MemoryFile)
TREES = st.recursive(
    FILES,
    lambda below: st.dictionaries(TEXT, below, max_size=5).map(MemoryDir),
    max_leaves=12,
)


def _found(at: Names, path: str) -> Found:
    found = at.find(path)
    assert found is not None, path
    return found


def _check(at: Names, path: str, folder: MemoryDir) -> None:
    found = _found(at, path)
    assert found.node is folder
    listed = at.listing(found)
    assert len({fold(name) for name, _ in listed}) == len(listed) == len(folder.children)
    assert [fold(name) for name, _ in listed] == sorted(fold(name) for name, _ in listed)
    seen: list[Node] = []
    for name, attr in listed:
        below = _found(at, f"{path}\\{name}")
        assert (below.attr, below.path) == (attr, f"{found.path}\\{name}")
        assert _found(at, fold(f"{path}\\{name}")).node is below.node
        seen.append(below.node)
        if isinstance(below.node, MemoryDir):
            _check(at, f"{path}\\{name}", below.node)
    assert {id(node) for node in seen} == {id(node) for node in folder.children.values()}


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(TEXT, TREES, max_size=6).map(MemoryDir))
def test_every_node_is_shown_once_and_found(root: MemoryDir) -> None:
    _check(Names(root), "", root)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text("ab./", max_size=8), min_size=3, max_size=3), st.data())
def test_whatever_links_point_to_a_walk_ends(targets: list[str], data: st.DataObject) -> None:
    inner = MemoryDir({"a": MemoryLink(targets[0]), "b": MemoryFile(b"in")})
    root = MemoryDir({"a": inner, "b": MemoryLink(targets[1]), "ab": MemoryLink(targets[2])})
    at, paths = Names(root), [""]
    for count, path in enumerate(paths):
        assert count < 100, "round in circles"
        found = _found(at, path)
        assert found.attr.kind is not Kind.LINK
        if found.is_dir:
            paths += [f"{path}\\{name}" for name, _ in at.listing(found)]
        elif isinstance(found.node, LinkText):
            source = found.node.open()
            assert source.size == found.attr.size
            assert source.read_at(0, source.size).decode() in targets


def test_what_is_missing_is_believed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counted(MemoryDir):
        def list(self):  # type: ignore[no-untyped-def]
            asked.append(1)
            return super().list()

    now = [100.0]
    monkeypatch.setattr(winfsp_names, "time", SimpleNamespace(monotonic=lambda: now[0]))
    root = Counted({"a": MemoryFile(b"")})
    at = Names(root)
    for _ in range(5):
        assert at.find("\\desktop.ini") is None
    assert len(asked) == 1
    root.children["b"] = MemoryFile(b"b")
    assert at.find("\\A") is not None
    assert at.find("\\b") is None
    now[0] += 1.5
    assert at.find("\\b") is not None
    assert len(asked) == 2
    del root.children["b"]
    assert at.find("\\b") is None, "what went is noticed at once"
    root.children["c"] = MemoryFile(b"c")
    at.listing(_found(at, ""))
    assert at.find("\\C") is not None, "and so is what a listing brought"


def test_a_link_as_a_file_is_no_longer_executable() -> None:
    link = MemoryLink("/bin/sh")
    attr = LinkText(link).attr()
    assert attr == Attr(Kind.FILE, 7, link.mtime_ns, 0o666, link.inode, allocated=7)
