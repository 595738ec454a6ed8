"""An Azure Blob container, or a folder of one, as a store.

Decided here and only here: which requests CloudMount makes of Azure (one each for
`create`, `read`, `put`, `delete` and a listing's page) and how they are signed.
The one importer of the Azure SDK, and only when it signs (170 ms): account keys
go through azure-storage-blob's own policy, logins through azure-core's and
azure-identity, both in an azure-core pipeline over our `HttpPool`; a SAS
needs no signing. Measured for a 128 KiB ranged read on one connection, CPU: the
SDK's `download_blob` 1.5 ms, its pipeline over requests 1.0, this 0.3 with a key
and 0.2 with a SAS. The SDK's retries have no part in it.

A create is a Put Blob with `If-None-Match: *`; its Content-MD5 is verified by Azure
and kept, so listings tell it. The service version is fixed: the first that
knows the cold tier, and takes a Put Blob of up to 5,000 MiB.

Threading: any number of threads; one pooled connection each while it waits.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
import urllib.parse
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from cloudmount.blobs.azure_answers import Page, Place, check_range, error_code, failure, page
from cloudmount.blobs.azure_place import AzurePlace
from cloudmount.blobs.connections import Answer, HttpPool
from cloudmount.blobs.sockets import Patience
from cloudmount.blobs.store import LIST_PAGE, BlobInfo, BlobStore, Data, Tier, check_name, check_prefix
from cloudmount.errors import (
    CloudMountError,
    NoRepositoryError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
    UsageError,
)

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.pipeline import Pipeline

_VERSION = "2021-12-02"
_TIERS = {"hot": "Hot", "cool": "Cool", "cold": "Cold"}
_SCOPE = "https://storage.azure.com/.default"
_LISTING = 64 * 1024 * 1024  # a page of 5,000 names is about 5 MB
_MARKERS = 64

_Send = Callable[[str, str, Mapping[str, str], "Data | None", "float | None", "int | None"], Answer]
"""method, target, headers, body, deadline, most -> answer"""


class AzureStore(BlobStore):
    """The store at `place`; keeps up to `connections` idle connections for as many threads."""

    def __init__(self, place: AzurePlace, *, patience: Patience | None = None, connections: int = 16) -> None:
        self._place = place
        self._what = Place(place.account, place.container, place.credential, place.advice)
        parts = urllib.parse.urlsplit(place.container_url)
        self._origin, self._path = f"{parts.scheme}://{parts.netloc}", parts.path
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._patience = patience or Patience()
        self._pool = HttpPool(self._origin, patience=self._patience, connections=connections)
        self._send = _signing(place, self._pool)
        # Azure can't list behind a name, only go on from a page's marker; keeping the markers
        # of the pages given lets a broken listing go on without starting anew.
        self._markers: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return self._place.address

    def prepare(self, *, deadline: float | None = None) -> None:
        # A look first: a SAS of one container may not make containers, and need not.
        try:
            self._page("", 1, deadline)
        except NoRepositoryError:
            target = "?restype=container"
            answer = self._ask("make the container", "", "PUT", target, {}, b"", deadline=deadline)
            if answer.status != 201 and error_code(answer) != "ContainerAlreadyExists":
                raise failure(answer, "make the container", "", self._what) from None

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        headers = {"If-None-Match": "*"}
        if tier is not None:
            headers["x-ms-access-tier"] = _TIERS[tier]
        self._put("create", name, data, headers, deadline)

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        self._put("replace", name, data, {}, deadline)

    def _put(self, what: str, name: str, data: Data, headers: dict[str, str], deadline: float | None) -> None:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        headers |= {
            "x-ms-blob-type": "BlockBlob",
            "Content-Type": "application/octet-stream",
            "Content-MD5": base64.b64encode(digest).decode(),
        }
        answer = self._ask(what, name, "PUT", self._target(name), headers, data, deadline=deadline)
        if answer.status != 201:
            raise failure(answer, what, name, self._what)

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        target = self._target(name)
        if length == 0:
            return b""
        ranged = offset > 0 or length is not None
        last = "" if length is None else offset + length - 1
        # Not "Range": the SDK's signature leaves that one out.
        headers = {"x-ms-range": f"bytes={offset}-{last}"} if ranged else {}
        answer = self._ask("read", name, "GET", target, headers, None, deadline=deadline, most=length)
        if answer.status != (206 if ranged else 200):
            if answer.status in (200, 206):
                raise StoreUnreachableError(f"another range of {name} came than was asked for")
            raise failure(answer, "read", name, self._what)
        if ranged:
            check_range(answer, name, offset, length)
        return answer.body

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        check_prefix(prefix)
        if limit is not None and limit <= 0:
            return
        with self._lock:
            marker = self._markers.get((prefix, after), "")
        behind = after if not marker else ""
        left, last = limit, after
        while True:
            count = LIST_PAGE if left is None or behind else min(left, LIST_PAGE)
            got = self._page(prefix, count, deadline, marker=marker)
            marker = got.marker
            for blob in self._ours(got, after):
                if blob.name <= last:
                    raise StoreRefusedError(
                        f"container {self._place.container} lists its objects out of order: "
                        "accounts with a hierarchical namespace are not supported"
                    )
                last = blob.name
                yield blob
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            if not marker:
                return
            self._keep(prefix, last, marker)

    def _ours(self, got: Page, after: str) -> Iterator[BlobInfo]:
        """The objects of a page that are a store's, named without our prefix, greater than `after`."""
        for blob in got.blobs:
            name = blob.name[len(self._prefix) :]
            try:
                check_name(name)
            except ValueError:
                continue  # somebody else's
            if name > after:
                yield BlobInfo(name, blob.size, blob.modified, blob.md5)

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        check_prefix(prefix)
        marker, found, start = "", set(), len(self._prefix) + len(prefix)
        while True:
            got = self._page(prefix, LIST_PAGE, deadline, marker=marker, delimiter="/")
            found |= {folder[start:-1] for folder in got.folders if not folder[start:].startswith(".")}
            marker = got.marker
            if not marker:
                # Azure sorts them with their slashes: `a-b/` before `a/`.
                yield from sorted(found)
                return

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        answer = self._ask("delete", name, "DELETE", self._target(name), {}, None, deadline=deadline)
        if answer.status != 202:
            error = failure(answer, "delete", name, self._what)
            if answer.status != 404 or isinstance(error, NoRepositoryError):
                raise error

    def close(self) -> None:
        self._pool.close()

    def _page(
        self, prefix: str, count: int, deadline: float | None, *, marker: str = "", delimiter: str = ""
    ) -> Page:
        query = {"restype": "container", "comp": "list", "maxresults": str(count)}
        query |= {"prefix": self._prefix + prefix} if self._prefix + prefix else {}
        query |= {"marker": marker} if marker else {}
        query |= {"delimiter": delimiter} if delimiter else {}
        what = f"list {prefix}".strip()
        target = "?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote, safe="")
        answer = self._ask(what, "", "GET", target, {}, None, deadline=deadline, most=_LISTING)
        if answer.status != 200:
            raise failure(answer, what, "", self._what)
        return page(answer.body)

    def _keep(self, prefix: str, last: str, marker: str) -> None:
        with self._lock:
            self._markers[prefix, last] = marker
            if len(self._markers) > _MARKERS:
                self._markers.popitem(last=False)

    def _target(self, name: str) -> str:
        return "/" + urllib.parse.quote(self._prefix + check_name(name), safe="/~")

    def _ask(
        self,
        what: str,
        name: str,
        method: str,
        target: str,
        headers: dict[str, str],
        body: Data | None,
        *,
        deadline: float | None = None,
        most: int | None = None,
    ) -> Answer:
        """One request, `target` being what follows the container's own URL."""
        headers = headers | {
            "x-ms-version": _VERSION,
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-client-request-id": str(uuid.uuid4()),
            "User-Agent": "cloudmount",
        }
        if body is not None:
            headers["Content-Length"] = str(len(body))
        try:
            return self._send(method, self._path + target, headers, body, deadline, most)
        except CloudMountError as error:
            doing = f"{what} {name}".strip()
            raise _told(error, f"could not {doing} in {self.address}: {error}") from error


