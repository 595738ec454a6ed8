"""A guest of 249 bytes for a BIOS, which is ready in less than a second of emulation.

Decided here and only here: what it does. It says `tiny login: ` on its serial line, then obeys letters there,
answering with one and a line feed:

    r   the first letter of the next MiB of its disk, from 1 on; `!` when it could not be read
    wX  X into sector 5 of its disk, flushed: answers w
    d   the letter in sector 5
    a   from now on its power button is obeyed: answers a
    p   powers off

`SOURCE` is its program in the language of GNU as:
`as --32 -o t.o t.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o t.bin t.o`.
"""

from __future__ import annotations

import random
from pathlib import Path

MIB = 1 << 20

SOURCE = """
    .code16
    .org 0
start:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    movb %dl, drive
    movw $hello, %si
say:
    lodsb
    testb %al, %al
    jz next
    call put
    jmp say
next:
    call get
    cmpb $'p', %al
    je off
    cmpb $'a', %al
    je obey
    cmpb $'r', %al
    je read
    cmpb $'w', %al
    je write
    cmpb $'d', %al
    jne next
    movb $0x42, %ah          # d: the letter of sector 5
    movl $5, lba
    jmp ask
obey:
    movw $0x602, %dx         # a: enable the power button, which `get` looks at
    movw $0x100, %ax
    outw %ax, %dx
    movb $'a', %al
    jmp tell
read:
    movb $0x42, %ah          # r: the first letter of the next MiB
    movl at, %ebx
    movl %ebx, lba
    addl $2048, at
ask:
    call disk
    jc failed
    movb 0x8000, %al
    jmp tell
write:
    call get                 # w: the letter that follows, into sector 5, and flush
    movb %al, 0x8000
    movl $5, lba
    movb $0x43, %ah
    xorb %al, %al
    call disk
    jc failed
    movw $0x1f7, %dx
    movb $0xe7, %al
    outb %al, %dx
busy:
    inb %dx, %al
    testb $0x80, %al
    jnz busy
    movb $'w', %al
    jmp tell
failed:
    movb $'!', %al
tell:
    call put
    movb $'\\n', %al
    call put
    jmp next
off:
    movw $0x604, %dx
    movw $0x2000, %ax
    outw %ax, %dx
    hlt
disk:
    movb drive, %dl
    movw $packet, %si
    int $0x13
    ret
put:
    movb %al, %bl
    movw $0x3fd, %dx
0:  inb %dx, %al
    testb $0x20, %al
    jz 0b
    movw $0x3f8, %dx
    movb %bl, %al
    outb %al, %dx
    ret
get:
    movw $0x600, %dx
    inw %dx, %ax
    testb $1, %ah
    jnz off
    movw $0x3fd, %dx
    inb %dx, %al
    testb $1, %al
    jz get
    movw $0x3f8, %dx
    inb %dx, %al
    ret
packet:
    .byte 16, 0
    .word 1, 0x8000, 0
lba: .long 0, 0
at: .long 2048
drive: .byte 0
hello: .asciz "tiny login: "
end:
"""

PROGRAM = bytes.fromhex(
    "31c08ed88ec08ed0bc007c8816eb7cbeec7cac84c07405e89600ebf6e8a2003c70747b3c6174193c7274203c77743b3c"
    "6475e9b44266c706df7c05000000eb20ba0206b80001efb061eb48b442668b1ee77c66891edf7c668106e77c00080000"
    "e84300722ca00080eb29e85400a2008066c706df7c05000000b44330c0e82600720fbaf701b0e7eeeca88075fbb077eb"
    "02b021e81a00b00ae81500e97effba0406b80020eff48a16eb7cbed77ccd13c388c3bafd03eca82074fbbaf80388d8ee"
    "c3ba0006edf6c40175d4bafd03eca80174efbaf803ecc310000100008000000000000000000000000800000074696e79"
    "206c6f67696e3a2000"
)


LEAVING = PROGRAM.replace(bytes.fromhex("e8a200"), bytes.fromhex("b07090"), 1)
"""The same, which takes for its first letter `p` instead of what comes: it greets and powers itself off."""
HANGING = bytes.fromhex("ebfe")
"""One that says and does nothing."""


def letter(number: int) -> str:
    """What MiB `number` begins with."""
    return chr(ord("A") + number % 26)


def tiny_disk(
    path: Path, mib: int = 16, seed: int = 1, size: int | None = None, program: bytes = PROGRAM
) -> Path:
    """The guest's disk, of random bytes: nothing of it can be had but by reading it. Zeros follow up to
    `size` MiB: a partition above 1 GiB is not fetched ahead of a boot."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(letter(number).encode() + rng.randbytes(MIB - 1))
        file.seek(0)
        file.write(program.ljust(446, b"\0"))
        start, sectors = 2048, ((size or mib) - 1) * 2048
        file.write(b"\x80" + bytes(3) + b"\x83" + bytes(3))
        file.write(start.to_bytes(4, "little") + sectors.to_bytes(4, "little"))
        file.write(bytes(48) + b"\x55\xaa")
        file.seek(5 * 512)
        file.write(b"-")
        file.truncate((size or mib) * MIB)
    return path
