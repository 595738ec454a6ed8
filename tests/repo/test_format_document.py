"""docs/FORMAT.md's byte tables are those of the code."""

import re
from pathlib import Path

import pytest

from cloudmount.records import Record
from cloudmount.repo import structures

TEXT = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()
RECORDS = [
    v for v in vars(structures).values() if isinstance(v, type) and issubclass(v, Record) and v is not Record
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda k: k.__name__)
def test_table_is_the_record(kind: type[Record]) -> None:
    block = TEXT.split(f"<!-- table {kind.__name__} -->")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", block, re.M)
    told = [(int(o), int(n), name) for o, n, name in rows]
    assert told == [(f.offset, f.length, f.name) for f in kind.FIELDS]
    assert kind.SPEC.split()[1] in re.findall(r"^#+ (\d+(?:\.\d+)?)", TEXT, re.M)


def test_every_table_has_a_record() -> None:
    assert set(re.findall(r"<!-- table (\w+) -->", TEXT)) == {k.__name__ for k in RECORDS}
