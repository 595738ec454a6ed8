"""Which Azure container an address names, and what opens it.

Decided here and only here: how `azure://` and `https://` addresses and the
`AZURE_STORAGE_*` variables (cli.md) become an account, a container, a prefix and a
credential. Secrets stay in `key` and `sas`, which no `repr` shows. Knows no SDK.
Pure.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudmount.blobs.store import check_name
from cloudmount.errors import UsageError

_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]|\$root")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_VARIABLES = (
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or "
    "AZURE_STORAGE_SAS_TOKEN"
)
# The emulator's account, the same on every computer (Azurite's README): no secret.
_EMULATOR = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "http://127.0.0.1:10000/devstoreaccount1",
)


@dataclass(frozen=True, slots=True)
class AzurePlace:
    """A container or a folder in one. With neither `key` nor `sas` an Azure login opens it."""

    account: str
    container: str
    prefix: str
    """Folder within the container, without slashes at its ends; may be empty."""
    container_url: str
    """`https://ACCOUNT.blob.core.windows.net/CONTAINER`, without a SAS."""
    address: str
    """How people named it, without secrets."""
    credential: str
    """What opens it, as people know it."""
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)

    @property
    def advice(self) -> str:
        """What may be wrong with the credential."""
        if not self.sas:
            return "" if self.key else "the login needs the role Storage Blob Data Contributor (or Reader)"
        told = dict(urllib.parse.parse_qsl(self.sas))
        return (
            f"its permissions are {told.get('sp', 'those of its policy')}, "
            f"it ends {told.get('se', 'with its policy')}"
        )


@dataclass(frozen=True, slots=True)
class _Account:
    """What the environment tells: an account's URL and what opens it."""

    name: str
    url: str
    credential: str
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)


def from_azure_url(address: str, environ: Mapping[str, str]) -> AzurePlace:
    """`azure://CONTAINER[/PREFIX]`, its account from the environment; `UsageError` when it can't be told."""
    rest = address.removeprefix("azure://")
    if "?" in rest or "#" in rest:
        shown = rest.partition("?")[0].partition("#")[0]
        raise UsageError(f"azure://{shown} can't take a SAS in the address: set AZURE_STORAGE_SAS_TOKEN")
    container, _, prefix = rest.partition("/")
    account = _account(environ)
    if account is None:
        raise UsageError(f"azure://{rest} does not name an account: set {_VARIABLES}")
    return _place(address, account, container, prefix)


def from_web_url(address: str, environ: Mapping[str, str]) -> AzurePlace:
    """`https://ACCOUNT.blob.../CONTAINER[/PREFIX][?SAS]`, or the same of an emulator, whose account is
    the first part of the path (`http://127.0.0.1:10000/devstoreaccount1/CONTAINER`).

    Without a SAS what opens it comes from the environment, when that speaks of the same account.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"{without_secrets(address)} is not a web address") from None
    shown = without_secrets(address)
    if not host or parts.username is not None or parts.fragment:
        raise UsageError(f"{shown} is not of the form https://ACCOUNT.blob.core.windows.net/CONTAINER?SAS")
    if parts.scheme == "http" and not _is_local(host):
        raise UsageError(f"{shown} would send the SAS in the clear: use https")
    path = urllib.parse.unquote(parts.path).strip("/")
    base = f"{parts.scheme}://{parts.netloc}"
    if _is_local(host):
        name, _, path = path.partition("/")
        base += f"/{name}"
    else:
        name = host.partition(".")[0]
    container, _, prefix = path.partition("/")
    if parts.query:
        account = _Account(name, base, "the SAS in the address", sas=_sas(parts.query, "the address"))
        return _place(shown, account, container, prefix)
    known = _account(environ)
    if known is None:
        known = _Account(name, base, "the Azure login")
    elif known.name != name:
        raise UsageError(
            f"{shown} is in account {name}, but the AZURE_STORAGE_ variables are for {known.name}: "
            "set them for the one, or put a SAS into the address"
        )
    return _place(shown, _Account(name, base, known.credential, known.key, known.sas), container, prefix)


def without_secrets(address: str) -> str:
    """An address as it may be shown: without a query, a fragment, and a user's name and password."""
    start, mark, rest = address.partition("?")[0].partition("#")[0].partition("://")
    return f"{start}://{rest.rpartition('@')[2]}" if mark else start


