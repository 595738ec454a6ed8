"""A parser's process: `main(kind, size)`.

Decided here and only here: how calls are answered. Descriptor 0 brings frames of the parent, 1 takes ours
(`wire`). After a failure the volume is opened anew, so that no half-read state is ever used again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

from cloudmount.guest import confine, wire
from cloudmount.guest.blocks import ParentBlocks
from cloudmount.guest.volumes import Found, Unreadable, Volume

_CALLS_MOST = 1 << 20
MOST_EXTENTS, MOST_STRETCHES = 1 << 20, 100_000


def _opener(kind: str) -> Any:
    """The class that reads volumes of this kind; only its library is loaded."""
    if kind == "ntfs":
        from cloudmount.guest.ntfs import NtfsVolume

        return NtfsVolume
    if kind.startswith("ext"):
        from cloudmount.guest.ext import ExtVolume

        return ExtVolume
    from cloudmount.guest.sleuth import opener

    return opener(kind)


def main(kind: str, size: int, server: type[Server] | None = None) -> None:
    """Answer calls until the parent is gone, by a `server` if one is given."""
    answers = os.dup(0)
    asking = os.dup(1)
    os.dup2(2, 0)
    os.dup2(2, 1)  # what a library prints must not get between frames
    make = _opener(kind)
    for codec in ("utf-16-le", "latin-1", "cp850"):
        "".encode(codec)
    confined = confine.confine()
    serving = (server or Server)(make, ParentBlocks(size, asking, answers), confined)
    while True:
        try:
            _, call = wire.receive(answers, _CALLS_MOST)
            confine.begin_call()
            serving.answer(asking, wire.parsed(call))
        except wire.BrokenFrameError:
            os._exit(0)


class Server:
    """Answers calls about one volume."""

    def __init__(self, make: Any, blocks: ParentBlocks, confined: bool) -> None:
        self._make, self._confined = make, confined
        self.blocks = blocks
        self.volume: Volume | None = None

    def answer(self, out: int, call: list[Any]) -> None:
        """Send what a call gives, or its failure."""
        try:
            if self.volume is None:
                self.volume = self._make(self.blocks)
            value = self._call(self.volume, out, *call)
        except wire.BrokenFrameError:
            raise
        except MemoryError:
            os._exit(1)
        except Unreadable as error:
            wire.send_json(out, wire.FAILED, [wire.UNREADABLE, str(error)])
        except Exception as error:
            self.volume = None
            wire.send_json(out, wire.FAILED, [wire.DAMAGED, f"{type(error).__name__}: {error}"[:2000]])
        else:
            if isinstance(value, bytes):
                wire.send(out, wire.BYTES, value)
            else:
                wire.send_json(out, wire.VALUE, value)

    def _call(self, volume: Volume, out: int, name: str, *arguments: Any) -> Any:
        if name == "read":
            number, offset, length = arguments
            data = volume.read(number, offset, length)
            if len(data) != length:
                raise ValueError(f"{len(data)} bytes came where {length} belong")
            return data
        if name == "folder":
            return _in_parts(out, volume.folder(*arguments))
        if name == "lookup":
            try:
                return [volume.lookup(*arguments)]
            except NotImplementedError:
                return None
        if name == "extents":
            return list(islice(volume.extents(*arguments), MOST_EXTENTS))
        if name == "data":
            found = volume.data(*arguments)
            return None if found is None else _merged(found)
        if name == "about":
            return [volume.label, volume.root, volume.warning, self._confined]
        raise ValueError(f"no call {name}")


def _in_parts(out: int, found: Iterable[Found]) -> list[Found]:
    """The last of these entries; those before are sent, each part with processor time of its own."""
    part: list[Found] = []
    for count, entry in enumerate(found):
        if count >= wire.MOST_ENTRIES:
            raise Unreadable(f"a folder of more than {wire.MOST_ENTRIES:,} names")
        if len(part) == wire.PART_ENTRIES:
            wire.send_json(out, wire.PART, part)
            part = []
            confine.begin_call()
        part.append(entry)
    return part


def _merged(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """Adjoining stretches as one; None when there are too many to be worth it."""
    merged: list[tuple[int, int]] = []
    for offset, length in found:
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        elif len(merged) == MOST_STRETCHES:
            return None
        else:
            merged.append((offset, length))
    return merged


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
