"""An Azurite for the benchmarks: Azure Blob on this machine, on disk, counting requests.

Decided here and only here: how the store of the boots is run. It differs from the tests' Azurite: what
it holds (some 10 GB) lies in files, and every request is in a log, counted for all tools alike. Bound
to loopback; ended by its process id. One thread.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from pathlib import Path
from typing import Self

from benchmarks.commands import BenchmarkError, program, stop

ACCOUNT = "devstoreaccount1"
# Azurite's own account, the same everywhere (its README): no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
LINK_PORT = 10000
"""Where the tools look for the store: restic 0.14 knows Azure's emulator at this port only."""

_MAIN = Path(__file__).resolve().parents[1] / "tests/azurite/node_modules/azurite/dist/src/blob/main.js"
_START_SECONDS = 60


class Azurite:
    """A running Azurite that keeps its blobs in `folder`, at `port` of loopback or any; a context manager
    that ends it."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        if not _MAIN.exists():
            raise BenchmarkError(f"no Azurite in {_MAIN.parents[4]}: scripts/setup.sh bench installs it")
        self._log = folder / "access.log"
        self.blobs = folder / "blobs"
        self.blobs.mkdir(exist_ok=True)
        command = [program("node", "nodejs"), str(_MAIN), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        command += ["--location", str(self.blobs), "--disableTelemetry", "--skipApiVersionCheck"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.port = self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> int:
        limit = time.monotonic() + _START_SECONDS
        while time.monotonic() < limit and self._process.poll() is None:
            said = self._log.read_text(errors="replace")
            if found := re.search(r"successfully listens on http://127\.0\.0\.1:(\d+)", said):
                return int(found[1])
            time.sleep(0.1)
        raise BenchmarkError(f"Azurite did not start: {self._log.read_text(errors='replace')}")

    def requests(self) -> int:
        """How many requests were answered so far."""
        return len(re.findall(rb'"[A-Z]+ /\S* HTTP/', self._log.read_bytes()))

    def close(self) -> None:
        """End it."""
        stop(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def account_url() -> str:
    """The account at the end of the link."""
    return f"http://127.0.0.1:{LINK_PORT}/{ACCOUNT}"


def connection_string() -> str:
    """For AZURE_STORAGE_CONNECTION_STRING."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={account_url()};"
    )


def blob_url(container: str, blob: str) -> str:
    """The blob's address with a SAS in it that reads it for a week, as one hands it to a downloader."""
    import datetime as dt

    from azure.storage.blob import generate_blob_sas

    expiry = dt.datetime.now(dt.UTC) + dt.timedelta(days=7)
    sas = generate_blob_sas(ACCOUNT, container, blob, account_key=KEY, permission="r", expiry=expiry)
    return f"{account_url()}/{container}/{blob}?{sas}"


def upload(container: str, blob: str, file: Path) -> None:
    """Store `file` as one plain block blob in a new container."""
    from azure.core.exceptions import ResourceExistsError
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(connection_string(), max_block_size=16 << 20) as service:
        with contextlib.suppress(ResourceExistsError):
            service.create_container(container)
        with file.open("rb") as stream:
            service.get_blob_client(container, blob).upload_blob(stream, overwrite=True, max_concurrency=4)
