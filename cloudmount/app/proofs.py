"""The proofs that drills left, in the repository and on this machine.

Decided here and only here: where a proof lies that the credential may not write (`$XDG_STATE_HOME/cloudmount/
proofs`, sealed as it would be in the store), and that both count. Stateless.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cloudmount.app.places import state_folder
from cloudmount.errors import CloudMountError
from cloudmount.repo.names import PROOFS, proofs_of
from cloudmount.repo.proofs import (
    OBJECT_LIMIT,
    Drilled,
    Proof,
    newest_drills,
    open_proof,
    proof_names,
    read_proof,
    seal_proof,
)
from cloudmount.repo.repository import Repository


def keep_proof(
    repository: Repository, tag: str, proof: Proof, environ: Mapping[str, str] = os.environ
) -> tuple[str, str | None]:
    """Store a proof: its name, and, when it could be kept on this machine only, why. `CloudMountError` when
    not even that worked."""
    name, data = seal_proof(repository.keys, tag, proof)
    try:
        repository.store.create(name, data)
        return name, None
    except CloudMountError as error:
        why = str(error)
    file = _folder(repository, environ) / name
    part = file.with_name(f".{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise CloudMountError(
            f"the proof could be kept neither in the repository ({why}) nor at {file}: {error.strerror}"
        ) from None
    return name, why


def drills(
    repository: Repository, tag: str | None, environ: Mapping[str, str] = os.environ
) -> dict[str, Drilled]:
    """The newest drill of each snapshot of a machine, or of all, by the snapshot's id. One listing."""
    names = [*proof_names(repository, tag), *_names_here(repository, tag, environ)]
    return newest_drills(repository.keys, names)


def proof_of(repository: Repository, drilled: Drilled, environ: Mapping[str, str] = os.environ) -> Proof:
    """What a drill found. Errors as of `open_proof` and the store."""
    try:
        with (_folder(repository, environ) / drilled.name).open("rb") as file:
            data = file.read(OBJECT_LIMIT + 1)
    except OSError:
        return read_proof(repository, drilled.name)
    return open_proof(repository.keys, drilled.name, data)


def _folder(repository: Repository, environ: Mapping[str, str]) -> Path:
    return state_folder(environ) / "proofs" / repository.config.repo_id


def _names_here(repository: Repository, tag: str | None, environ: Mapping[str, str]) -> Iterator[str]:
    root = _folder(repository, environ)
    with contextlib.suppress(OSError):
        for file in (root / (PROOFS if tag is None else proofs_of(tag))).rglob("*"):
            yield file.relative_to(root).as_posix()
