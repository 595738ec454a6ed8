"""Dictionaries in a store: found by their id, there twice, and nothing that a store says is believed."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from typing import Any

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore, Operation
from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.keyring import Keyring
from cloudmount.errors import BlobExistsError, DamagedError, StoreTimeoutError, StoreUnreachableError
from cloudmount.repo import dictionaries
from cloudmount.repo.dictionaries import Dictionaries, NotAtHandError, open_dictionary, seal_dictionary
from cloudmount.repo.names import dictionary_id, dictionary_names
from cloudmount.repo.objects import seal_sections, seal_single
from cloudmount.repo.payload import STORED, Dictionary
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import KIND_DICTIONARY, KIND_TRACE
from tests.backup.lab import DICTIONARY, flip, new_repository, replace
from tests.trained import text, trained

KEYS = Keyring(bytes(32), {0: b"k" * 32})


class Made:
    """A repository with a dictionary."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.repository = new_repository(self.store)
        self.dictionary = self.repository.dictionaries.add(trained(), {}, self.create)
        self.name, self.copy = dictionary_names(self.dictionary.id)
        self.told: list[str] = []

    def create(self, name: str, data: bytes) -> None:
        self.store.create(name, data)

    def anew(self, store: Any = None) -> Repository:
        """As another process opens it."""
        return Repository(store or self.store, self.repository.config, tell=self.told.append)

    def get(self, store: Any = None) -> Dictionary:
        return self.anew(store).dictionaries.get(self.dictionary.id)


class Cache(dict[str, bytes]):
    """A `SealedCache`."""

    def put(self, key: str, sealed: bytes) -> None:
        self[key] = sealed

    def drop(self, key: str) -> None:
        self.pop(key, None)


def test_found_by_its_id_with_one_request() -> None:
    made = Made()
    assert [len(made.store.objects[name]) for name in (made.name, made.copy)] == [DICTIONARY] * 2
    counting = CountingStore(made.store)
    repository = made.anew(counting)
    for _ in range(3):
        assert repository.dictionaries.get(made.dictionary.id).content == made.dictionary.content
    assert counting.snapshot().requests == 1
    assert not made.told
    assert dictionary_id(made.name) == dictionary_id(made.copy) == made.dictionary.id
    for name in ("dictionaries/8" + "0" * 7, "dictionaries/1", made.name + "x", made.copy + ".copy"):
        assert dictionary_id(name) is None


@pytest.mark.parametrize("wrong", ["missing", "flipped", "cut", "empty", "other", "copied"])
def test_the_copy_serves(wrong: str) -> None:
    made = Made()
    data = made.store.objects[made.name]
    if wrong == "missing":
        made.store.delete(made.name)
    elif wrong == "flipped":
        flip(made.store, made.name, 8 * 500 + 3)
    else:
        other = {"cut": data[:-1], "empty": b"", "other": b"x" * len(data)}
        replace(made.store, made.name, other.get(wrong, made.store.objects[made.copy]))
    assert made.get().content == made.dictionary.content
    (told,) = made.told
    assert made.name in told and "its copy was used" in told


