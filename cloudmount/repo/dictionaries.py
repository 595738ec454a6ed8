"""The dictionaries that a repository's frames are compressed with (FORMAT.md section 6.10).

Decided here and only here: that each lies there twice, how it is found from its id, sealed and opened, and
that a writer uses only one of which both objects open. What a reader needs is loaded once, by whoever comes
first; failures of a store are nobody else's and are not remembered. Safe on any thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Set
from typing import TYPE_CHECKING, NamedTuple

from cloudmount.crypto.keyring import SEAL_BYTES, Keyring
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    CloudMountError,
    DamagedError,
    StoreRefusedError,
    StoreTimeoutError,
)
from cloudmount.repo.findings import Spot
from cloudmount.repo.names import DICTIONARIES, dictionary_id, dictionary_names
from cloudmount.repo.objects import open_single, seal_sections
from cloudmount.repo.payload import CODEC_BYTES, STORED, Dictionary
from cloudmount.repo.structures import HEADER_BYTES, KIND_DICTIONARY

if TYPE_CHECKING:
    from cloudmount.repo.repository import Repository

_LENGTH = 4
_AROUND = HEADER_BYTES + SEAL_BYTES + CODEC_BYTES + _LENGTH
MOST_NAMES = 100
"""So many names of dictionaries are looked at: whoever may create can add any number that don't open."""
KEPT_WRONG = 5.0
"""Seconds for which it is remembered that a dictionary is lost: else each of its frames asks twice."""
GRACE = 3.0
"""Seconds after its deadline at which a load counts as lost, and the next reader begins another."""
TRIES = 8


class NotAtHandError(Exception):
    """A dictionary would have to be fetched. Never leaves the reader."""


class _Load(NamedTuple):
    ended: threading.Event
    deadline: float | None


def room(object_bytes: int) -> int:
    """The most bytes of a dictionary in an object of so many."""
    return object_bytes - _AROUND


def seal_dictionary(keys: Keyring, name: str, content: bytes, object_bytes: int) -> bytes:
    """The object of this name, of `object_bytes`: not compressed, and filled up, so that readers know its
    length beforehand."""
    plain = len(content).to_bytes(_LENGTH, "little") + content
    payload = STORED + plain + bytes(object_bytes - _AROUND - len(content))
    data = seal_sections(keys, KIND_DICTIONARY, name, payload)
    if open_dictionary(keys, name, data).content != content:
        raise CloudMountError(f"{name} does not open to what was sealed: this machine's memory may be faulty")
    return data


def open_dictionary(keys: Keyring, name: str, data: bytes) -> Dictionary:
    """The dictionary in an object; `DamagedError` when it does not open under its name."""
    plain = open_single(keys, KIND_DICTIONARY, name, data)
    end = _LENGTH + int.from_bytes(plain[:_LENGTH], "little")
    if end > len(plain) or any(plain[end:]):
        raise DamagedError(f"{name} makes no sense: its length is wrong")
    try:
        found = Dictionary(plain[_LENGTH:end])
    except DamagedError as error:
        raise DamagedError(f"{name}: {error}") from None
    if found.id != dictionary_id(name):
        raise DamagedError(f"{name} holds the dictionary {found.id:08x}")
    return found


