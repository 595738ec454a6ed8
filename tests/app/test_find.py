"""What a pattern of `find` matches, beside a matcher of its own written the slow way."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloudmount.app.browsing import Found
from cloudmount.app.find import Match, Pattern, find
from cloudmount.errors import CloudMountError, StoreTimeoutError, UnreadableInputError, UsageError
from cloudmount.nodes import Node
from tests.trees.memory_tree import MemoryDir, MemoryFile, MemoryLink

LETTERS = "aAbéÉ.-_ "


def slow(pattern: str, name: str) -> bool:
    """A shell's pattern held against a name, letter by letter."""
    if not pattern:
        return not name
    head, rest = pattern[0], pattern[1:]
    if head == "*":
        return any(slow(rest, name[i:]) for i in range(len(name) + 1))
    if not name:
        return False
    return (head == "?" or head.lower() == name[0].lower()) and slow(rest, name[1:])


patterns = st.text(LETTERS + "*?", min_size=1, max_size=6)
names = st.text(LETTERS, min_size=1, max_size=6)


@settings(deadline=None)
@given(patterns, st.lists(names, min_size=1, max_size=3))
@example("*", ["a"])
@example("?", ["é"])
def test_names(pattern: str, parts: list[str]) -> None:
    for form in ("NFC", "NFD"):  # Windows and Linux compose letters, macOS takes them apart
        path = unicodedata.normalize(form, "/".join(parts))
        assert Pattern(pattern).matches(path) == slow(pattern, parts[-1])


@settings(deadline=None)
@given(st.lists(patterns, min_size=2, max_size=3), st.lists(names, min_size=1, max_size=3))
def test_paths(pattern: list[str], parts: list[str]) -> None:
    whole = "/".join(pattern)
    assert Pattern(whole).matches("/".join(parts)) == slow(whole, "/".join(parts))
    assert Pattern(f"/{whole}/").matches("/".join(parts)) == slow(whole, "/".join(parts))


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda t: t.strip("/")), st.text())
def test_anything_is_a_pattern_and_what_is_escaped_matches_itself(text: str, other: str) -> None:
    Pattern(text).matches(other)
    exact = "".join(f"[{c}]" if c in "*?[" else c for c in text.strip("/"))
    assert Pattern(exact).matches(text.strip("/"))


def test_sets_and_nothing() -> None:
    assert Pattern("plan[0-9].txt").matches("docs/PLAN7.TXT")
    assert not Pattern("plan[!0-9].txt").matches("docs/plan7.txt")
    assert Pattern("\udcff*").matches("docs/\udcffodd")
    for nothing in ("", "/", "//"):
        with pytest.raises(UsageError):
            Pattern(nothing)


class Broken(MemoryDir):
    """A folder whose listing fails with `error` after what it has."""

    error: CloudMountError = UnreadableInputError("its index is broken")

    def list(self) -> Iterator[tuple[str, Node]]:
        """Its children, then an error."""
        yield from super().list()
        raise self.error


def run(tree: MemoryDir, pattern: str) -> tuple[list[Match], list[str]]:
    """What is found, and where it could not be looked."""
    missed: list[str] = []
    found = find(Found(tree, "", tree), Pattern(pattern), lambda path, error: missed.append(path))
    return list(found), missed


def test_what_can_not_be_listed_costs_only_itself() -> None:
    broken = Broken({"x.qbw": MemoryFile(b"12"), "y": MemoryFile(b"")})
    loop = MemoryDir({"l": MemoryLink(".."), "X.QBW": MemoryFile(b"1")})
    loop.children["again"] = loop
    tree = MemoryDir({"a": MemoryDir({"b": broken}), "c": loop, "x.qbw": MemoryDir()})
    found, missed = run(tree, "x.qbw")
    told = [(m.path, m.type, m.size) for m in found]
    assert told == [("a/b/x.qbw", "file", 2), ("c/X.QBW", "file", 1), ("x.qbw", "dir", 0)]
    assert missed == ["a/b", "c/again"]
    assert [m.type for m in run(tree, "l")[0]] == ["link"]


def test_a_store_that_is_away_ends_it() -> None:
    broken = Broken({"x": MemoryFile(b"")})
    broken.error = StoreTimeoutError("no answer")
    with pytest.raises(StoreTimeoutError):
        run(MemoryDir({"a": broken}), "*")
    with pytest.raises(UnreadableInputError):  # not the folder that was named
        run(Broken(), "*")