def _place(address: str, account: _Account, container: str, prefix: str) -> AzurePlace:
    prefix = prefix.strip("/")
    if not _CONTAINER.fullmatch(container):
        raise UsageError(
            f"{address}: {container!r} is no container's name "
            "(3 to 63 small letters, digits and single hyphens)"
        )
    if prefix:
        try:
            check_name(prefix)
        except ValueError:
            raise UsageError(
                f"{address}: the folder {prefix!r} must be of letters, digits and -_.=~+"
            ) from None
    return AzurePlace(
        account.name,
        container,
        prefix,
        f"{account.url.rstrip('/')}/{container}",
        address.rstrip("/"),
        account.credential,
        account.key,
        account.sas,
    )


def _is_local(host: str) -> bool:
    """Whether an account there is the first part of the path, as with an emulator."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def _account(environ: Mapping[str, str]) -> _Account | None:
    """The account the environment speaks of; None when it names none."""
    if text := environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        return _connection_string(text)
    name = environ.get("AZURE_STORAGE_ACCOUNT")
    if not name:
        return None
    if not _ACCOUNT.fullmatch(name):
        raise UsageError(
            f"AZURE_STORAGE_ACCOUNT {name!r} is no account's name (3 to 24 small letters and digits)"
        )
    url = f"https://{name}.blob.core.windows.net"
    if key := environ.get("AZURE_STORAGE_KEY"):
        return _Account(name, url, "AZURE_STORAGE_KEY", key=_key(key, "AZURE_STORAGE_KEY"))
    if sas := environ.get("AZURE_STORAGE_SAS_TOKEN"):
        return _Account(name, url, "AZURE_STORAGE_SAS_TOKEN", sas=_sas(sas, "AZURE_STORAGE_SAS_TOKEN"))
    return _Account(name, url, "the Azure login")


def _connection_string(text: str) -> _Account:
    """`DefaultEndpointsProtocol=https;AccountName=...;AccountKey=...;EndpointSuffix=...` and its kin."""
    variable = "AZURE_STORAGE_CONNECTION_STRING"
    fields = {}
    for part in text.strip().strip(";").split(";"):
        name, mark, value = part.partition("=")
        if not mark:
            raise UsageError(f"{variable} is not a list of NAME=VALUE separated by semicolons")
        fields[name.strip().lower()] = value.strip()
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        return _Account(_EMULATOR[0], _EMULATOR[2], variable, key=_EMULATOR[1])
    account = fields.get("accountname", "")
    url = fields.get("blobendpoint", "").rstrip("/")
    if not url and account:
        suffix = fields.get("endpointsuffix", "core.windows.net")
        url = f"{fields.get('defaultendpointsprotocol', 'https')}://{account}.blob.{suffix}"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"{variable}: its BlobEndpoint is not a web address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{variable} names neither AccountName nor BlobEndpoint")
    if not account:
        account = parts.path.strip("/") if _is_local(host) else host.partition(".")[0]
    if key := fields.get("accountkey"):
        return _Account(account, url, variable, key=_key(key, variable))
    if sas := fields.get("sharedaccesssignature"):
        return _Account(account, url, variable, sas=_sas(sas, variable))
    return _Account(account, url, "the Azure login")


def _key(text: str, where: str) -> str:
    try:
        if base64.b64decode(text, validate=True):
            return text
    except binascii.Error:
        pass
    raise UsageError(f"{where} holds no account key (base64, 88 characters): copy it again, whole")


def _sas(text: str, where: str) -> str:
    sas = text.strip().lstrip("?")
    if "sig=" not in sas or not sas.isascii() or any(c.isspace() for c in sas):
        raise UsageError(f"{where} holds no SAS (a text with sv=, sp= and sig= in it): copy it again, whole")
    return sas
