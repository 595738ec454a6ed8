"""What a Hyper-V host can do: a script that tries it there, and what its result means here.

Decided here and only here: the form of the result (JSON, as `preflight.ps1` writes it), which of its steps
must have gone well for which way of booting, where the result is kept, and what people are told of it. A
result is somebody else's file: everything in it is checked, and nothing is used but the fields known here.
**Not run on Windows.** Belongs to one thread.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cloudmount import __version__
from cloudmount.app.places import make_folders, state_folder
from cloudmount.boot.hyperv.literals import script
from cloudmount.boot.hyperv.machine import Via
from cloudmount.errors import CloudMountError, TargetExistsError, UnreadableInputError

FORMAT = "cloudmount-hyperv-preflight"
VERSION = 1
SCRIPT = "preflight.ps1"
RESULT = "hyperv-preflight.json"
REPORTS = (
    "https://github.com/winfsp/winfsp/issues/651",
    "https://github.com/Ceiridge/WinFsp-MemFs-Extended/issues/18",
)
"""Two public reports of Windows crashing with a VHDX on a drive of this kind. Both wrote to the drive."""
STEPS = (
    "windows", "hyper-v", "drive", "test-vhd", "mount-vhd", "new-vhd", "start-vm", "copy", "set-vhd",
    "start-local",
)  # fmt: skip
NEEDED = ("hyper-v", "drive", "new-vhd", "start-vm", "copy", "set-vhd")
"""What must have gone well before a VM is started from the drive; `test-vhd` and `mount-vhd` are not used."""
_HOME = {98, 99, 100, 101}
"""Windows Home, by OperatingSystemSKU: PRODUCT_CORE_N, _COUNTRYSPECIFIC, _SINGLELANGUAGE, PRODUCT_CORE."""
_MOST_FILE = 1 << 20
_MOST_TEXT = 4000
_MOST_SECONDS = 1e6
_WHPX = (
    "Windows Home has no Hyper-V role. QEMU runs the machine there with WHPX: turn on the Windows feature "
    "'Windows Hypervisor Platform', install QEMU for Windows, and see docs/windows.md"
)


class Step(NamedTuple):
    """One thing that was tried. `ok` is None when it was not tried, or (`tried`) did not end; seconds."""

    name: str
    tried: bool
    ok: bool | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Result:
    """What `preflight.ps1` found on `host`."""

    host: str
    time: str
    windows: str
    sku: int | None
    administrator: bool
    whpx: bool | None
    finished: bool
    vhdx: str
    left: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def crashed_at(self) -> str | None:
        """The step that began and never ended."""
        return next((s.name for s in self.steps if s.tried and s.ok is None), None)

    @property
    def is_home(self) -> bool:
        """Whether this Windows has no Hyper-V role."""
        return self.sku in _HOME

    @property
    def via(self) -> Via:
        """The fastest way of booting that it proves."""
        good = {s.name for s in self.steps if s.ok}
        proved = self.finished and self.crashed_at is None and good.issuperset(NEEDED)
        return "drive" if proved else "local"

    @property
    def ok(self) -> bool:
        """Whether Hyper-V can be used on that host at all, as far as was tried."""
        return any(s.name == "hyper-v" and s.ok for s in self.steps)

    def kept(self) -> dict[str, Any]:
        """As JSON; of the form of `preflight.ps1`."""
        windows = {"caption": self.windows, "sku": self.sku}
        plain = ("host", "time", "administrator", "whpx", "finished", "vhdx")
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: getattr(self, name) for name in plain},
            "windows": windows,
            "left": list(self.left),
            "steps": [step._asdict() for step in self.steps],
        }

    def findings(self) -> list[str]:
        """What it means, for people."""
        found = []
        crashed = self.crashed_at
        failed = [s for s in self.steps if s.ok is False]
        if self.is_home:
            found.append(_WHPX + (" (that feature is on)" if self.whpx else ""))
        elif not self.ok:
            found.append(
                "Hyper-V can't be used there: turn on the Windows feature 'Hyper-V' with its management "
                "tools, and run the script as an administrator"
            )
        if crashed is not None or not self.finished:
            found.append(
                f"the computer, or the script, ended in {crashed or 'between two steps'}: it most likely "
                f"crashed, as in {REPORTS[0]} and {REPORTS[1]}. Don't boot from the drive there; "
                "'hyperv boot --via local' needs none. A VM and a folder hyperv-preflight-... may be left"
            )
        found += [f"{step.name} failed: {step.error or 'it did not say why'}" for step in failed]
        if not self.administrator:
            found.append("the script was not run as an administrator, which Hyper-V wants")
        if self.via == "drive":
            found.append(
                f"a VM can start from the drive on {self.host} and go over to local copies while it runs: "
                f"'hyperv boot --via auto' takes that way there. Still, read {REPORTS[0]} and {REPORTS[1]}"
            )
        elif self.ok:
            found.append(
                "starting from the drive is not proved: 'hyperv boot --via auto' copies the disks first"
            )
        found += [f"left there, to be removed by hand: {text}" for text in self.left]
        return found


def write_script(output: Path) -> Path:
    """Put `preflight.ps1` into the folder `output`, which is made when missing. `TargetExistsError` when
    something else is there."""
    data = script(SCRIPT, {"Format": FORMAT, "Version": VERSION, "ProgramVersion": __version__})
    path = output / SCRIPT
    try:
        output.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(data)
        if path.read_bytes() != data:
            raise TargetExistsError(
                f"{path} is there already and is another; remove it, or choose another folder"
            )
    except OSError as error:
        raise TargetExistsError(f"{path} can't be written: {error.strerror}") from None
    return path


def result_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the last result that was read is kept."""
    return state_folder(environ) / RESULT


