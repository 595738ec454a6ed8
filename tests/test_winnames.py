"""Names that Windows can't hold: every one becomes one that it can, and back."""

from __future__ import annotations

import ntpath
import re
from pathlib import PureWindowsPath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloudmount.mounts.winfsp_names import shown_names
from cloudmount.system import windows_refuses
from cloudmount.winnames import UNITS, escape, fold, unescape, units
from tests.strategies import names

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ILLEGAL = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def is_device(name: str) -> bool:
    """Whether Win32 takes it for a device's."""
    if hasattr(ntpath, "isreserved"):  # Python 3.13
        return bool(ntpath.isreserved(name))
    return PureWindowsPath(name).is_reserved()


@unhurried
@given(names())
@example("CON")
@example("nul.tar.gz")
@example("COM³ ")
@example("CONOUT$.x")
@example("...")
@example("\uf025\uf0f0\uf012")
def test_every_name_becomes_one_that_windows_can_hold_and_back(name: str) -> None:
    shown = escape(name)
    assert unescape(shown) == name
    assert not ILLEGAL.search(shown)
    assert not shown.endswith((".", " ")), "Win32 cuts those off"
    assert not is_device(shown)
    shown.encode("utf-16-le")  # winfspy's, strict
    path = ntpath.join("X:\\srv\\latest", shown)
    assert ntpath.normpath(path) == path
    assert ntpath.split(path) == ("X:\\srv\\latest", shown)
    assert PureWindowsPath(path).name == shown
    assert units(shown) == len(shown.encode("utf-16-le")) // 2
    assert units(shown) > UNITS or windows_refuses(shown) is None
    assert windows_refuses(name) is not None or shown == name or re.search("[\uf000-\uf0ff]", name)


@unhurried
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=255))
def test_no_name_becomes_longer_but_for_what_nobody_has(name: str) -> None:
    if name in (".", "..") or re.search("[\uf000-\uf0ff\ud800-\udfff]", name):
        return
    assert units(escape(name)) == units(name)


@unhurried
@given(names())
def test_what_was_not_escaped_is_no_escape(shown: str) -> None:
    name = unescape(shown)
    assert name is None or escape(name) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plan.docx", "plan.docx"), ("a:b", "a\uf03ab"), ("50%", "50%"), ("trail ", "trail\uf020"),
        ("a. .", "a. \uf02e"), ("con.log", "\uf063on.log"), ("console", "console"), ("COM10", "COM10"),
        ("\udcff", "\uf0ff"), ("\uf03a", "\uf025\uf0f0\uf03a"), ("\ud800", "\uf025\uf0d8\uf000"),
        ("a\tb", "a\uf009b"), ("日本語", "日本語"),
    ],
)  # fmt: skip
def test_as_wsl_and_cygwin_have_it(name: str, shown: str) -> None:
    assert escape(name) == shown
    assert unescape(shown) == name


@pytest.mark.parametrize(
    "shown", ["a:b", "\uf041", "CON", "x.", "\uf025x", "\uf025\uf000A", "\uf025\uf000\uf041"]
)
def test_what_no_name_becomes(shown: str) -> None:
    assert unescape(shown) is None


def test_fold_is_a_unit_for_a_unit() -> None:
    assert fold("Straße ÿ ǆ.TXT") == "STRAßE Ÿ Ǆ.TXT"
    assert fold("\U00010428") == "\U00010428", "Windows leaves pairs alone"
    assert fold("readme") == fold("README") != fold("readme ")


@unhurried
@given(st.lists(names(), unique=True, max_size=12))
def test_no_two_names_of_a_folder_are_equal_to_windows(children: list[str]) -> None:
    shown = shown_names(children)
    assert shown.keys() == set(children)
    assert len({fold(s) for s in shown.values()}) == len(children)
    assert all(units(s) <= UNITS for s in shown.values())
    assert shown == shown_names(reversed(children)), "whatever the order they come in"
    first: dict[str, str] = {}
    for name in sorted(children):
        first.setdefault(fold(escape(name)), name)
    assert all(shown[name] == escape(name) for name in first.values()), "the first keeps its name"


def test_names_that_differ_in_case_only() -> None:
    assert shown_names(["a.txt", "A.TXT", "a-2.TXT", "A.txt"]) == {
        "A.TXT": "A.TXT", "A.txt": "A-3.txt", "a.txt": "a-4.txt", "a-2.TXT": "a-2.TXT",
    }  # fmt: skip


def test_names_that_are_too_long() -> None:
    long = ["\uf041" * 200 + end for end in (".x", ".y")] + ["\uf041" * 199 + "\uf042.x"]
    shown = shown_names(long)
    assert all(units(s) <= UNITS and s.endswith(n[-2:]) for n, s in shown.items())
    assert shown_names(long[:1])[long[0]] == shown[long[0]], "whoever else is there"
