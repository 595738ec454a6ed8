"""Binary structures declared once: fields, asserted size, spec section.

A structure is a frozen dataclass deriving from `Record`, its fields annotated
with a `struct` code, decorated with `record(size=..., spec=...)`:

    @record(size=16, spec="[MS-VHDX] 2.2.1")
    class Thing(Record):
        signature: Annotated[bytes, "8s"]
        count: Annotated[int, "Q"]

Decided here and only here: how a declared structure becomes bytes. Values are
not validated (that belongs to the reader of the format); only lengths are.
Pure; safe on any thread. Standard library only.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform, get_type_hints

_R = TypeVar("_R", bound="Record")


class FieldInfo(NamedTuple):
    """One declared field: its name, byte offset, byte length and `struct` code."""

    name: str
    offset: int
    length: int
    code: str


class Record:
    """A fixed-size binary structure. See the module docstring for declaring one."""

    SIZE: ClassVar[int]
    SPEC: ClassVar[str]
    FIELDS: ClassVar[tuple[FieldInfo, ...]]
    _struct: ClassVar[struct.Struct]

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """The structure at `offset` bytes into `data`; `ValueError` when it is cut short."""
        if offset < 0 or len(data) - offset < cls.SIZE:
            raise ValueError(f"{cls.__name__} ({cls.SPEC}) needs {cls.SIZE} bytes at offset {offset}")
        return cls(*cls._struct.unpack_from(data, offset))

    def pack(self) -> bytes:
        """This structure as exactly `SIZE` bytes; `ValueError` when a value doesn't fit."""
        values = [getattr(self, f.name) for f in self.FIELDS]
        for f, value in zip(self.FIELDS, values, strict=True):
            if f.code.endswith("s") and len(value) != f.length:
                raise ValueError(f"{type(self).__name__}.{f.name} must be {f.length} bytes, not {len(value)}")
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  # record() makes it a dataclass


@dataclass_transform(frozen_default=True)
def record(*, size: int, spec: str, endian: str = "<") -> Callable[[type[_R]], type[_R]]:
    """Declare a `Record` of `size` bytes (asserted), described in `spec`, little-endian unless said."""

    def declare(cls: type[_R]) -> type[_R]:
        made = dataclasses.dataclass(frozen=True)(cls)
        hints = get_type_hints(cls, include_extras=True)
        codes = [(f.name, hints[f.name].__metadata__[0]) for f in dataclasses.fields(made)]  # type: ignore[arg-type]  # made is one; _R can't say so
        made._struct = struct.Struct(endian + "".join(code for _, code in codes))
        made.SIZE, made.SPEC = size, spec
        infos, offset = [], 0
        for name, code in codes:
            length = struct.calcsize(endian + code)
            infos.append(FieldInfo(name, offset, length, code))
            offset += length
        made.FIELDS = tuple(infos)
        assert made._struct.size == size, f"{cls.__name__}: {made._struct.size} bytes declared, not {size}"
        return made

    return declare
