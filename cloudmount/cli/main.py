"""The program `cloudmount`: finding a command, and how every command ends.

Decided here and only here: exit codes on the way out (`errors.py` has them), the one line an
error is told in, and what signals do. Commands are imported when they are named. The process
ends by `os._exit`: threads that a dead store holds must not keep it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from cloudmount import __version__
from cloudmount.errors import CloudMountError

COMMANDS = ("init", "backup", "snapshots", "show", "ls", "restore", "check", "mount", "umount", "status")
INTERRUPTED = 130


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: Any = importlib.import_module(f"cloudmount.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cloudmount")
def program() -> None:
    """Backups of virtual machine disks that appear as a drive, and boot from it.

    The repository is given by --repo or CLOUDMOUNT_REPO; the passphrase is asked for, or given by
    --passphrase-file or CLOUDMOUNT_PASSPHRASE. A recovery phrase is accepted wherever a passphrase is.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    verbose = "--verbose" in (arguments if arguments is not None else sys.argv)
    try:
        result = program.main(arguments, prog_name="cloudmount", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        _tell(error.format_message(), error.ctx)
        return 2
    except click.ClickException as error:
        _tell(error.format_message())
        return 2
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted; what was stored stays, run the same command again to go on")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output left
        return 0
    except CloudMountError as error:
        if verbose:
            traceback.print_exc()
        _tell(str(error))
        return error.exit_code
    except MemoryError:
        _tell("out of memory")
        return 1
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _tell(f"unforeseen: {type(error).__name__}: {error} (--verbose shows where; please report it)")
        return 1


def _tell(message: str, context: click.Context | None = None) -> None:
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    line = " ".join(message.split())
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(f"cloudmount: error: {line}{hint}", file=sys.stderr, flush=True)


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape" if sys.platform != "win32" else "replace")
    code = run()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    os._exit(code)
