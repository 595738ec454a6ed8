"""What Azure's Blob service answers, put into our words: failures and listings.

Decided here and only here: which status and error code is which error of ours, and
what people are told to do about it. Messages are made from the code alone: the
service's own text can hold parts of a signature. Knows no SDK. Pure.

Codes: "Common REST API error codes", "Blob service error codes" and "SAS error
codes" of the Azure Storage REST reference.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import email.utils
import re
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import NamedTuple

from cloudmount.blobs.connections import Answer
from cloudmount.blobs.retrying import StoreBusyError
from cloudmount.blobs.store import BlobInfo
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    CloudMountError,
    DamagedError,
    NoRepositoryError,
    StoreRefusedError,
    StoreUnreachableError,
)

_EXISTS = {"BlobAlreadyExists", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy"}
_LATER = {"ContainerBeingDeleted", "AccountBeingCreated", "ServerBusy", "OperationTimedOut", "InternalError"}
_GARBLED = {"Md5Mismatch", "InvalidMd5", "Crc64Mismatch"}
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_DATE = re.compile(r"\w{3}, (\d\d) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request went, for messages: never a secret."""

    account: str
    container: str
    credential: str
    """What the request was signed with, as people know it: `AZURE_STORAGE_KEY`."""
    advice: str = ""
    """What to do about a refusal of that credential."""


def error_code(answer: Answer) -> str:
    """The service's name for a failure: `BlobNotFound`; empty when it gave none."""
    code = answer.headers.get("x-ms-error-code")
    if not code and (match := re.search(rb"<Code>(\w{1,80})</Code>", answer.body)):
        code = match[1].decode()
    return code if code and re.fullmatch(r"\w{1,80}", code) else ""


def failure(answer: Answer, what: str, name: str, place: Place) -> CloudMountError:
    """The error that `answer` means, for `what` ("create", "read", ...) done to `name`."""
    status, code = answer.status, error_code(answer)
    said = f"{status} {code}".strip()
    doing = f"{what} {name}" if name else what
    if status in (408, 429) or (status >= 500 and status not in (501, 505)) or code in _LATER:
        return StoreBusyError(f"Azure can't {doing} just now ({said})", retry_after=_retry_after(answer))
    if status < 300:
        return StoreUnreachableError(f"something that is not Azure answered ({said}): a hotel's log-in page?")
    if code in _GARBLED:
        return StoreUnreachableError(f"{name} was garbled on its way to Azure ({said})")
    if code == "ContainerNotFound" or (status == 404 and not name):
        return NoRepositoryError(
            f"account {place.account} has no container {place.container}: check the name, "
            "or make the repository with `cloudmount init`"
        )
    if status == 404:
        return BlobMissingError(name)
    if what == "create" and (status == 412 or code in _EXISTS):
        return BlobExistsError(name)
    if status == 416:
        return DamagedError(f"object {name} ends before the range that was asked of it")
    if status in (401, 403):
        return StoreRefusedError(_refusal(answer, code, said, doing, place))
    if code in ("BlobArchived", "BlobBeingRehydrated"):
        return StoreRefusedError(
            f"object {name} is in Azure's archive tier: move it to cool or hot, and wait until it is back"
        )
    if code in ("BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"):
        return StoreRefusedError(f"Azure may not {doing}: an immutability policy or legal hold protects it")
    return StoreRefusedError(f"Azure won't {doing} in container {place.container} ({said})")


