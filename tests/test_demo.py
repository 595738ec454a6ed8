"""`make demo`'s own run: a guest boots from its mounted backup."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.boot
@pytest.mark.mount
@pytest.mark.timeout(400)
def test_a_guest_boots_from_the_drive(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "demo/run.py"), "--folder", str(tmp_path / "demo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "serial line: GUEST-READY" in done.stdout
    share = re.search(r"ever fetched \((\d+\.\d) %\)", done.stdout)
    assert share is not None and float(share[1]) < 15
    stored = re.findall(r"([\d.]+) MiB stored", done.stdout)
    assert len(stored) == 2 and float(stored[1]) < 0.05 * float(stored[0])
