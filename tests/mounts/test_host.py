"""What a machine lacks is said before libfuse is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cloudmount.errors import CloudMountError, UsageError
from cloudmount.mounts import libfuse
from cloudmount.mounts.host import require

CHARACTERS = Path("/dev/null")


def test_no_device(tmp_path: Path) -> None:
    for device in (tmp_path / "fuse", tmp_path):
        with pytest.raises(CloudMountError, match=r"there is no device .*modprobe fuse") as caught:
            require(allow_other=False, root=True, device=device)
        assert caught.value.exit_code == 1


def test_only_others_need_the_helper() -> None:
    require(allow_other=True, root=True, device=CHARACTERS, helper="no-such-program")
    with pytest.raises(CloudMountError, match="install the package fuse3"):
        require(allow_other=False, root=False, device=CHARACTERS, helper="no-such-program")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [(None, False), ("", False), ("#user_allow_other\n", False), ("user_allow_others\n", False),
     ("mount_max = 1\n  user_allow_other  \n", True)],
)  # fmt: skip
def test_other_users(tmp_path: Path, text: str | None, allowed: bool) -> None:
    configuration = tmp_path / "fuse.conf"
    if text is not None:
        configuration.write_text(text)

    def ask(allow_other: bool) -> None:
        require(allow_other=allow_other, root=False, device=CHARACTERS, configuration=configuration,
                helper="sh")  # fmt: skip

    ask(False)
    if allowed:
        ask(True)
        return
    with pytest.raises(UsageError, match="user_allow_other") as caught:
        ask(True)
    assert str(configuration) in str(caught.value)


def test_no_libfuse() -> None:
    """Said by the package's name; in a process of its own, because libfuse is loaded once."""
    done = subprocess.run(
        [sys.executable, "-c", "from cloudmount.mounts.libfuse import load; load()"],
        env={"FUSE_LIBRARY_PATH": "/no/libfuse.so.2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "CloudMountError: a drive needs libfuse 2" in done.stderr
    assert "install the package libfuse2" in done.stderr


@pytest.mark.mount
def test_what_libfuse_says_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CloudMountError, match=r"can't be mounted: .*No such file"):
        libfuse.Session(libfuse.load(), str(tmp_path / "missing"), ["ro"], ["max_background=1"], {})
    with pytest.raises(CloudMountError, match=r"can't be served: .*no-such-option"):
        libfuse.Session(libfuse.load(), str(tmp_path), ["ro"], ["no-such-option"], {})
    assert capfd.readouterr().err == ""
    assert not tmp_path.is_mount()
