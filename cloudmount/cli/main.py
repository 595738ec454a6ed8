"""The program `cloudmount`: finding a command, and how every command ends.

Decided here and only here: exit codes on the way out (`errors.py` has them), the one line an
error is told in, and what signals do. Commands are imported when they are named. The process
ends by `os._exit`: threads that a dead store holds must not keep it.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from cloudmount import __version__
from cloudmount.cli import output
from cloudmount.cli.output import plain
from cloudmount.errors import CloudMountError, UsageError
from cloudmount.system import ENDING, stream_encoding

COMMANDS = (
    "init",
    "backup",
    "snapshots",
    "show",
    "ls",
    "restore",
    "cp",
    "find",
    "versions",
    "check",
    "mount",
    "umount",
    "hydrate",
    "verify-local",
    "preflight",
    "boot",
    "drill",
    "vms",
    "stop",
    "console",
    "nbd",
    "hyperv",
    "service",
    "status",
)
INTERRUPTED = 130
GRACE_SECONDS = 5.0
"""How long a command may take to end after Ctrl-C."""
GO_ON = ("backup", "restore", "hydrate")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: Any = importlib.import_module(f"cloudmount.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cloudmount")
def program() -> None:
    """Backups of virtual machine disks that appear as a drive, and boot from it.

    The repository is given by --repo or CLOUDMOUNT_REPO; the passphrase is asked for, or given by
    --passphrase-file or CLOUDMOUNT_PASSPHRASE. A recovery phrase is accepted wherever a passphrase is.
    """


class _Interrupts:
    """SIGINT and SIGTERM (SIGBREAK): the first unwinds the command, and gets `GRACE_SECONDS` for it; a second
    ends the process at once."""

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> None:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and shells' background jobs
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            os._exit(INTERRUPTED)
        self._asked = True
        # Not threading.Thread: the interrupted code may hold one of its locks.
        _thread.start_new_thread(self._end, ())
        raise KeyboardInterrupt

    @staticmethod
    def _end() -> None:
        time.sleep(GRACE_SECONDS)
        _tell("interrupted")  # whatever was to be unwound waits for a store that is silent
        os._exit(INTERRUPTED)


def run(arguments: Sequence[str]) -> int:
    """Run a command; its exit code."""
    verbose = "--verbose" in arguments
    context: click.Context | None = None
    try:
        # Not `program.main`: it has own ideas of Ctrl-C and of readers that left.
        with program.make_context("cloudmount", list(arguments)) as context:
            result = program.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        told = getattr(error, "ctx", None) or context
        where = told.command_path if told is not None else "cloudmount"
        if told is context and context is not None and context.invoked_subcommand:
            where += f" {context.invoked_subcommand}"
        _tell(f"{_own_words(error.format_message())} (see '{where} --help')")
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        goes_on = any(a in GO_ON for a in arguments)
        _tell("interrupted" + ("; what is done stays: run the same command again, it goes on" * goes_on))
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output left
        return 0
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if isinstance(error, CloudMountError):
            _tell(str(error))
            return error.exit_code
        where = "" if verbose else " (--verbose shows where; please report it)"
        _tell(f"unforeseen: {type(error).__name__}: {error}{where}")
        return CloudMountError.exit_code


def _own_words(message: str) -> str:
    """A sentence of click's as our errors are: no capital, no full stop."""
    message = " ".join(message.split()).removesuffix(".")
    return message[:1].lower() + message[1:]


def _tell(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"cloudmount: error: {plain(message)}", file=sys.stderr, flush=True)


def _hush() -> None:
    """What Python itself would print of failures in threads and of doubtful code is not for users."""
    if "--verbose" not in sys.argv:
        logging.lastResort = None  # azure-identity tells each way that it tried
        threading.excepthook = lambda failed: None
        sys.unraisablehook = lambda failed: None
        if not sys.warnoptions:
            warnings.simplefilter("ignore")


def _open_streams() -> None:
    """Give descriptors 0 to 2 a file where there is none (`2>&-`): else the first file opened gets the
    number, and what is meant for stderr goes into it."""
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            output.stdout_closed = output.stdout_closed or number == 1
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _speak_utf8() -> None:
    """Start again in UTF-8 mode where the locale has another encoding.

    Names are kept as their bytes read as UTF-8. In Latin-1 or ASCII Python would read the same bytes
    as other text, and could not write the names that others backed up.
    """
    if sys.platform != "win32" and sys.getfilesystemencoding() != "utf-8":
        again = ["-P", "-X", "utf8", "-m", "cloudmount"]
        os.execv(sys.executable, [sys.executable, *again, *sys.argv[1:]])  # noqa: S606  # ourselves


def main() -> NoReturn:
    """The console script."""
    _open_streams()
    _speak_utf8()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A name that is not text in the terminal's encoding must not end a backup.
            encoding, errors = stream_encoding(stream)
            reconfigure(encoding=encoding, errors=errors)
    _Interrupts().install()
    _hush()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
