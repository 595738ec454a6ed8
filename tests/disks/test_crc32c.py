"""CRC-32C against published vectors and a bitwise one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.disks.crc32c import crc32c


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4, this and what follows
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_vectors(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def bitwise(data: bytes) -> int:
    """A bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=300), st.integers(0, 5000), st.integers(0, 400))
def test_any_data(data: bytes, zeros: int, cut: int) -> None:
    """Long runs of zeros at the end are skipped by arithmetic; going on gives the same."""
    whole = data + bytes(zeros)
    assert crc32c(whole) == bitwise(whole) == crc32c(whole[cut:], crc32c(whole[:cut]))
    assert crc32c(bytearray(whole)) == crc32c(memoryview(whole)) == crc32c(whole)
