"""A drill's report: all that is found is in it, and nothing that a guest said is markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.app.drilldisks import Opened
from cloudmount.app.drillreport import Facts, page, write_report
from cloudmount.boot.proving import Evidence
from cloudmount.crypto.slots import canonical
from cloudmount.errors import CloudMountError

PNG = b"\x89PNG\r\n\x1a\n rest"


def facts(text: str = "x", **changes: Any) -> Facts:
    """What a drill might find; `text` wherever a guest or a user has a say."""
    value: dict[str, Any] = {
        "machine": text, "snapshot": "2026-11-22T03-00-00Z", "snapshot_id": "ab" * 16,
        "snapshot_time": "2026-11-22T03:00:00Z", "time": 1_800_000_000, "result": "proved", "stage": "ready",
        "why": text, "ready_ms": 12_345, "ended_ms": 20_000, "fetched_bytes": 50_000_000, "reads": 40,
        "total_bytes": 60_000_000, "requests": 50, "cost": 5_220, "currency": "USD", "accelerator": "kvm",
        "evidence": (Evidence("serial", text),),
        "volumes": (
            Opened(text, text, False, text), Opened("z", "1-root", True, None), Opened("y", "", False, None),
        ),
        "last_line": text, "host": text, "program": "cloudmount 0",
    }  # fmt: skip
    return Facts(**{**value, **changes})


class Seen(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


PLAIN = Seen(page(facts(), PNG, "proofs/x"))


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet="<>\"'&/=! scriptimgonerrorsrc-\0\ud800"))
def test_what_a_guest_says_is_no_markup(text: str) -> None:
    seen = Seen(page(facts(text or "x"), PNG, "proofs/x"))
    assert seen.tags == PLAIN.tags and seen.attributes == PLAIN.attributes
    assert "script" not in seen.tags and not any(name.startswith("on") for name in seen.attributes)


def test_the_page_tells_all() -> None:
    text = page(facts(why=""), PNG, "proofs/x")
    for told in (
        "Proved",
        "12.3 s",
        "50.0 MB in 40 requests",
        "60.0 MB in 50",
        "0.0052 USD",
        "DOES NOT OPEN",
        "opens",
    ):
        assert told in text
    assert "http" not in text.replace("http-equiv", "") and "data:image/png;base64," in text
    failed = page(facts(result="failed", ready_ms=None, cost=None, evidence=(), volumes=()), None, None)
    for told in ("Failed", "never seen", "None.", "no other disks", "There is none.", "is a folder"):
        assert told in failed


def test_it_is_written_for_its_user_only(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    one = write_report(facts("srv/../<x>"[:3]), PNG, "proofs/x", environ)
    two = write_report(facts("srv"), None, None, environ)
    assert one.html.parent != two.html.parent and one.html.parent.stat().st_mode & 0o777 == 0o700
    assert one.screenshot is not None and one.screenshot.read_bytes() == PNG and two.screenshot is None
    told = json.loads(one.json.read_text())
    assert told["ok"] and told["seconds_to_ready"] == 12.345 and told["estimated_cost"] == 0.00522
    assert told["time"] == "2027-01-15T08:00:00Z" and told["proof"] == "proofs/x"
    long = write_report(facts("ä" * 120), None, None, environ)
    assert long.html.is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(CloudMountError, match="report can't be written"):
        write_report(facts("srv"), None, None, {"XDG_STATE_HOME": str(tmp_path / "file")})


@given(st.text())
def test_what_is_sealed_is_canonical(text: str) -> None:
    """No floating-point numbers, and all of it."""
    value = facts(text).sealed()
    again = json.loads(canonical(value))
    assert again == value | {"volumes": again["volumes"]} and "." not in json.dumps(
        [v for v in again.values() if not isinstance(v, str | list)]
    )
    assert value.keys() == set(Facts.__slots__) - {"snapshot_id", "time"}
