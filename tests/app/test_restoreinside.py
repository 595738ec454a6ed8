"""A guest's files that a target can't hold: the rest comes, and what is missing is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cloudmount.app.restore import RestoreProgress
from cloudmount.app.restoreinside import InsideRestore, Output
from cloudmount.app.restorejournal import RestoreJournal
from cloudmount.nodes import Node
from tests.trees.memory_tree import MemoryFile, MemoryLink


@pytest.mark.parametrize("other", [MemoryFile(b"second", inode=9), MemoryLink("elsewhere")])
def test_names_that_differ_in_case_only(tmp_path: Path, other: Node) -> None:
    """As on a file system that does not tell case: both go to one path."""
    progress = RestoreProgress()
    planned = [
        (Output(node, node.attr(), below), tmp_path / "Plan")
        for node, below in ((MemoryFile(b"first", inode=8), "Plan"), (other, "plan"))
    ]
    with RestoreJournal(tmp_path, "a test", None) as journal:
        made = InsideRestore(journal, progress)
        made.run(planned)
    assert (tmp_path / "Plan").read_bytes() == b"first"
    assert [path for path, _ in made.skipped] == [tmp_path / "Plan"]
    assert (progress.files, progress.done_bytes) == (1, 5)
    with RestoreJournal(tmp_path, "a test", None) as journal:  # again: what is done stays as it is
        InsideRestore(journal, RestoreProgress()).run(planned[:1])
    assert (tmp_path / "Plan").read_bytes() == b"first"


def test_what_a_target_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without links: symbolic ones are left out, a file with two names becomes two."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    progress = RestoreProgress()
    nodes: dict[str, Node] = {
        "one": MemoryFile(b"content", inode=8),
        "link": MemoryLink("one"),
        "two": MemoryFile(b"content", inode=8),
    }
    planned = [(Output(node, node.attr(), name), tmp_path / name) for name, node in nodes.items()]
    with RestoreJournal(tmp_path, "a test", None) as journal:
        made = InsideRestore(journal, progress)
        made.run(planned)
        journal.remove()
    assert made.skipped == [(tmp_path / "link", "not made: Operation not permitted")]
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    assert (tmp_path / "two").read_bytes() == b"content"
    assert (tmp_path / "two").stat().st_nlink == 1