def _refusal(answer: Answer, code: str, said: str, doing: str, place: Place) -> str:
    start = f"Azure refused to {doing} in container {place.container} of account {place.account} ({said})"
    if code == "AccountIsDisabled":
        return f"{start}: the account is disabled; its subscription may have ended or run out of credit"
    if code in ("AuthorizationSourceIPMismatch", "AuthorizationFailure"):
        return f"{start}: check the account's firewall, and what {place.credential} allows"
    if code == "AuthorizationProtocolMismatch":
        return f"{start}: {place.credential} asks for https"
    if code == "KeyBasedAuthenticationNotPermitted":
        return f"{start}: the account takes no keys; use a SAS signed by a user, or log in with `az login`"
    if code in ("AuthorizationPermissionMismatch", "InsufficientAccountPermissions"):
        return f"{start}: {place.credential} does not allow it{place.advice and '; ' + place.advice}"
    skew = _seconds(answer.headers.get("Date", "")) - time.time()
    if answer.headers.get("Date") and abs(skew) > 600:
        return f"{start}: this computer's clock is {abs(skew) / 60:.0f} minutes off; set it right"
    return f"{start}: check {place.credential}{place.advice and '; ' + place.advice}"


def _retry_after(answer: Answer) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"\d{1,6}", text) else None


def check_range(answer: Answer, name: str, offset: int, length: int | None) -> None:
    """That the answer is the range asked for, whole; `DamagedError` when the object ended before."""
    told = answer.headers.get("Content-Range", "")
    span, _, size = told.removeprefix("bytes ").partition("/")
    if not span.startswith(f"{offset}-") or not size.isdigit():
        raise StoreUnreachableError(f"another range of {name} came than was asked for")
    end = max(int(size), offset + 1) if length is None else offset + length
    if int(size) < end:
        raise DamagedError(f"object {name} has {size} bytes, but {end} are needed")
    if len(answer.body) != end - offset:
        raise StoreUnreachableError(f"{len(answer.body)} bytes of {name} came where {end - offset} were due")


class Page(NamedTuple):
    """One answer to a listing; `marker` asks for the next, empty at the end."""

    blobs: list[BlobInfo]
    folders: list[str]
    marker: str


def page(body: bytes) -> Page:
    """Read a listing's answer, names as they are in the container, folders with their `/`.

    `StoreUnreachableError` when it is not one (a proxy's page, or cut short).
    """
    try:
        # The answer is the store's own; expat since 2.4.1 stops entity bombs by itself.
        root = ElementTree.fromstring(body)  # noqa: S314
        if root.tag != "EnumerationResults":
            raise ValueError(root.tag)
        blobs = [_blob(node) for node in root.iterfind("Blobs/Blob") if not _is_folder(node)]
        folders = [node.findtext("Name") or "" for node in root.iterfind("Blobs/BlobPrefix")]
        return Page(blobs, folders, root.findtext("NextMarker") or "")
    except (ElementTree.ParseError, ValueError) as error:
        raise StoreUnreachableError(f"a listing came back unreadable ({type(error).__name__})") from error


def _is_folder(node: ElementTree.Element) -> bool:
    """Whether an entry stands for a directory of a hierarchical account."""
    return node.findtext("Properties/ResourceType") == "directory"


def _blob(node: ElementTree.Element) -> BlobInfo:
    properties = node.find("Properties")
    if properties is None:
        raise ValueError("no Properties")
    return BlobInfo(
        node.findtext("Name") or "",
        int(properties.findtext("Content-Length") or ""),
        _seconds(properties.findtext("Last-Modified") or ""),
        _digest(properties.findtext("Content-MD5")),
    )


def _seconds(date: str) -> float:
    """RFC 1123 to seconds since 1970. By hand: `email.utils` takes 10 us, 5,000 times a page."""
    if match := _DATE.fullmatch(date):
        day, month, year, hour, minute, second = match.groups()
        number = _MONTHS.index(month) // 3 + 1
        return float(calendar.timegm((int(year), number, int(day), int(hour), int(minute), int(second))))
    parsed = email.utils.parsedate_tz(date)
    return float(email.utils.mktime_tz(parsed)) if parsed else 0.0


def _digest(text: str | None) -> bytes | None:
    try:
        digest = base64.b64decode(text or "", validate=True)
    except binascii.Error:
        return None
    return digest if len(digest) == 16 else None
