"""A parser's process for campaigns: the real one, that can be told to forget its volume, as starting one for
each of many thousand volumes takes 50 ms. What pytsk3 reads of ext, our own reader must read too."""

from __future__ import annotations

from typing import Any

from cloudmount.guest import confine, wire, worker
from cloudmount.guest.blocks import ParentBlocks
from cloudmount.guest.ext import ExtVolume

confine.CALL_SECONDS = 2
DIFFER = "two readers of a file differ"


class TwiceRead(ExtVolume):
    """Reads all that pytsk3 reads once more by our own reader."""

    def read(self, number: int, offset: int, length: int) -> bytes:
        data = super().read(number, offset, length)
        if data != self._content(self._inode(number), offset, length):
            raise ValueError(DIFFER)
        return data


class ForgetfulServer(worker.Server):
    """Takes the call `forget` too."""

    def answer(self, out: int, call: list[Any]) -> None:
        if call == ["forget"]:
            old = self.blocks
            self.volume = None
            self.blocks = ParentBlocks(old.size, old._asking, old._answers)
            wire.send_json(out, wire.VALUE, [])
            return
        if self._make is ExtVolume:
            self._make = TwiceRead
        super().answer(out, call)


def main(kind: str, size: int) -> None:
    worker.main(kind, size, ForgetfulServer)
