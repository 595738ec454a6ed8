"""Files that are of no use without others beside them.

Decided here and only here: the table of such sets. To add one, add a row. Pure.

Names are patterns without regard to case: `{name}` is the whole name of the file that was asked for,
`{stem}` that without its ending. Left out on purpose: what its program makes anew or must not find
(Access' `.ldb`, SQLite's `-shm`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileSet:
    """A main file's names, what it is, and what belongs to it."""

    main: tuple[str, ...]
    what: str
    beside: tuple[str, ...]


SETS = (
    # The log of all changes since the last backup, and the two that tell other PCs who serves the file.
    # QuickBooks writes company.QBW.TLG; older ones, and Intuit's own instructions, company.tlg.
    FileSet(
        ("*.qbw", "*.qba"),
        "a QuickBooks company file",
        ("{name}.tlg", "{stem}.tlg", "{name}.nd", "{stem}.nd", "{name}.dsn", "{stem}.dsn"),
    ),
    FileSet(("*.sai",), "a Sage 50 company file (its data is in the .SAJ folder)", ("{stem}.saj",)),
    FileSet(
        ("*.mdf",), "a SQL Server database", ("{stem}_log.ldf", "{stem}.ldf", "{stem}_?.ndf", "{stem}.ndf")
    ),
    FileSet(
        ("*.db", "*.db3", "*.sqlite", "*.sqlite3"),
        "a SQLite database (what its log holds is not in it yet)",
        ("{name}-wal", "{name}-journal"),
    ),
    FileSet(("*.dbf",), "a dBase or FoxPro table", ("{stem}.fpt", "{stem}.dbt", "{stem}.cdx", "{stem}.mdx")),
)


def _escaped(text: str) -> str:
    """`text` as a pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def companions(name: str, names: Iterable[str]) -> tuple[str, list[str]]:
    """What `name` is, and which of `names` belong to it, in their order; ("", []) for a file by itself."""
    low = name.casefold()
    for row in SETS:
        if any(fnmatch.fnmatchcase(low, pattern) for pattern in row.main):
            stem = low.rpartition(".")[0]
            wanted = [p.format(name=_escaped(low), stem=_escaped(stem)) for p in row.beside]
            found = [
                n
                for n in names
                if n != name and any(fnmatch.fnmatchcase(n.casefold(), pattern) for pattern in wanted)
            ]
            return (row.what, found) if found else ("", [])
    return "", []


def renamed(companion: str, name: str, new: str) -> str:
    """What a companion of `name` is called when `name` becomes `new`."""
    if new == name:
        return companion
    if companion[: len(name)].casefold() == name.casefold():
        return new + companion[len(name) :]
    stem = name.rpartition(".")[0]
    return (new.rpartition(".")[0] or new) + companion[len(stem) :]