def test_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with what to do; not asked for each of its frames; and read once it is there again."""
    made = Made()
    kept = {name: made.store.objects[name] for name in (made.name, made.copy)}
    made.store.delete(made.name)
    flip(made.store, made.copy, 9000)
    counting = CountingStore(made.store)
    repository = made.anew(counting)
    for _ in range(50):
        with pytest.raises(DamagedError, match=rf"{made.name}, the dictionary .* bring back either"):
            repository.dictionaries.get(made.dictionary.id)
    assert counting.snapshot().requests == 2
    monkeypatch.setattr(dictionaries, "KEPT_WRONG", 0.0)
    repository = made.anew()
    with pytest.raises(DamagedError):
        repository.dictionaries.get(made.dictionary.id)
    replace(made.store, made.copy, kept[made.copy])
    assert repository.dictionaries.get(made.dictionary.id).content == made.dictionary.content


def _sealed(name: str, payload: bytes) -> bytes:
    return seal_sections(KEYS, KIND_DICTIONARY, name, payload)


def test_what_makes_no_sense_does_not_open() -> None:
    content = trained()
    id = Dictionary(content).id
    name = dictionary_names(id)[0]
    sound = seal_dictionary(KEYS, name, content, DICTIONARY)
    assert open_dictionary(KEYS, name, sound).content == content
    length = len(content).to_bytes(4, "little")
    wrong = {
        "another's id": seal_dictionary(KEYS, dictionary_names(id)[0], content, DICTIONARY),
        "another length": _sealed(name, STORED + (1 << 31).to_bytes(4, "little") + content),
        "cut": _sealed(name, STORED + length + content[:-1]),
        "not zeros behind": _sealed(name, STORED + length + content + b"\0\1"),
        "no dictionary": _sealed(name, STORED + length + text(1, len(content))),
        "nothing": _sealed(name, STORED),
        "a codec that is none": _sealed(name, b"\x07" + length + content),
        "two sections": seal_sections(KEYS, KIND_DICTIONARY, name, STORED + length + content, [STORED]),
        "another kind": seal_single(KEYS, KIND_TRACE, "dictionaries/", length + content)[1],
    }
    with pytest.raises(DamagedError):
        open_dictionary(KEYS, dictionary_names(id + 1)[0], wrong.pop("another's id"))
    for data in wrong.values():
        with pytest.raises(DamagedError):
            open_dictionary(KEYS, name, data)
    other = content[:4] + (id + 1).to_bytes(4, "little") + content[8:]
    with pytest.raises(DamagedError, match="holds the dictionary"):
        open_dictionary(KEYS, name, _sealed(name, STORED + length + other))


def test_of_a_huge_object_no_more_is_read() -> None:
    made = Made()
    for name in (made.name, made.copy):
        replace(made.store, name, made.store.objects[name] + bytes(1 << 20))
    counting = CountingStore(made.store)
    assert made.get(counting).content == made.dictionary.content
    assert counting.snapshot().bytes_down == DICTIONARY
    stored = made.anew().dictionaries.stored()
    assert (
        made.anew().dictionaries.usable(made.dictionary.id, stored[made.dictionary.id], made.create) is None
    )
    assert len(list(made.anew().dictionaries.damaged(set()))) == 2


def test_the_local_cache() -> None:
    """What it has needs no store; what is wrong with it is forgotten."""
    made = Made()
    repository = made.anew()
    cache = repository.cache = Cache()
    with pytest.raises(NotAtHandError):
        repository.dictionaries.at_hand(made.dictionary.id)
    repository.dictionaries.get(made.dictionary.id)
    assert set(cache) == {made.name}
    counting = CountingStore(made.store)
    again = made.anew(counting)
    again.cache = cache
    assert again.dictionaries.at_hand(made.dictionary.id).content == made.dictionary.content
    assert not counting.snapshot().requests
    cache[made.name] = cache[made.name][:-1] + b"!"
    third = made.anew(counting)
    third.cache = cache
    with pytest.raises(NotAtHandError):
        third.dictionaries.at_hand(made.dictionary.id)
    assert not cache


def test_many_readers_ask_once() -> None:
    made = Made()
    counting = CountingStore(FaultyStore(made.store, lambda operation: None))
    repository = made.anew(counting)
    found: list[Dictionary] = []
    threads = [
        threading.Thread(target=lambda: found.append(repository.dictionaries.get(made.dictionary.id)))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1
    assert len(found) == 12
    assert counting.snapshot().requests == 1


def test_a_silent_store() -> None:
    """Who waits gives up by its own deadline, and one with a later one begins anew; nothing is remembered."""
    made = Made()
    silent = [True]
    asked = threading.Event()

    def plan(operation: Operation) -> Fault | None:
        asked.set()
        return Fault.STALL if silent[0] else None

    repository = made.anew(FaultyStore(made.store, plan))
    asked.clear()
    failed: list[Exception] = []
    later: list[Dictionary] = []

    def read(seconds: float) -> None:
        try:
            later.append(repository.dictionaries.get(made.dictionary.id, time.monotonic() + seconds))
        except (StoreTimeoutError, StoreUnreachableError) as error:
            failed.append(error)

    patient = threading.Thread(target=read, args=(60.0,))
    others = [threading.Thread(target=read, args=(0.3,)) for _ in range(4)]
    for thread in others:
        thread.start()
    assert asked.wait(30)
    patient.start()  # waits for one that is about to give up
    silent[0] = False  # for who asks from now on
    for thread in others:
        thread.join()
    patient.join(30)
    assert len(failed) >= 1
    assert len(later) + len(failed) == 5
    assert later


def test_a_load_that_is_lost_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may hold a thread for ever."""
    made = Made()
    held = threading.Event()
    first = [True]

    class Holding(MemoryStore):
        def read(self, name: str, *args: Any, **kwargs: Any) -> bytes:
            if first[0]:
                first[0] = False
                held.wait(60)
            return made.store.read(name, *args, **kwargs)

    monkeypatch.setattr(dictionaries, "GRACE", 0.0)
    repository = made.anew(Holding())

    def lose() -> None:
        with contextlib.suppress(StoreTimeoutError):
            repository.dictionaries.get(made.dictionary.id, time.monotonic() + 0.1)

    thread = threading.Thread(target=lose)
    thread.start()
    while first[0]:
        time.sleep(0.01)
    time.sleep(0.2)
    assert repository.dictionaries.get(made.dictionary.id, time.monotonic() + 30).id == made.dictionary.id
    held.set()
    thread.join()