def _told(error: CloudMountError, message: str) -> CloudMountError:
    """The same kind of error, saying what was being done and where."""
    return type(error)(message)


def _signing(place: AzurePlace, pool: HttpPool) -> _Send:
    """How a request of `place` is signed and sent."""
    if place.sas:
        return _SignedAddress(pool, place.sas).send
    return _Pipelined(place, pool).send


class _SignedAddress:
    """Requests whose address carries a SAS: nothing is left to sign, no SDK is needed."""

    def __init__(self, pool: HttpPool, sas: str) -> None:
        self._pool, self._sas = pool, sas

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Data | None,
        deadline: float | None,
        most: int | None,
    ) -> Answer:
        target = f"{target}{'&' if '?' in target else '?'}{self._sas}"
        return self._pool.request(method, target, headers, body, deadline=deadline, most=most)


class _Pipelined:
    """Requests signed by the SDK: an azure-core pipeline of one policy, over our own pool."""

    def __init__(self, place: AzurePlace, pool: HttpPool) -> None:
        from azure.core.exceptions import AzureError
        from azure.core.pipeline import Pipeline
        from azure.core.rest import HttpRequest

        self._request, self._failure = HttpRequest, AzureError
        self._origin = place.container_url.removesuffix(urllib.parse.urlsplit(place.container_url).path)
        self._login = None if place.key else _Login(place, pool)
        policy = _key_policy(place) if place.key else self._login_policy()
        # The transport is duck-typed: its base class would have to be imported with this module.
        transport: Any = _Transport(pool)
        self._pipeline: Pipeline[Any, Any] = Pipeline(transport, [policy])

    def _login_policy(self) -> Any:
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy

        assert self._login
        return BearerTokenCredentialPolicy(self._login, _SCOPE)

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Data | None,
        deadline: float | None,
        most: int | None,
    ) -> Answer:
        request = self._request(method, self._origin + target, headers=dict(headers))
        if self._login:
            self._login.until(deadline)
        try:
            ran = self._pipeline.run(request, target=target, body=body, deadline=deadline, most=most)
        except self._failure as error:
            # Its text could name anything; its kind is enough.
            raise StoreRefusedError(f"the request could not be signed ({type(error).__name__})") from None
        answer: Answer = ran.http_response.answer
        return answer


