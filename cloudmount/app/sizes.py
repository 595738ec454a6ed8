"""Sizes as people write them."""

from __future__ import annotations

import re

from cloudmount.errors import UsageError

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


def parse_bytes(text: str) -> int:
    """A number of bytes: `500`, `10M`, `2GiB`; `UsageError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?(?:/s)?\s*", text, re.IGNORECASE | re.ASCII)
    unit = match[2].upper() if match else "?"
    if match is None or (unit not in _UNITS and unit != "T"):
        raise UsageError(f"{text!r} is not a size; write 500K, 10M or 2GiB")
    return int(float(match[1]) * _UNITS.get(unit, 10**12))
