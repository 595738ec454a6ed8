"""QEMU's command line for a machine.

Decided here and only here: which hardware a machine is given, and that a read or write that fails stops the
machine instead of failing in the guest. How its disks are opened is decided in `blocknodes`. Pure.
"""

from __future__ import annotations

import json
from typing import Any

from cloudmount.boot.accelerator import Accelerator
from cloudmount.boot.blocknodes import disk_name, nodes
from cloudmount.boot.firmware import uefi
from cloudmount.boot.folder import AGENT, CONTROL, SCREEN, SERIAL, SERIAL_LOG, VARS
from cloudmount.boot.machine import BUSES, MIB, Disk, Machine, pauses

_AGENT_NAME = "org.qemu.guest_agent.0"
_SATA_PORTS = 6


def options(machine: Machine, accelerator: Accelerator, qmp: int) -> list[str]:
    """QEMU's options, to be run in the VM's folder; it speaks QMP over the open socket `qmp`."""
    chipset = "q35,smm=on" if machine.secure_boot else "pc"
    found = [
        "-nodefaults", "-no-user-config", "-machine", chipset, "-accel", accelerator,
        "-cpu", "host" if accelerator == "kvm" else "max",
        "-smp", str(machine.cpus), "-m", f"{machine.memory // MIB}M",
        "-rtc", "base=localtime" if machine.local_clock else "base=utc",
        "-no-shutdown",  # so that a guest that powers off is seen doing it
        "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=control,path={CONTROL},server=on,wait=off",
        "-mon", "chardev=control,mode=control",
        "-chardev", f"socket,id=serial,path={SERIAL},server=on,wait=off,logfile={SERIAL_LOG},logappend=on",
        "-serial", "chardev:serial",
        "-device", "VGA", "-display", f"vnc=unix:{SCREEN}",
        "-device", "qemu-xhci", "-device", "usb-tablet",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={AGENT},server=on,wait=off",
        "-device", f"virtserialport,chardev=agent,name={_AGENT_NAME}",
    ]  # fmt: skip
    if machine.firmware == "uefi":
        found += _uefi(machine.secure_boot)
    found += _disks(machine)
    return found + _network(machine)


def _uefi(secure_boot: bool) -> list[str]:
    code, _ = uefi(secure_boot=secure_boot)
    found = []
    if secure_boot:
        found += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    for unit, (file, read_only) in enumerate(((str(code), "on"), (VARS, "off"))):
        found += ["-drive", f"if=pflash,format=raw,unit={unit},readonly={read_only},file={file}"]
    return found


def _disks(machine: Machine) -> list[str]:
    found: list[str] = []
    order = sorted(range(len(machine.disks)), key=lambda number: not machine.disks[number].bootable)
    on_bus = dict.fromkeys(BUSES, 0)
    for number, disk in enumerate(machine.disks):
        for node in nodes(number, disk):
            found += ["-blockdev", json.dumps(node)]
        count = on_bus[disk.bus]
        on_bus[disk.bus] += 1
        found += _controller(disk, count, machine.secure_boot)
        device = {
            **_place(disk, count),
            "drive": disk_name(number),
            "bootindex": order.index(number),
            "logical_block_size": disk.logical_sector,
            "physical_block_size": disk.physical_sector,
        }
        if pauses(disk.bus):
            device |= {"rerror": "stop", "werror": "stop"}
        found += ["-device", json.dumps(device)]
    return found


def _controller(disk: Disk, count: int, secure_boot: bool) -> list[str]:
    """What the disk, number `count` on its bus, needs beside."""
    if disk.bus == "sata" and count % _SATA_PORTS == 0:
        return ["-device", f"ich9-ahci,id=sata{count // _SATA_PORTS}"]
    if disk.bus == "sas" and count == 0:
        return ["-device", "mptsas1068,id=sas"]
    if disk.bus == "ide" and secure_boot and count == 0:
        return ["-device", "piix3-ide,id=ide"]
    return []


def _place(disk: Disk, count: int) -> dict[str, Any]:
    if disk.bus == "virtio":
        return {"driver": "virtio-blk-pci"}
    if disk.bus == "nvme":
        return {"driver": "nvme", "serial": f"CLOUDMOUNT{count}"}
    if disk.bus == "sas":
        return {"driver": "scsi-hd", "bus": "sas.0", "scsi-id": count}
    if disk.bus == "sata":
        return {"driver": "ide-hd", "bus": f"sata{count // _SATA_PORTS}.{count % _SATA_PORTS}"}
    return {"driver": "ide-hd", "bus": f"ide.{count // 2}", "unit": count % 2}


def _network(machine: Machine) -> list[str]:
    if machine.network == "none":
        return ["-nic", "none"]
    found = []
    for number, mac in enumerate(machine.macs or ("",)):
        card: dict[str, Any] = {"driver": "e1000e", "netdev": f"net{number}"}
        if mac:
            card["mac"] = mac
        found += ["-netdev", f"user,id=net{number}", "-device", json.dumps(card)]
    return found
