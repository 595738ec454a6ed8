"""What the kernel remembers, and how little of it is kept here."""

from __future__ import annotations

import errno

import pytest

from cloudmount.errors import CloudMountError
from cloudmount.mounts.inodes import ROOT, Gone, Inodes
from cloudmount.nodes import Node
from tests.trees.memory_tree import MemoryDir, MemoryFile


def _tell(inodes: Inodes, parent: int, name: str, node: Node) -> int:
    return inodes.remember(parent, name.encode(), node, node.attr())


def test_forgotten_as_often_as_told() -> None:
    file = MemoryFile(b"x", inode=41)
    inodes = Inodes(MemoryDir({"f": file}))
    for _ in range(3):
        assert _tell(inodes, ROOT, "f", file) == 41
    inodes.forget(41, 2)
    assert inodes.node(41) is file
    inodes.forget(41, 1)
    assert len(inodes) == 0
    with pytest.raises(Gone) as caught:
        inodes.node(41)
    assert caught.value.errno == errno.ESTALE
    inodes.forget(41, 1)  # what isn't known is no fault


def test_the_roots_number_is_nobody_elses() -> None:
    below = MemoryFile(b"x", inode=2)
    folder = MemoryDir({"f": below}, inode=1)
    root = MemoryDir({"d": folder}, inode=7)
    inodes = Inodes(root)
    number = _tell(inodes, ROOT, "d", folder)
    assert number != ROOT
    assert inodes.node(number) is folder
    assert inodes.node(ROOT) is root
    assert inodes.parent_inode(_tell(inodes, number, "f", below)) == 1


def test_dropped_nodes_are_looked_up_again() -> None:
    folder = MemoryDir({f"f{i}": MemoryFile(b"%d" % i) for i in range(100)})
    root = MemoryDir({"d": folder})
    inodes = Inodes(root, kept_nodes=4)
    d = _tell(inodes, ROOT, "d", folder)
    numbers = {n: _tell(inodes, d, n, node) for n, node in folder.children.items()}
    for name, number in numbers.items():
        assert inodes.node(number) is folder.children[name]
    assert inodes.parent_inode(numbers["f0"]) == folder.inode
    assert inodes.parent_inode(d) == root.inode
    del folder.children["f1"]
    with pytest.raises(Gone, match="'f1' is no longer in the tree"):
        inodes.node(numbers["f1"])
    folder.children["f2"] = MemoryFile(b"another")
    with pytest.raises(Gone):
        inodes.node(numbers["f2"])


def test_one_inode_for_two_files_is_refused() -> None:
    one, other = MemoryFile(b"one", inode=7), MemoryFile(b"other", inode=7)
    inodes = Inodes(MemoryDir({"one": one, "other": other}))
    _tell(inodes, ROOT, "one", one)
    with pytest.raises(CloudMountError, match="inode 7 is used for both 'one' and 'other'"):
        _tell(inodes, ROOT, "other", other)


def test_a_hard_link_is_one_file_with_two_names() -> None:
    one, same = MemoryFile(b"same", inode=7), MemoryFile(b"same", inode=7)
    inodes = Inodes(MemoryDir({"one": one, "same": same}))
    assert _tell(inodes, ROOT, "one", one) == _tell(inodes, ROOT, "same", same)


def test_another_number_for_one_file() -> None:
    file = MemoryFile(b"x", inode=41)
    inodes = Inodes(MemoryDir({"f": file}))
    assert _tell(inodes, ROOT, "f", file) == 41
    numbers = [41]
    for _ in range(3):
        assert inodes.renumber(numbers[-1]) == b"f"
        numbers.append(_tell(inodes, ROOT, "f", file))
        assert inodes.node(numbers[-1]) is file
    assert len(set(numbers)) == 4
    for number in numbers:
        inodes.forget(number, 1)
    assert len(inodes) == 0
    with pytest.raises(Gone):
        inodes.renumber(41)
