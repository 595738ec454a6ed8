"""Pictures of a machine's screen.

Decided here and only here: their file's name in the VM's folder, and that it is no error when none can be
taken.
Belongs to the thread of the line.
"""

from __future__ import annotations

import contextlib

from cloudmount.boot.qmp import Qmp, QmpError

PICTURE = "screen.png"


def take_picture(qmp: Qmp) -> bool:
    """Put what the screen shows now into the file `PICTURE` of the machine's folder; whether that worked."""
    with contextlib.suppress(QmpError):
        qmp.execute("screendump", filename=PICTURE, format="png")
        return True
    return False
