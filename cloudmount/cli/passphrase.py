"""Where a passphrase comes from: a file, the environment, or the terminal.

Decided here and only here: which of them counts (in that order), what is stripped, and what is
asked. A prompt goes to the terminal itself (/dev/tty), never to stdin or stdout, so that pipes and
`--json` work, and is never echoed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from cloudmount.errors import UnreadableInputError, UsageError
from cloudmount.system import text_of_file

VARIABLE = "CLOUDMOUNT_PASSPHRASE"
LONGEST = 64 << 10
TRIES = 3
"""How often a person may mistype."""


def from_elsewhere(file: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The passphrase of `file`, else of the environment; None when a person is to be asked."""
    if file is not None:
        text = _from_file(file)
        if not text:
            raise UsageError(f"the passphrase file {file} is empty")
        return text
    return environ.get(VARIABLE) or None


def _from_file(file: str) -> str:
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(LONGEST + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UnreadableInputError(f"the passphrase file {file} can't be read: {why}") from None
    if len(data) > LONGEST:
        raise UnreadableInputError(f"{file} is longer than any passphrase: is it the right file?")
    text = text_of_file(data)
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def ask(prompt: str = "Passphrase or recovery phrase: ") -> str:
    """What a person types at the terminal; `UsageError` when there is none."""
    import getpass

    _check_terminal()
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise UsageError("no passphrase was typed") from None
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the prompt's line is still open
        raise


def ask_line(prompt: str) -> str:
    """A line that is no secret, typed at the terminal; `UsageError` when there is none."""
    _check_terminal()
    try:
        if sys.platform == "win32":
            return input(prompt).strip()
        with open("/dev/tty", "r+b", buffering=0) as terminal:
            terminal.write(prompt.encode())
            text = os.fsdecode(terminal.readline(LONGEST)).strip()
    except EOFError:
        text = ""
    if not text:
        raise UsageError("nothing was typed")
    return text


def ask_new() -> str:
    """A new passphrase, typed twice."""
    for _ in range(TRIES):
        first = ask("Passphrase for the new repository: ")
        if not first:
            print("It must not be empty.", file=sys.stderr)
        elif ask("The same again: ") == first:
            return first
        else:
            print("These were not the same.", file=sys.stderr)
    raise UsageError("no passphrase was typed twice the same")


def _check_terminal() -> None:
    """Python's own prompt falls back to an echoed stdin; ours does not."""
    if sys.platform == "win32":
        there = sys.stdin is not None and sys.stdin.isatty()
    else:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
            there = True
        except OSError:
            there = False
    if not there:
        raise UsageError(f"no passphrase: give --passphrase-file, set {VARIABLE}, or run this in a terminal")
