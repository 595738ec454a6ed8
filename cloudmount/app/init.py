"""Making a new repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cloudmount.app.places import connect
from cloudmount.crypto.phrase import new_phrase
from cloudmount.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class NewRepository:
    """A repository just made; its recovery phrase is nowhere else."""

    repo_id: str
    recovery_phrase: str
    address: str


def init(
    address: str, passphrase: str, *, tier: str = "hot", environ: Mapping[str, str] = os.environ
) -> NewRepository:
    """Make a repository at `address`, its folder or container too when missing.

    `TargetExistsError` when something is there already.
    """
    phrase = new_phrase()
    with connect(address, environ) as store:
        repository = Repository.init(store, passphrase, phrase, tier=tier)
        return NewRepository(repository.config.repo_id, phrase, store.address)
