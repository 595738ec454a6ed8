"""Azure's error codes and listings in our words."""

from __future__ import annotations

import email.message
import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.blobs.azure_answers import Place, failure, page
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

PLACE = Place("backups", "office", "AZURE_STORAGE_SAS_TOKEN", "its permissions are rcl, it ends tomorrow")


def answer(status: int, code: str = "", *, body: bytes = b"", **headers: str) -> Answer:
    message = email.message.Message()
    if code:
        message["x-ms-error-code"] = code
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return Answer(status, message, body)


@pytest.mark.parametrize(
    ("status", "code", "what", "kind", "said"),
    [
        (404, "BlobNotFound", "read", BlobMissingError, "packs/x"),
        (404, "", "read", BlobMissingError, "packs/x"),
        (404, "ContainerNotFound", "read", NoRepositoryError, "no container office.*cloudmount init"),
        (404, "ContainerNotFound", "create", NoRepositoryError, "no container office"),
        (409, "BlobAlreadyExists", "create", BlobExistsError, "exists already"),
        (412, "ConditionNotMet", "create", BlobExistsError, "exists already"),
        (403, "UnauthorizedBlobOverwrite", "create", BlobExistsError, "exists already"),
        (409, "BlobImmutableDueToPolicy", "create", BlobExistsError, "exists already"),
        (409, "BlobImmutableDueToPolicy", "delete", StoreRefusedError, "immutability policy"),
        (403, "AuthorizationPermissionMismatch", "create", StoreRefusedError, "its permissions are rcl"),
        (403, "AuthenticationFailed", "read", StoreRefusedError, "check AZURE_.*ends tomorrow"),
        (403, "AuthorizationFailure", "read", StoreRefusedError, "firewall"),
        (403, "AuthorizationSourceIPMismatch", "read", StoreRefusedError, "firewall"),
        (403, "AuthorizationProtocolMismatch", "read", StoreRefusedError, "https"),
        (403, "KeyBasedAuthenticationNotPermitted", "read", StoreRefusedError, "takes no keys"),
        (403, "AccountIsDisabled", "read", StoreRefusedError, "account is disabled.*subscription"),
        (401, "InvalidAuthenticationInfo", "read", StoreRefusedError, "401 InvalidAuthenticationInfo"),
        (404, "ResourceNotFound", "list", NoRepositoryError, "no container office"),
        (416, "InvalidRange", "read", DamagedError, "ends before"),
        (409, "BlobArchived", "read", StoreRefusedError, "archive tier"),
        (409, "ContainerBeingDeleted", "create", StoreBusyError, "ContainerBeingDeleted"),
        (400, "Md5Mismatch", "create", StoreUnreachableError, "garbled"),
        (413, "RequestBodyTooLarge", "create", StoreRefusedError, "413 RequestBodyTooLarge"),
        (200, "", "create", StoreUnreachableError, "not Azure"),
        (302, "", "read", StoreRefusedError, "302"),
        (501, "NotImplemented", "read", StoreRefusedError, "501"),
        (408, "", "read", StoreBusyError, "408"),
        (429, "", "read", StoreBusyError, "429"),
        (500, "InternalError", "read", StoreBusyError, "500 InternalError"),
        (502, "", "read", StoreBusyError, "502"),
        (503, "ServerBusy", "read", StoreBusyError, "503 ServerBusy"),
        (504, "", "read", StoreBusyError, "504"),
    ],
)  # fmt: skip
def test_failures(status: int, code: str, what: str, kind: type[CloudMountError], said: str) -> None:
    error = failure(answer(status, code), what, "" if what == "list" else "packs/x", PLACE)
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error


def test_the_code_may_be_in_the_body_only() -> None:
    body = b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>ContainerNotFound</Code></Error>"
    assert isinstance(failure(answer(404, body=body), "list", "", PLACE), NoRepositoryError)


def test_no_text_of_the_server_is_shown() -> None:
    body = b"<Error><Code>A<b>sig=hush</b></Code><Message>sig=hush</Message></Error>"
    error = failure(answer(403, "bad code; sig=hush", body=body), "read", "x", PLACE)
    assert "hush" not in str(error)


def test_a_wrong_clock_is_told() -> None:
    """A blank PC's, mostly."""
    date = email.utils.formatdate(time.time() + 7200, usegmt=True)
    error = failure(answer(403, "AuthenticationFailed", Date=date), "read", "x", PLACE)
    assert "clock is 120 minutes off" in str(error)


@pytest.mark.parametrize(
    ("header", "seconds"), [("5", 5.0), ("0", 0.0), ("", None), ("soon", None), ("-1", None), ("9" * 9, None)]
)
def test_retry_after(header: str, seconds: float | None) -> None:
    error = failure(answer(503, Retry_After=header), "read", "x", PLACE)
    assert isinstance(error, StoreBusyError)
    assert error.retry_after == seconds


LISTING = """<?xml version="1.0" encoding="utf-8"?>
<EnumerationResults ServiceEndpoint="https://backups.blob.core.windows.net/" ContainerName="office">
 <Prefix>a</Prefix><Blobs>
  <Blob><Name>a/1</Name><Properties><Last-Modified>Fri, 20 Nov 2026 10:00:01 GMT</Last-Modified>
   <Content-Length>5</Content-Length><Content-MD5>1B2M2Y8AsgTpgAmY7PhCfg==</Content-MD5></Properties></Blob>
  <Blob><Name>a/2</Name><Properties><Last-Modified>Tue, 29 Feb 2028 23:59:59 GMT</Last-Modified>
   <Content-Length>0</Content-Length><Content-MD5 /></Properties></Blob>
  <Blob><Name>a/3</Name><Properties><Last-Modified>Fri, 20 Nov 2026 10:00:01 GMT</Last-Modified>
   <Content-Length>0</Content-Length><ResourceType>directory</ResourceType></Properties></Blob>
  <BlobPrefix><Name>a/b/</Name></BlobPrefix>
 </Blobs><NextMarker>2!92!next</NextMarker></EnumerationResults>"""


def test_listing() -> None:
    found = page(("﻿" + LISTING).encode())
    assert found.blobs == [
        BlobInfo("a/1", 5, 1795168801.0, bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")),
        BlobInfo("a/2", 0, 1835481599.0, None),
    ]
    assert found.folders == ["a/b/"]
    assert found.marker == "2!92!next"


@pytest.mark.parametrize("cut", [0, 1, 40, 500, len(LISTING) - 1])
def test_a_listing_cut_short_is_no_listing(cut: int) -> None:
    with pytest.raises(StoreUnreachableError, match="unreadable"):
        page(LISTING.encode()[:cut])


@pytest.mark.parametrize(
    "body",
    [
        b"<html><body>Log in to the hotel's network</body></html>",
        b"<EnumerationResults><Blobs><Blob><Name>x</Name></Blob></Blobs></EnumerationResults>",
        LISTING.replace(">5<", ">five<").encode(),
    ],
)
def test_what_is_no_listing(body: bytes) -> None:
    with pytest.raises(StoreUnreachableError, match="unreadable"):
        page(body)


@given(st.integers(0, 4_000_000_000))
def test_times_are_those_of_the_standard_library(seconds: int) -> None:
    date = email.utils.formatdate(seconds, usegmt=True)
    assert page(LISTING.replace("Fri, 20 Nov 2026 10:00:01 GMT", date).encode()).blobs[0].modified == seconds
