"""Payloads: what comes out is what went in, and never more than is allowed."""

from __future__ import annotations

import contextlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.errors import DamagedError
from cloudmount.repo.payload import (
    METADATA_LIMIT,
    Dictionary,
    decode_frame,
    decode_payload,
    encode_frame,
    encode_payload,
    inflate_frame,
    no_dictionary,
)
from tests.strategies import contents
from tests.trained import text, trained

DICTIONARY = Dictionary(trained())
OTHER = Dictionary(trained(seed=1)[:4] + (1 << 20).to_bytes(4, "little") + trained(seed=1)[8:])


def find(id: int) -> Dictionary:
    return {d.id: d for d in (DICTIONARY, OTHER)}[id]


@given(plain=contents())
def test_metadata(plain: bytes) -> None:
    payload = encode_payload(plain)
    assert len(payload) <= len(plain) + 1
    assert decode_payload(payload) == plain
    assert decode_payload(payload, exact=len(plain)) == plain
    for wrong in (len(plain) - 1, len(plain) + 1):
        if wrong >= 0:
            with pytest.raises(DamagedError):
                decode_payload(payload, exact=wrong)
    if plain:
        with pytest.raises(DamagedError):
            decode_payload(payload, limit=len(plain) - 1)


@given(plain=contents().filter(bool))
def test_frames(plain: bytes) -> None:
    payload = bytes(encode_frame(plain))
    assert len(payload) <= len(plain)
    assert decode_frame(payload, len(plain), no_dictionary) == plain
    with pytest.raises(DamagedError):
        decode_frame(payload, len(plain) - 1, no_dictionary)
    if len(payload) < len(plain):
        assert inflate_frame(payload, len(plain), no_dictionary) == plain
        with pytest.raises(DamagedError):
            inflate_frame(payload, len(plain) - 1, no_dictionary)


@given(plain=st.one_of(contents().filter(bool), st.builds(text, st.integers(0, 99), st.integers(1, 9000))))
def test_frames_with_a_dictionary(plain: bytes) -> None:
    """They name it, so they inflate with it, whatever others there are; without it they are damaged."""
    payload = bytes(encode_frame(plain, DICTIONARY))
    assert len(payload) <= len(plain)
    assert decode_frame(payload, len(plain), find) == plain
    if len(payload) == len(plain):
        return
    assert zstandard.get_frame_parameters(payload).dict_id == DICTIONARY.id
    assert inflate_frame(payload, len(plain), find) == plain
    for wrong in {len(plain) - 1, len(plain) + 1} - {len(payload)}:
        with pytest.raises(DamagedError):
            decode_frame(payload, wrong, find)
    with pytest.raises(DamagedError, match="dictionary"):
        decode_frame(payload, len(plain), no_dictionary)
    with pytest.raises(DamagedError, match="dictionary"):
        decode_payload(b"\1" + payload)
    for one in (OTHER, None):
        assert decode_frame(bytes(encode_frame(plain, one)), len(plain), find) == plain


def test_a_dictionary_makes_frames_shorter() -> None:
    plain = text(5000, 4096)
    assert len(encode_frame(plain, DICTIONARY)) < 0.9 * len(encode_frame(plain))


@given(junk=st.binary(max_size=300))
def test_no_dictionary(junk: bytes) -> None:
    """Bytes that are none, or are one under an id that zstd keeps to itself."""
    for content in (junk, trained()[:8] + junk, trained()[:40]):
        with pytest.raises(DamagedError):
            Dictionary(content)
    for id in (0, 1, (1 << 15) - 1, 1 << 31, (1 << 32) - 1):
        with pytest.raises(DamagedError):
            Dictionary(trained()[:4] + id.to_bytes(4, "little") + trained()[8:])


@given(junk=st.binary(max_size=300))
def test_junk(junk: bytes) -> None:
    for codec in (b"", b"\0", b"\1", b"\2", b"\xff"):
        with contextlib.suppress(DamagedError):
            assert len(decode_payload(codec + junk)) <= len(junk)
    with contextlib.suppress(DamagedError):
        assert decode_frame(junk, 4096, no_dictionary) == b"" or len(junk) == 4096


@pytest.mark.parametrize("size", [METADATA_LIMIT + 1, 1 << 40])
def test_a_bomb_is_not_inflated(size: int) -> None:
    small = zstandard.ZstdCompressor().compress(bytes(1000))
    assert zstandard.frame_content_size(small) == 1000
    # A frame header (RFC 8878 3.1.1.1) that claims `size` bytes in 8 bytes, single segment.
    bomb = bytes.fromhex("28b52ffd") + b"\xe0" + size.to_bytes(8, "little") + small[6:]
    assert zstandard.frame_content_size(bomb) == size
    with pytest.raises(DamagedError, match=str(size)):
        decode_payload(b"\1" + bomb)
    with pytest.raises(DamagedError, match=str(size)):
        decode_frame(bomb, 131_072, no_dictionary)


def test_a_stream_that_does_not_tell_its_size() -> None:
    """Its length would be known only by inflating it."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    payload = compressor.compress(bytes(100_000)) + compressor.flush()
    with pytest.raises(DamagedError):
        decode_payload(b"\1" + payload)
    with pytest.raises(DamagedError):
        decode_frame(payload, 100_000, no_dictionary)
