"""The byte structures of the repository format, each declared once.

Decided here and only here: the tables of docs/FORMAT.md (a test compares them) and
the format's constants. Pure.
"""

from __future__ import annotations

from typing import Annotated

from cloudmount.records import Record, record

FORMAT_VERSION = 0
SUITE = 2
MAGIC = b"CLDMOUNT"
TRAILER_MAGIC = b"CMTB"
BLOCK_BYTES = 2 << 20
"""The grain of presence: a page has one bit for each of these blocks of a stream."""

KIND_PACK, KIND_MAP, KIND_INDEX, KIND_SNAPSHOT, KIND_DAMAGE = 1, 2, 3, 4, 5
KIND_PROOF, KIND_TRACE, KIND_BOOT_PACK, KIND_DICTIONARY = 9, 10, 11, 12
# Reserved: 6 session, 7 plan, 8 deletion record.
ITEM_LOCATIONS, ITEM_IDS, ITEM_PAGE, ITEM_DIGESTS, ITEM_ENTRIES, ITEM_ROOTS = 1, 2, 3, 4, 5, 6


@record(size=64, spec="FORMAT.md 5")
class ObjectHeader(Record):
    """What every object but the config begins with."""

    magic: Annotated[bytes, "8s"]
    version: Annotated[int, "H"]
    kind: Annotated[int, "B"]
    suite: Annotated[int, "B"]
    epoch: Annotated[int, "I"]
    salt: Annotated[bytes, "32s"]
    lead: Annotated[int, "I"]
    reserved: Annotated[bytes, "12s"]


@record(size=8, spec="FORMAT.md 5")
class Trailer(Record):
    """The last bytes of packs and map objects."""

    table_length: Annotated[int, "I"]
    magic: Annotated[bytes, "4s"]


@record(size=32, spec="FORMAT.md 6.3")
class PageHeader(Record):
    """The beginning of a page."""

    first_segment: Annotated[int, "Q"]
    segments: Annotated[int, "I"]
    stored: Annotated[int, "I"]
    maps: Annotated[int, "I"]
    blocks: Annotated[int, "I"]
    sealed: Annotated[int, "Q"]


@record(size=36, spec="FORMAT.md 6.3")
class MapRow(Record):
    """A row of a page's table of map objects."""

    epoch: Annotated[int, "I"]
    salt: Annotated[bytes, "32s"]


@record(size=16, spec="FORMAT.md 6.3")
class SegmentHeader(Record):
    """The beginning of a segment's locations."""

    frames: Annotated[int, "I"]
    stored: Annotated[int, "I"]
    packs: Annotated[int, "I"]
    births: Annotated[int, "I"]


SPANS = 1 << 31
"""Set in a segment's `packs` when it has frames that span two: the columns cut and skip follow."""


@record(size=36, spec="FORMAT.md 6.3")
class BirthRow(Record):
    """A row of a segment's table of births."""

    epoch: Annotated[int, "I"]
    salt: Annotated[bytes, "32s"]


@record(size=8, spec="FORMAT.md 7")
class IndexHeader(Record):
    """The beginning of an index object's content, and of a pack's table."""

    packs: Annotated[int, "I"]
    frames: Annotated[int, "I"]


@record(size=52, spec="FORMAT.md 7")
class PackRow(Record):
    """One pack in an index object."""

    epoch: Annotated[int, "I"]
    salt: Annotated[bytes, "32s"]
    size: Annotated[int, "Q"]
    frames: Annotated[int, "I"]
    births: Annotated[int, "I"]


HEADER_BYTES = ObjectHeader.SIZE
TRAILER_BYTES = Trailer.SIZE
