"""Where a passphrase comes from, and what is stripped of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cloudmount.app.sizes import parse_bytes
from cloudmount.cli.options import parse_bandwidth
from cloudmount.cli.passphrase import LONGEST, from_elsewhere
from cloudmount.errors import UnreadableInputError, UsageError


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"secret\n\n", "secret\n"),
        (b"secret\r", "secret\r"),
        (b" secret \n", " secret "),
        (b"two\r\nlines\n", "two\r\nlines"),
        ("Paßwort\n".encode(), "Paßwort"),
        (b"\xff\xfe\n", "\udcff\udcfe"),
    ],
)
def test_exactly_one_line_ending_is_stripped(tmp_path: Path, content: bytes, passphrase: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert from_elsewhere(str(file), {"CLOUDMOUNT_PASSPHRASE": "other"}) == passphrase


def test_the_environment_is_taken_as_it_is() -> None:
    assert from_elsewhere(None, {"CLOUDMOUNT_PASSPHRASE": "a\n"}) == "a\n"
    assert from_elsewhere(None, {"CLOUDMOUNT_PASSPHRASE": ""}) is None
    assert from_elsewhere(None, {}) is None


def test_a_pipe_will_do(tmp_path: Path) -> None:
    """--passphrase-file <(pass show backup)"""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"from a pipe\n",))
    writer.start()
    assert from_elsewhere(str(pipe), {}) == "from a pipe"
    writer.join()


def test_files_that_are_none(tmp_path: Path) -> None:
    for bad in (tmp_path / "missing", tmp_path, Path(f"{tmp_path}/with\0zero")):
        with pytest.raises(UnreadableInputError, match="can't be read"):
            from_elsewhere(str(bad), {})
    (tmp_path / "long").write_bytes(b"x" * (LONGEST + 1))
    with pytest.raises(UnreadableInputError, match="right file"):
        from_elsewhere(str(tmp_path / "long"), {})
    for content in (b"", b"\n"):
        (tmp_path / "empty").write_bytes(content)
        with pytest.raises(UsageError, match="empty"):
            from_elsewhere(str(tmp_path / "empty"), {"CLOUDMOUNT_PASSPHRASE": "other"})


@pytest.mark.parametrize(
    ("text", "count"),
    [("500", 500), ("2K", 2000), ("1.5M", 1_500_000), ("2GiB", 2 << 30), ("2gi", 2 << 30), ("1MB/s", 10**6),
     ("1Ki", 1024), ("3T", 3 * 10**12), ("1TiB", 1 << 40)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "K", "-1", "1e6", "1 2", "0x10", "1P", "nan", "१"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        (None, (None, None)),
        ("2M", (2e6, None)),
        ("1M:8M", (1e6, 8e6)),
        (":8M", (None, 8e6)),
        ("1K:", (1e3, None)),
    ],
)
def test_bandwidths(text: str | None, limits: tuple[float | None, float | None]) -> None:
    assert parse_bandwidth(text) == limits


@pytest.mark.parametrize("text", ["0", "1M:0", "1:2:3", "fast", "", ":"])
def test_no_bandwidths(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bandwidth(text)
