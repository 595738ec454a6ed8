"""The long form of `test_every_bit`: every byte of a small repository, again and again with other bits."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.backup.test_every_bit import every_byte, tiny


def campaign(seed: int, count: int) -> str:
    """One repository for each 100 of `count`, at least one; every byte of each has a random bit flipped."""
    tried = 0
    rounds = max(1, count // 100)
    for n in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            lab, store = tiny(Path(folder))
            tried += every_byte(lab, store, random.Random(seed + n), 1)
    return f"{tried} damaged repositories, each noticed"
