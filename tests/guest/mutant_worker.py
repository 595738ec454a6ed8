"""A parser's process for campaigns: the real one, that can be told to forget its volume, as starting one for
each of many thousand volumes takes 50 ms."""

from __future__ import annotations

from typing import Any

from cloudmount.guest import confine, wire, worker
from cloudmount.guest.blocks import ParentBlocks

confine.CALL_SECONDS = 2


class ForgetfulServer(worker.Server):
    """Takes the call `forget` too."""

    def answer(self, out: int, call: list[Any]) -> None:
        if call == ["forget"]:
            old = self.blocks
            self.volume = None
            self.blocks = ParentBlocks(old.size, old._asking, old._answers)
            wire.send_json(out, wire.VALUE, [])
            return
        super().answer(out, call)


def main(kind: str, size: int) -> None:
    worker.main(kind, size, ForgetfulServer)
