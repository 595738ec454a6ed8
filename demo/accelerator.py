"""Which accelerator QEMU can use on this machine, decided by trying it.

/dev/kvm being there and allowed is not enough: inside some virtual machines KVM opens, then
stops the guest at the firmware's first real-mode instruction with "KVM internal error" and
leaves it standing for ever. So QEMU is started once on the firmware alone. Measured: the
failure takes 0.07 s to show; a KVM that works costs the whole of TRIAL_SECONDS.
"""

import os
import subprocess
from pathlib import Path

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
TRIAL_SECONDS = 0.5


def accelerator() -> str:
    """`kvm` where it runs the firmware, else `tcg`: QEMU's own emulation, several times slower."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-m", "64"]
    command += ["-accel", "kvm", "-cpu", "max", "-display", "none"]
    command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as trial:
        try:
            _, said = trial.communicate(timeout=TRIAL_SECONDS)
        except subprocess.TimeoutExpired:
            trial.kill()
            _, said = trial.communicate()
            return "tcg" if "KVM internal error" in said else "kvm"
        return "tcg"  # it ended by itself: no KVM, or no QEMU that can use it
