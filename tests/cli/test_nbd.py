"""`nbd` as a user runs it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from cloudmount.app.nbd import Place, parse_place
from cloudmount.errors import UsageError
from tests.cli.console import Console
from tests.cli.test_endings import ended, start


def test_disks_are_served_until_a_signal(console: Console, tmp_path: Path) -> None:
    for name in ("system", "my data"):
        (tmp_path / f"{name}.img").write_bytes(name.encode() * 1000 + bytes(-7000 % 512 + 4096))
        size = (tmp_path / f"{name}.img").stat().st_size // 512 * 512
        with (tmp_path / f"{name}.img").open("r+b") as file:
            file.truncate(size)
    console.run("backup", "--name", "srv", str(tmp_path / "system.img"), str(tmp_path / "my data.img"))
    path = tmp_path / "a socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # by a program that was killed
    running = start(console, "nbd", "srv", "--listen", f"unix:{path}", "--json", "--quiet")
    assert running.stdout is not None
    told = json.loads(running.stdout.readline())
    assert [e["name"] for e in told["exports"]] == ["my data", "system"] and told["pid"] == running.pid
    assert told["uri"] == told["exports"][0]["uri"] and path.stat().st_mode & 0o777 == 0o600
    for export in told["exports"]:
        subprocess.run(["nbdcopy", export["uri"], str(tmp_path / "copy")], check=True, timeout=60)
        assert (tmp_path / "copy").read_bytes() == (tmp_path / f"{export['name']}.img").read_bytes()
        assert (tmp_path / "copy").stat().st_size == export["size"]
    console.run("nbd", "srv", "--listen", f"unix:{path}", code=8)
    running.send_signal(signal.SIGINT)
    code, _, err = ended(running, 8)
    assert (code, err) == (0, "") and not path.exists()

    running = start(console, "nbd", "srv:system", "--listen", "127.0.0.1:0")
    assert running.stdout is not None
    uri = running.stdout.readline().strip()
    assert uri.startswith("nbd://127.0.0.1:") and uri.endswith("/system")
    subprocess.run(["nbdcopy", uri, str(tmp_path / "copy")], check=True, timeout=60)
    console.run("nbd", "srv", "--listen", uri.split("/")[2], code=8)
    running.send_signal(signal.SIGTERM)
    assert ended(running, 8)[0] == 0
    console.run("nbd", "srv:none", code=3)
    console.run("nbd", "nosuch", code=3)
    console.run("nbd", "srv", "--listen", "0.0.0.0:10809", code=2)


def test_places() -> None:
    assert parse_place("localhost:1") == Place(host="127.0.0.1", port=1)
    assert parse_place("[::1]:10809").uri("a b") == "nbd://[::1]:10809/a%20b"
    assert parse_place("unix:/x y/s").uri("d/e") == "nbd+unix:///d/e?socket=/x%20y/s"
    for text in (
        "",
        "unix:",
        "10809",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:70000",
        "example.com:1",
        "10.0.0.1:1",
    ):
        with pytest.raises(UsageError, match="--listen"):
            parse_place(text)