def test_a_name_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    drawn = iter([made.dictionary.id - (1 << 15), 7, 8])
    monkeypatch.setattr(secrets, "randbelow", lambda below: next(drawn))
    made.store.create(dictionary_names((1 << 15) + 7)[0], b"somebody's")
    new = made.repository.dictionaries.add(
        trained(seed=1), made.repository.dictionaries.stored(), made.create
    )
    assert new.id == (1 << 15) + 8
    assert dictionary_names((1 << 15) + 7)[1] not in made.store.objects
    assert made.get().content == made.dictionary.content


def test_two_writers_complete_one_dictionary() -> None:
    """One finds the other's first object before its copy is there, and makes the copy."""
    made = Made()
    other = made.anew()

    def create(name: str, data: bytes) -> None:
        if name.endswith(".copy"):
            there = other.dictionaries.stored()
            ((id, names),) = ((i, n) for i, n in there.items() if i != made.dictionary.id)
            assert other.dictionaries.usable(id, names, made.create) is not None
        made.store.create(name, data)

    new = made.repository.dictionaries.add(trained(seed=1), {}, create)
    assert not list(made.anew().dictionaries.damaged({made.dictionary.id, new.id}))
    wrong = made.anew()

    def taken(name: str, data: bytes) -> None:
        made.store.create(name, b"x" * len(data) if name.endswith(".copy") else data)
        if name.endswith(".copy"):
            raise BlobExistsError(name)

    with pytest.raises(BlobExistsError):
        wrong.dictionaries.add(trained(seed=2), {}, taken)


def test_a_repository_without() -> None:
    made = Made()
    config = made.repository.config
    without = Repository(made.store, config)
    without.config = type(config)(
        config.repo_id,
        type(config.geometry)(**{**_fields(config.geometry), "dictionary": 0}),
        config.tier,
        config.created,
        config.keys,
    )
    with pytest.raises(DamagedError, match="without dictionaries"):
        Dictionaries(without).get(made.dictionary.id)


def _fields(geometry: Any) -> dict[str, int]:
    return {name: getattr(geometry, name) for name in ("frame", "pack", "segment", "page", "dictionary")}
