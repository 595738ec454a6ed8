"""Addresses of repositories: what `--repo` and CLOUDMOUNT_REPO may say.

Decided here and only here: which store an address names. The stores are imported
when they are named, so a folder costs no Azure. Pure but for making the store.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from cloudmount.blobs.azure_place import from_azure_url, from_web_url, without_secrets
from cloudmount.blobs.store import BlobStore
from cloudmount.errors import UsageError


def open_store(address: str, environ: Mapping[str, str], *, connections: int = 16) -> BlobStore:
    """The store at `address`: a folder's path, `file:///path`, `azure://CONTAINER[/PREFIX]`, or
    `https://ACCOUNT.blob.../CONTAINER[/PREFIX]?SAS`.

    Nothing is asked of it yet, so a folder may be missing and a host unreachable; wrap it in
    `retrying`. `connections` is how many threads will use it at once. `UsageError` when the
    address or the `AZURE_STORAGE_*` variables in `environ` are wrong.
    """
    if not address.strip():
        raise UsageError("the repository's address is empty: give --repo or set CLOUDMOUNT_REPO")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(?=//)", address)  # one letter is a Windows drive
    if scheme is None:
        return _folder(Path(address))
    kind = scheme[1].lower()
    if kind == "file":
        return _folder(_file_path(address))
    if kind in ("azure", "http", "https"):
        from cloudmount.blobs.azure import AzureStore

        place = from_azure_url if kind == "azure" else from_web_url
        return AzureStore(place(kind + address[len(kind) :], environ), connections=connections)
    raise UsageError(
        f"{without_secrets(address)}: {kind}:// is not known; a repository is a folder, file:///PATH, "
        "azure://CONTAINER[/PREFIX], or https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]?SAS"
    )


def _folder(path: Path) -> BlobStore:
    from cloudmount.blobs.local import LocalStore

    if "\0" in str(path):
        raise UsageError("a folder's path can't hold a zero byte")
    return LocalStore(path)


def _file_path(address: str) -> Path:
    parts = urllib.parse.urlsplit(address)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or parts.path in ("", "/"):
        raise UsageError(f"{without_secrets(address)}: a folder's address is file:///PATH, three slashes")
    path = urllib.parse.unquote(parts.path)
    if re.match(r"/[A-Za-z]:", path):  # file:///C:/backups
        path = path[1:]
    return Path(path)
