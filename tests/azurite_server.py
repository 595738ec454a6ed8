"""An Azurite for the tests: started once a session on a free loopback port, stopped by its process id.

Use the fixture `azurite` (tests/conftest.py makes it known everywhere):

    def test_it(azurite: AzuriteServer) -> None:
        store = AzureStore(azurite.place(azurite.new_container(), permissions="rcl"))

Mark such tests `azurite`. Everything is in memory and ends with the process.
"""

from __future__ import annotations

import atexit
import datetime as dt
import itertools
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.azure_place import AzurePlace, from_web_url

_MAIN = Path(__file__).parent / "azurite/node_modules/azurite/dist/src/blob/main.js"
_START_SECONDS = 60
# Azurite's own account, the same everywhere (its README): no secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class AzuriteServer:
    """A running Azurite; `stop` ends it, also when the tests fail."""

    def __init__(self) -> None:
        if not _MAIN.exists():
            raise RuntimeError(f"no Azurite in {_MAIN.parents[4]}: run `make setup`")
        options = ["--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
        self._numbers = itertools.count()
        self._said: list[str] = []
        self._process = subprocess.Popen(
            ["node", str(_MAIN), "--blobHost", "127.0.0.1", *options, "--silent"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        atexit.register(self.stop)
        self._up = threading.Event()
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._up.wait(_START_SECONDS) or not self.port:
            self.stop()
            raise RuntimeError("Azurite did not start:\n" + "".join(self._said))

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._said.append(line)
            if match := re.search(r"successfully listens on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                self._up.set()
        self._up.set()

    @property
    def account_url(self) -> str:
        """`http://127.0.0.1:PORT/devstoreaccount1`."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """For AZURE_STORAGE_CONNECTION_STRING."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.account_url};"
        )

    def sas(self, container: str, permissions: str) -> str:
        """A SAS of that container for a day: `permissions` of `racwdl`."""
        from azure.storage.blob import generate_container_sas

        return generate_container_sas(
            ACCOUNT,
            container,
            account_key=KEY,
            permission=permissions,
            expiry=dt.datetime.now(dt.UTC) + dt.timedelta(days=1),
        )

    def address(self, container: str, *, permissions: str = "racwdl", prefix: str = "") -> str:
        """A repository's address with a SAS in it."""
        return f"{self.account_url}/{container}/{prefix}?{self.sas(container, permissions)}"

    def place(self, container: str, *, permissions: str | None = None, prefix: str = "") -> AzurePlace:
        """Where a store goes: under a SAS of these permissions, or with the account's key."""
        if permissions is not None:
            return from_web_url(self.address(container, permissions=permissions, prefix=prefix), {})
        environ = {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string}
        return from_web_url(f"{self.account_url}/{container}/{prefix}", environ)

    def new_container(self, *, make: bool = True) -> str:
        """The name of a container that nobody used, made unless told otherwise."""
        name = f"test-{next(self._numbers)}"
        if make:
            with AzureStore(self.place(name)) as store:
                store.prepare()
        return name

    def stop(self) -> None:
        """End the process; may be called twice."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout and not self._process.stdout.closed:
            self._reader.join(10)
            self._process.stdout.close()


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzuriteServer]:
    """One Azurite for the whole session."""
    server = AzuriteServer()
    try:
        yield server
    finally:
        server.stop()
