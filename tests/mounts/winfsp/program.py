"""`cloudmount` as on Windows, with the double below: for tests of its commands.

python -m tests.mounts.winfsp.program ARGUMENTS
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from cloudmount.cli.main import run
from cloudmount.mounts import letters, lifecycle
from tests.mounts.mounting import within
from tests.mounts.winfsp.mounting import windows

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(letters, "WINDOWS", True)
        for bound in ("END_SECONDS", "GRACE_SECONDS"):  # what happens, not how quickly
            patch.setattr(lifecycle, bound, 60.0)
        patch.setattr(letters, "end_process", lambda record, _: within(100, lambda: not record.alive))
        with windows(Path(folder), patch):
            code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
