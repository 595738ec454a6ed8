"""Where a Linux service's credentials lie.

Decided here and only here: they are one JSON object of environment variables, handed over by systemd in a
file that only the service sees; at rest it is encrypted by `systemd-creds` (with the computer's TPM, or the
key in /var/lib/systemd), or a file of mode 0600. They go to `systemd-creds` through a pipe, never on a
command line and never into the unit. Belongs to one thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.service.unit import CREDENTIAL

_KEPT = re.compile("AZURE_(STORAGE|CLIENT|TENANT|AUTHORITY)_[A-Z_]+|(HTTPS?|NO|ALL)_PROXY", re.IGNORECASE)
_SECONDS = 60
MOST = 1 << 20


def worth_keeping(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a store in Azure is reached with."""
    return {name: value for name, value in environ.items() if value and _KEPT.fullmatch(name)}


def as_bytes(variables: Mapping[str, str]) -> bytes:
    """The credential's content."""
    return json.dumps(variables).encode("ascii")


def read(file: Path) -> dict[str, str]:
    """The variables in a credential that was handed over; `UnreadableInputError` when it is none."""
    try:
        with file.open("rb") as stream:
            return parsed(stream.read(MOST))
    except OSError as error:
        raise UnreadableInputError(f"the credentials {file} can't be read: {error.strerror}") from None
    except ValueError:
        raise UnreadableInputError(f"{file} holds no credentials: install the service again") from None


def parsed(data: bytes) -> dict[str, str]:
    """The variables in a credential's content; `ValueError` when it is none."""
    value = json.loads(data)
    if not isinstance(value, dict) or not all(isinstance(v, str) and "\0" not in v for v in value.values()):
        raise ValueError("no credentials")
    return value


def encrypted(data: bytes) -> bytes:
    """`data` as `LoadCredentialEncrypted=` takes it, for this computer only. `CloudMountError` when
    `systemd-creds` is not there or can't."""
    program = shutil.which("systemd-creds")
    if program is None:
        raise CloudMountError("systemd-creds is not there (systemd 250 and later have it)")
    try:
        done = subprocess.run(
            [program, "encrypt", f"--name={CREDENTIAL}", "-", "-"],
            input=data,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CloudMountError(f"systemd-creds: {error}") from None
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        raise CloudMountError(f"systemd-creds can't encrypt here: {said[-1]}")
    return done.stdout
