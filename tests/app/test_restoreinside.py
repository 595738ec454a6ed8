"""Two of a guest's files that are one name here: the first stays, the other is told."""

from __future__ import annotations

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
