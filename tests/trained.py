"""Small dictionaries, and what they make shorter."""

from __future__ import annotations

import functools
import random

import zstandard

from cloudmount.repo.dictionaries import room


def text(seed: int, length: int) -> bytes:
    """Bytes of which a dictionary makes frames shorter: words in another order each time."""
    words = [random.Random(n).randbytes(4 + n % 5).hex().encode() for n in range(200)]
    rng = random.Random(seed)
    return b" ".join(rng.choices(words, k=length // 8 + 1))[:length].ljust(length, b".")


@functools.cache
def trained(object_bytes: int = 2 << 10, seed: int = 0) -> bytes:
    """A dictionary for `text`, in zstd's form."""
    size = room(object_bytes)
    samples: list[bytes | bytearray | memoryview[int]] = [text(1000 * seed + n, 4096) for n in range(60)]
    made = zstandard.train_dictionary(
        size, samples, k=min(512, size // 2), d=8, f=18, accel=3, level=3, dict_id=1 << 15
    )
    content: bytes = made.as_bytes()
    return content
