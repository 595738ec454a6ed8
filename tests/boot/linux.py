"""A Linux guest for UEFI: the demo's disk, with another program on it.

Decided here and only here: what that guest does. It reads a part of its first disk (IDE), then one of its
second (virtio), saying before each `READING DEVICE` and after it `READ DEVICE <sha256>`; then `ERRORS
<number>` of lines in which its kernel tells of a disk that failed or was late. Then it answers as the guest
agent does, which is all that tells that it is ready; a line on its serial port powers it off.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from demo.build_guest import INIT, MODULES, build

MIB = 1 << 20
START_MIB, COUNT_MIB = 66, 28
"""What is read of the first disk: the beginning of its NTFS. Of the second: as much, from 0."""

_ERRORS = "i/o error|emask|timeout|timed out|failed command|blk_update|hung|lockup"
_PROGRAM = f"""\
tries=0
until [ -b /dev/sda ] && [ -b /dev/vda ]; do
    tries=$((tries + 1)); [ $tries -le 300 ] || finish GUEST-FAILED no disks
    usleep 100000
done
part() {{
    echo READING $1
    sum=$(dd if=/dev/$1 bs=1M skip=$2 count={COUNT_MIB} 2>/dev/null | sha256sum)
    echo READ $1 ${{sum%% *}}
}}
part sda {START_MIB}
part vda 0
dmesg | grep -iE '{_ERRORS}'
echo ERRORS $(dmesg | grep -ciE '{_ERRORS}')
port=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name)
port=${{port%/name}}
exec 3<>/dev/${{port##*/}}
while read -r question <&3; do
    number=${{question##*: }}
    printf '{{"return": %s}}\\n' "${{number%%[!0-9]*}}" >&3
done &
read line </dev/ttyS0
finish GUEST-OFF
"""


def build_disks(folder: Path) -> tuple[Path, Path, dict[str, str]]:
    """Its two disks, and the SHA-256 of what is read of each, by device."""
    head, _, _ = INIT.partition("tries=0")
    system, data = folder / "system.img", folder / "data.img"
    build(system, data_mib=0, init=head + _PROGRAM, modules=(*MODULES, "virtio_console"))
    data.write_bytes(random.Random(7).randbytes(COUNT_MIB * MIB))
    sums = {}
    for device, path, start in (("sda", system, START_MIB), ("vda", data, 0)):
        with path.open("rb") as file:
            file.seek(start * MIB)
            sums[device] = hashlib.sha256(file.read(COUNT_MIB * MIB)).hexdigest()
    return system, data, sums
