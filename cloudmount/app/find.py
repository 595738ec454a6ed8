"""Finding names in a snapshot: ordinary files and what lies inside disks.

Decided here and only here: what a pattern matches. It is a shell's (`*`, `?`, `[...]`) and held against the
whole name, or, with a slash in it, against the whole path, where `*` takes slashes too, as `find -path` and
`backup --exclude` have it. Capitals never count: a file that Windows called COMPANY.QBW must not be missed
because of how it was typed. Accented letters match however they are composed. Pure but for the tree.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloudmount.app.browsing import Found, walk
from cloudmount.errors import CloudMountError, UsageError
from cloudmount.nodes import Kind, Node, is_dir


@dataclass(frozen=True, slots=True)
class Match:
    """Something found: its path as `cp SNAPSHOT:PATH` takes it, its size in bytes (0 for folders)."""

    path: str
    type: str
    size: int
    mtime_ns: int


class Pattern:
    """What a user looks for; `UsageError` for nothing."""

    def __init__(self, text: str) -> None:
        stripped = text.strip("/")
        if not stripped:
            raise UsageError("what is to be found? write a name or a pattern, such as '*.qbw'")
        self._whole = "/" in stripped
        self._regex = re.compile(fnmatch.translate(_composed(stripped)), re.IGNORECASE)

    def matches(self, path: str) -> bool:
        """Whether it matches what lies at `path` in a snapshot."""
        return self._regex.match(_composed(path if self._whole else path.rpartition("/")[2])) is not None


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def find(start: Found, pattern: Pattern, failed: Callable[[str, CloudMountError], None]) -> Iterator[Match]:
    """What `pattern` matches at and below `start`, as it is found; folders that can't be listed are told."""
    if start.path and pattern.matches(start.path):
        yield _match(start.path, start.node)
    if not is_dir(start.node):
        return
    for path, node in walk(start.node, start.path, failed):
        if pattern.matches(path):
            yield _match(path, node)


def _match(path: str, node: Node) -> Match:
    attr = node.attr()
    return Match(path, attr.kind.value, 0 if attr.kind is Kind.DIR else attr.size, attr.mtime_ns)
