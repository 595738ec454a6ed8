"""`cloudmount console`."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
from collections.abc import Iterator

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Output
from cloudmount.errors import CloudMountError, NotFoundError

ESCAPE = b"\x1d"
"""Ctrl-]."""
_BEFORE = 2048
"""Bytes shown of what was said before."""


@click.command(short_help="A virtual machine's serial line, here.")
@output_options
@click.argument("name", metavar="VM")
def command(out: Output, name: str) -> None:
    """Show the serial line of VM on this terminal, and send it what is typed. Ctrl-] leaves; the VM goes on.

    Without a terminal standard input is sent, and what the guest says shown until the VM is off.
    """
    from cloudmount.app.vms import find_vm
    from cloudmount.boot.folder import SERIAL

    vm = find_vm(name)
    if not vm.alive:
        said = f"what it said is in {vm.folder.serial_log}"
        raise NotFoundError(f"{vm.name} is off ({vm.state_text}); {said}")
    try:
        line = vm.folder.connect(SERIAL)
    except OSError as error:
        raise CloudMountError(f"{vm.name} has no serial line now: {error.strerror}") from None
    out.say(f"The serial line of {vm.name}; Ctrl-] leaves it.")
    with line, _raw():
        with contextlib.suppress(OSError), vm.folder.serial_log.open("rb") as before:
            before.seek(max(0, vm.folder.serial_log.stat().st_size - _BEFORE))
            _show(before.read())
        _relay(line)
    out.say("")


def _relay(line: socket.socket) -> None:
    with selectors.DefaultSelector() as ready:
        ready.register(line, selectors.EVENT_READ)
        with contextlib.suppress(OSError):  # an input that can't be waited for, such as a file
            ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is line:
                    said = line.recv(4096)
                    if not said:
                        return
                    _show(said)
                    continue
                typed = os.read(0, 4096)
                if not typed:
                    ready.unregister(0)
                before, left, _ = typed.partition(ESCAPE) if os.isatty(0) else (typed, b"", b"")
                line.sendall(before)
                if left:
                    return


def _show(said: bytes) -> None:
    """The guest's own bytes, unchanged: it speaks to the terminal."""
    sys.stdout.flush()
    while said:
        said = said[os.write(1, said) :]


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The terminal hands over each key as it is typed, while the block runs."""
    if not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed already is not lost
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
