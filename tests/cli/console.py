"""The console program as a user runs it, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("cloudmount"))
PASSPHRASE = "correct horse battery"


@dataclass
class Console:
    """Commands against one repository; caches and state lie under `home`."""

    home: Path
    repo: str
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a command sees."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CLOUDMOUNT_", "AZURE_", "XDG_"))}
        own = {
            "CLOUDMOUNT_REPO": self.repo,
            "CLOUDMOUNT_PASSPHRASE": PASSPHRASE,
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_STATE_HOME": str(self.home / "state"),
        }
        return {**clean, **own, **self.environ}

    def run(self, *arguments: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command; it must end with `code`, and never with a traceback."""
        done = subprocess.run(
            [PROGRAM, *arguments],
            env={**self.environment, **environ},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        told = f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, told
        assert "Traceback" not in done.stderr, told
        if code not in (0, 4, 9):
            errors = [line for line in done.stderr.splitlines() if line.startswith("cloudmount: error: ")]
            assert len(errors) == 1, told
        return done

    def json(self, *arguments: str, code: int = 0, **environ: str) -> Any:
        """The one JSON document of a command."""
        return json.loads(self.run(*arguments, "--json", code=code, **environ).stdout)