class Dictionaries:
    """Those of one repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._there: dict[int, Dictionary] = {}
        self._loading: dict[int, _Load] = {}
        self._wrong: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def get(self, id: int, deadline: float | None = None) -> Dictionary:
        """The dictionary with this id; may ask the store, until `deadline` (`time.monotonic()`), else as long
        as that tries. `DamagedError` when neither of its objects opens."""
        while True:
            with self._lock:
                found = self._there.get(id)
                if found is not None:
                    return found
                why, until = self._wrong.get(id, ("", 0.0))
                if time.monotonic() < until:
                    raise DamagedError(why)
                load = self._loading.get(id)
                lost = load is not None and load.deadline is not None
                if load is None or (lost and (load.deadline or 0.0) + GRACE < time.monotonic()):
                    load, mine = _Load(threading.Event(), deadline), True
                    self._loading[id] = load
                else:
                    mine = False
            if mine:
                return self._load(id, load)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not load.ended.wait(left):
                raise StoreTimeoutError(f"no answer in time: {dictionary_names(id)[0]} is being read")

    def at_hand(self, id: int) -> Dictionary:
        """The dictionary with this id from memory or the local cache; else `NotAtHandError`."""
        found = self._there.get(id)
        if found is not None:
            return found
        cache = self._repository.cache
        for name in dictionary_names(id):
            sealed = cache.get(name) if cache is not None else None
            if cache is not None and sealed is not None:
                try:
                    found = open_dictionary(self._repository.keys, name, sealed)
                except DamagedError:
                    cache.drop(name)
                else:
                    return self._keep(found)
        raise NotAtHandError

    def _keep(self, found: Dictionary) -> Dictionary:
        with self._lock:
            return self._there.setdefault(found.id, found)

    def _load(self, id: int, load: _Load) -> Dictionary:
        try:
            return self._keep(self._either(id, load.deadline))
        except DamagedError as error:
            with self._lock:
                self._wrong[id] = (str(error), time.monotonic() + KEPT_WRONG)
            raise
        finally:
            with self._lock:
                if self._loading.get(id) is load:
                    del self._loading[id]
            load.ended.set()

    def _either(self, id: int, deadline: float | None) -> Dictionary:
        name, copy = dictionary_names(id)
        try:
            return self._sealed(name, deadline)
        except (DamagedError, BlobMissingError) as error:
            first = error
        try:
            found = self._sealed(copy, deadline)
        except (DamagedError, BlobMissingError) as second:
            raise DamagedError(
                f"{name}, the dictionary that this was compressed with, is unusable ({first}), and so is its "
                f"copy ({second}): bring back either of the two, from wherever they are still"
            ) from None
        self._repository.warn(f"{name} is unusable ({first}); its copy was used: run 'cloudmount check'")
        return found

    def _sealed(self, name: str, deadline: float | None) -> Dictionary:
        repository, length = self._repository, self._repository.geometry.dictionary
        if not length:
            raise DamagedError("a repository without dictionaries has a frame that names one")
        return repository.sealed(
            name,
            lambda: repository.store.read(name, 0, length, deadline=deadline),
            lambda data: open_dictionary(repository.keys, name, data),
        )

    # Writers

    def stored(self) -> dict[int, dict[str, int]]:
        """The objects that a listing shows, by id: names to sizes in bytes."""
        found: dict[int, dict[str, int]] = {}
        for info in self._repository.store.list(DICTIONARIES, limit=2 * MOST_NAMES):
            id = dictionary_id(info.name)
            if id is None:
                self._repository.warn(f"{info.name}: not a dictionary's name; ignored")
            else:
                found.setdefault(id, {})[info.name] = info.size
        return found

    def proved(self, name: str, size: int) -> Dictionary:
        """What the object of `size` bytes holds, from the store; `DamagedError`, `BlobMissingError`."""
        length = self._repository.geometry.dictionary
        if size != length:
            raise DamagedError(f"{name} has {size} bytes where {length} belong")
        return open_dictionary(self._repository.keys, name, self._repository.store.read(name, 0, length))

    def usable(
        self, id: int, there: dict[str, int], create: Callable[[str, bytes], None]
    ) -> Dictionary | None:
        """This dictionary for new frames, if both its objects open and agree; one that is missing is created
        anew. None, told, when it can't be used."""
        try:
            found = {name: self.proved(name, size) for name, size in there.items()}
        except (DamagedError, BlobMissingError) as error:
            self._repository.warn(f"{error}: nothing more is compressed with it; run 'cloudmount check'")
            return None
        first, *others = found.values()
        if any(other.content != first.content for other in others):
            self._repository.warn(f"{min(there)} and its copy differ; run 'cloudmount check'")
            return None
        for name in dictionary_names(id):
            if name not in there:
                self._complete(name, first.content, create)
        return self._keep(first)

    def add(
        self, content: bytes, taken: dict[int, dict[str, int]], create: Callable[[str, bytes], None]
    ) -> Dictionary:
        """Store a new dictionary, twice, under an id that is not `taken`; read back when it is."""
        for _ in range(TRIES):
            id = (1 << 15) + secrets.randbelow((1 << 31) - (1 << 15))
            if id in taken:
                continue
            numbered = content[:4] + id.to_bytes(4, "little") + content[8:]
            name, copy = dictionary_names(id)
            try:
                self._create(name, numbered, create)
            except BlobExistsError:
                continue
            self._complete(copy, numbered, create)
            return self.get(id)
        raise CloudMountError("no name for a dictionary was free: the store says of each that it is taken")

    def _create(self, name: str, content: bytes, create: Callable[[str, bytes], None]) -> None:
        repository = self._repository
        create(name, seal_dictionary(repository.keys, name, content, repository.geometry.dictionary))

    def _complete(self, name: str, content: bytes, create: Callable[[str, bytes], None]) -> None:
        """Create the second object; another writer may have just done so."""
        try:
            self._create(name, content, create)
        except (BlobExistsError, StoreRefusedError) as error:
            try:
                same = self.proved(name, self._repository.geometry.dictionary).content == content
            except (DamagedError, BlobMissingError):
                same = False
            if not same:
                raise error from None

    def lost(self, id: int) -> bool:
        """Whether neither of a dictionary's objects opens."""
        try:
            self.get(id)
        except DamagedError:
            return True
        return False

    def damaged(self, named: Set[int]) -> Iterator[tuple[Spot, bool]]:
        """What is wrong with each object of the dictionaries that are listed, or `named` by snapshots; and
        whether that is damage: one that no snapshot names may be half of what a killed backup left."""
        stored = self.stored()
        for id in sorted(stored.keys() | named):
            sound: list[Dictionary] = []
            wrong: list[tuple[Spot, bool]] = []
            for name in dictionary_names(id):
                size = stored.get(id, {}).get(name, self._repository.geometry.dictionary)
                try:
                    sound.append(self._proved_twice(name, size))
                except BlobMissingError:
                    wrong.append((Spot(name, 0, 0, "missing from the store"), id in named))
                except DamagedError as error:
                    wrong.append((Spot(name, 0, size, str(error).removeprefix(f"{name}: ")), True))
            if len(sound) == 2 and sound[0].content != sound[1].content:
                wrong.append((Spot(dictionary_names(id)[0], 0, 0, "it and its copy differ"), True))
            for spot, counts in wrong:
                yield spot._replace(why=f"{spot.why}; {_ADVICE[len(sound)]}"), counts

    def _proved_twice(self, name: str, size: int) -> Dictionary:
        try:
            return self.proved(name, size)
        except DamagedError:  # it may be the line that altered it
            return self.proved(name, size)


_ADVICE = (
    "all that was compressed with this dictionary is lost, unless one of its two objects is brought back",
    "the other of the two serves; the next backup writes a missing one again",
    "each reads what was compressed with it only",
)
