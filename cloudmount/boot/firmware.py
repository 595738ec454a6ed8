"""A machine's firmware: SeaBIOS, which QEMU brings, or UEFI by the package ovmf.

Decided here and only here: where the UEFI lies on this computer, and that each VM has its variables for
itself. Stateless.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cloudmount.errors import CloudMountError

_FOLDERS = (Path("/usr/share/OVMF"), Path("/usr/share/edk2/ovmf"), Path("/usr/share/edk2-ovmf/x64"))
_CODE = ("OVMF_CODE_4M.fd", "OVMF_CODE.4m.fd", "OVMF_CODE.fd")
_SECURE_CODE = ("OVMF_CODE_4M.secboot.fd", "OVMF_CODE.secboot.4m.fd", "OVMF_CODE.secboot.fd")
_SECURE_VARS = {"OVMF_VARS_4M.fd": "OVMF_VARS_4M.ms.fd"}
"""Variables that hold Microsoft's keys already, by those that hold none."""


def uefi(*, secure_boot: bool = False) -> tuple[Path, Path]:
    """The UEFI's code, and the template of its variables; `CloudMountError` when there is none here."""
    for folder in _FOLDERS:
        for name in _SECURE_CODE if secure_boot else _CODE:
            code, variables = folder / name, folder / name.replace("CODE", "VARS").replace(".secboot", "")
            if secure_boot:
                variables = variables.with_name(_SECURE_VARS.get(variables.name, variables.name))
            if code.exists() and variables.exists():
                return code, variables
    kind = "UEFI with secure boot" if secure_boot else "UEFI"
    raise CloudMountError(f"a {kind} machine needs its firmware: install the package ovmf")


def give_variables(target: Path, *, secure_boot: bool = False) -> None:
    """Put the variables of a new machine at `target`."""
    shutil.copyfile(uefi(secure_boot=secure_boot)[1], target)
    target.chmod(0o600)
