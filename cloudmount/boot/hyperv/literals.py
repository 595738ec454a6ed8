"""How values enter a PowerShell script: as literals of one table at its top, and nowhere else.

Decided here and only here: how a text is written so that PowerShell reads it back as it is, and how a script
is made of its fixed text and its table. Every value from outside (names of machines and disks, paths) goes
through `literal`; the rest of a script never changes. Pure.

PowerShell takes ' and four typographic characters as quotes; in a single-quoted string nothing but a quote
means anything, and two quotes of any kind stand for the second of them (language specification, 2.3.5.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TypeAlias

QUOTES = "'\u2018\u2019\u201a\u201b"
TABLE = "$Table = $null"
"""The line of a script's fixed text in whose place its table is put."""
_BOM = "\ufeff"
"""Windows PowerShell takes a script without it for one in the system's old code page."""

Value: TypeAlias = "str | int | bool | Sequence[Value] | Mapping[str, Value] | None"


def literal(text: str) -> str:
    """`text` as a single-quoted literal. `ValueError` for what no script can hold: NUL, and halves of
    surrogate pairs (names whose bytes are not text)."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{text!r} can't stand in a script")
    return "'" + "".join(c + c if c in QUOTES else c for c in text) + "'"


def expression(value: Value, indent: str = "") -> str:
    """A value as PowerShell writes it: texts by `literal`, tables and lists of them. Keys are ours."""
    inner = indent + "    "
    if value is None:
        return "$null"
    if isinstance(value, bool):
        return "$true" if value else "$false"
    if isinstance(value, int):
        return f"([int64] {literal(str(value))})"
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Mapping):
        lines = [f"{inner}{key} = {expression(entry, inner)}" for key, entry in value.items()]
        assert all(key.isascii() and key.isidentifier() for key in value)
        return "\r\n".join(["@{", *lines, indent + "}"])
    if not value:
        return "@()"
    lines = [f"{inner}{expression(entry, inner)}" for entry in value]
    return "\r\n".join(["@(", *lines, indent + ")"])


def fixed_text(name: str) -> str:
    """The text of a script without its table; lines end with a line feed."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def script(name: str, table: Mapping[str, Value]) -> bytes:
    """The file of script `name`: UTF-8 with a mark, lines as Windows ends them."""
    before, line, after = fixed_text(name).partition(TABLE + "\n")
    assert line
    assert TABLE not in after
    before, after = (part.replace("\n", "\r\n") for part in (before, after))
    return (_BOM + before + f"$Table = {expression(table)}\r\n" + after).encode("utf-8")