def read_result(path: Path) -> Result:
    """The result in a file: UTF-8, or UTF-16 as PowerShell's `>` writes. `UnreadableInputError` says what is
    wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_FILE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UnreadableInputError(f"{path} can't be read: {why}") from None
    if len(data) > _MOST_FILE:
        raise UnreadableInputError(f"{path} is longer than any result of {SCRIPT}")
    try:
        return _result(json.loads(_text(data), parse_constant=_no_constant))
    except _ForeignError as error:
        raise UnreadableInputError(f"{path} is no result of {SCRIPT}: {error}") from None
    except (ValueError, RecursionError):
        raise UnreadableInputError(f"{path} is no result of {SCRIPT}: it is not JSON") from None


def keep(result: Result, environ: Mapping[str, str] = os.environ) -> Path:
    """Keep it for `hyperv boot --via auto`, in the place of an older one."""
    path = result_file(environ)
    make_folders(environ)
    try:
        fd, name = tempfile.mkstemp(prefix=RESULT + ".", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(result.kept(), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise CloudMountError(f"{path} can't be written: {error.strerror}") from None
    return path


def kept_result(environ: Mapping[str, str] = os.environ) -> Result | None:
    """The result that is kept here; None without one, `UnreadableInputError` when it was spoiled."""
    path = result_file(environ)
    return read_result(path) if path.exists() else None


def _text(data: bytes) -> str:
    """A file's text: UTF-8, marked or not, or UTF-16 with its mark, as PowerShell's `>` writes it."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


class _ForeignError(Exception):
    """Why a JSON document is no result."""


def _no_constant(name: str) -> NoReturn:
    raise _ForeignError(f"{name} is no number")


def _field(value: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """The field, of one of `kinds`; `bool` is no `int` here. Texts are cut, halves of surrogate pairs `?`."""
    found = value.get(name)
    if type(found) not in kinds:
        raise _ForeignError(f"{name} is {'missing' if name not in value else 'of another kind'}")
    if isinstance(found, str):
        return found[:_MOST_TEXT].encode("utf-8", "replace").decode()
    return found


_NONE = type(None)


def _result(value: Any) -> Result:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _ForeignError(f"its format is not {FORMAT}")
    if _field(value, "version", int) != VERSION:
        raise _ForeignError(f"it is of version {value['version']}, and this program knows {VERSION}")
    windows = _field(value, "windows", dict)
    sku = _field(windows, "sku", int, _NONE)
    steps = tuple(_step(entry) for entry in _field(value, "steps", list)[: 2 * len(STEPS)])
    names = [step.name for step in steps]
    if len(set(names)) != len(names):
        raise _ForeignError("a step is in it twice")
    left = [text for text in _field(value, "left", list) if isinstance(text, str)]
    host = _field(value, "host", str)
    if not host:
        raise _ForeignError("it does not tell of which computer it is")
    return Result(
        host=host[:255],
        time=_field(value, "time", str)[:40],
        windows=_field(windows, "caption", str, _NONE) or "",
        sku=sku if sku is not None and 0 <= sku < 1 << 32 else None,
        administrator=_field(value, "administrator", bool),
        whpx=_field(value, "whpx", bool, _NONE),
        finished=_field(value, "finished", bool),
        vhdx=_field(value, "vhdx", str, _NONE) or "",
        left=tuple(_field({"left": text}, "left", str) for text in left[:10]),
        steps=steps,
    )


def _step(value: Any) -> Step:
    if not isinstance(value, dict):
        raise _ForeignError("a step is no table")
    name = _field(value, "name", str)
    if name not in STEPS:
        raise _ForeignError(f"the step {name[:40]!r} is not known")
    tried, ok = _field(value, "tried", bool), _field(value, "ok", bool, _NONE)
    if ok is not None and not tried:
        raise _ForeignError(f"{name} was not tried, and has an outcome")
    seconds = _field(value, "seconds", int, float, _NONE)
    if seconds is not None and not 0 <= seconds <= _MOST_SECONDS:
        raise _ForeignError(f"{name} took {seconds!r} seconds")
    return Step(name, tried, ok, seconds, _field(value, "error", str, _NONE))