class _Transport:
    """The pool, as azure-core's pipeline wants it."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    def send(
        self, request: Any, *, target: str, body: Data | None, deadline: float | None, most: int | None
    ) -> _Response:
        answer = self._pool.request(
            request.method, target, request.headers, body, deadline=deadline, most=most
        )
        return _Response(answer)


class _Response:
    """What the pipeline's policies ask of an answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.status_code, self.headers = answer, answer.status, answer.headers


def _key_policy(place: AzurePlace) -> Any:
    """The SDK's shared key signing, as its client for the account uses it; the client sends nothing."""
    from azure.core.credentials import AzureNamedKeyCredential
    from azure.storage.blob import BlobServiceClient

    account_url = place.container_url.rpartition("/")[0]
    credential = AzureNamedKeyCredential(place.account, place.key or "")
    return BlobServiceClient(account_url, credential=credential).credential


class _Login:
    """DefaultAzureCredential, within deadlines: it asks programs and hosts that may stay silent."""

    def __init__(self, place: AzurePlace, pool: HttpPool) -> None:
        self._pool = pool
        if not place.container_url.startswith("https:"):
            raise UsageError(f"{place.address} needs a key or a SAS: logins are for https only")
        try:
            from azure.identity import DefaultAzureCredential
        except ImportError:
            raise UsageError(
                f"no credentials for {place.address}: set AZURE_STORAGE_CONNECTION_STRING, or "
                "AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN; or, for an "
                "Azure login, install the extra: pip install 'cloudmount[azure]'"
            ) from None
        self._credential: TokenCredential = DefaultAzureCredential()
        self._token: AccessToken | None = None
        self._thread = threading.local()

    def until(self, deadline: float | None) -> None:
        """This thread's next `get_token` ends by `deadline`, or within 30 s."""
        soon = time.monotonic() + 30
        self._thread.deadline = soon if deadline is None else min(soon, deadline)

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token, the last one while it is valid and no newer can be had."""
        done = threading.Event()
        got: list[AccessToken] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                got.append(self._credential.get_token(*scopes, **options))
            except Exception as error:  # whatever it is, the waiting thread tells it
                failed.append(error)
            finally:
                done.set()

        threading.Thread(target=run, name="azure login", daemon=True).start()
        while not done.wait(0.1) and time.monotonic() < self._thread.deadline and not self._pool.closed:
            pass  # done at once, mostly
        if got:
            self._token = got[0]
            return got[0]
        if self._token and self._token.expires_on > time.time() + 10:
            return self._token
        if not failed:
            raise StoreTimeoutError("the Azure login gave no answer in time")
        if self._token:  # it worked before: the line is gone, rather than the permission
            raise StoreUnreachableError(f"the Azure login can't be renewed ({type(failed[0]).__name__})")
        raise StoreRefusedError(
            "no Azure login was found: run `az login`, or set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN"
        ) from failed[0]
