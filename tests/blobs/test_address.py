"""What `--repo` and the environment may say, and what is said back; never a secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cloudmount.blobs.address import open_store
from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.azure_place import from_azure_url, from_web_url
from cloudmount.blobs.local import LocalStore
from cloudmount.errors import UsageError

KEY = "c2VjcmV0a2V5" * 6
SAS = "sv=2024-11-04&se=2027-01-01T00%3A00%3A00Z&sr=c&sp=rcl&sig=seCreT%2Bsig%3D"
ACCOUNT = {"AZURE_STORAGE_ACCOUNT": "backups"}
WITH_KEY = ACCOUNT | {"AZURE_STORAGE_KEY": KEY}
WITH_SAS = ACCOUNT | {"AZURE_STORAGE_SAS_TOKEN": "?" + SAS}
HOST = "https://backups.blob.core.windows.net"
STRING = (
    f"DefaultEndpointsProtocol=https;AccountName=backups;AccountKey={KEY};EndpointSuffix=core.windows.net"
)


# --- Folders -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "FILE://{}"])
def test_folders(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a folder"
    store = open_store(form.format(path), {})
    assert isinstance(store, LocalStore)
    assert store.address == str(path)
    assert not path.exists()


def test_relative_folders_are_told_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("backups", {}).address == str(tmp_path / "backups")
    assert open_store("C:backups", {}).address == str(tmp_path / "C:backups")


def test_a_file_address_is_decoded() -> None:
    assert open_store("file:///srv/my%20backups", {}).address == "/srv/my backups"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("file://server/share", "three slashes"),
        ("file:///", "three slashes"),
        ("s3://bucket/x", "s3:// is not known"),
        ("sftp://user:hush@host/x", "sftp:// is not known"),
        ("azure://backups/x?sv=1&sig=hush", "AZURE_STORAGE_SAS_TOKEN"),
        ("azure://Backups", "no container's name"),
        ("azure://b", "no container's name"),
        ("azure://", "no container's name"),
        ("azure://back--ups", "no container's name"),
        ("azure://backups/my folder", "must be of letters"),
        ("azure://backups/../x", "must be of letters"),
        ("https://", "not of the form"),
        ("https://backups.blob.core.windows.net", "no container's name"),
        ("https://user:hush@backups.blob.core.windows.net/office", "not of the form"),
        ("https://backups.blob.core.windows.net:x/office?sig=hush", "not a web address"),
        ("https://backups.blob.core.windows.net/office?hush", "holds no SAS"),
        ("https://backups.blob.core.windows.net/office?sv=1&sig=hu sh", "holds no SAS"),
        ("http://backups.blob.core.windows.net/office?sig=hush", "use https"),
        ("https://others.blob.core.windows.net/office", "account others"),
        ("nul\0", "zero byte"),
    ],
)
def test_wrong_addresses(address: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_store(address, WITH_KEY)
    assert "hush" not in str(caught.value)
    assert "hu sh" not in str(caught.value)


# --- Azure's places ----------------------------------------------------------------------


def test_azure_url_with_a_key() -> None:
    place = from_azure_url("azure://office/servers/one/", WITH_KEY)
    assert (place.account, place.container, place.prefix) == ("backups", "office", "servers/one")
    assert place.container_url == "https://backups.blob.core.windows.net/office"
    assert place.address == "azure://office/servers/one"
    assert (place.key, place.sas, place.credential) == (KEY, None, "AZURE_STORAGE_KEY")


def test_azure_url_with_a_sas() -> None:
    place = from_azure_url("azure://office", WITH_SAS)
    assert (place.key, place.sas, place.credential) == (None, SAS, "AZURE_STORAGE_SAS_TOKEN")
    assert place.advice == "its permissions are rcl, it ends 2027-01-01T00:00:00Z"


def test_azure_url_with_a_login() -> None:
    place = from_azure_url("azure://office", ACCOUNT)
    assert (place.key, place.sas, place.credential) == (None, None, "the Azure login")


@pytest.mark.parametrize(
    ("text", "url", "secret"),
    [
        (STRING, HOST, KEY),
        (
            STRING.replace("windows.net", "chinacloudapi.cn") + ";",
            HOST.replace("windows.net", "chinacloudapi.cn"),
            KEY,
        ),
        (f"AccountName=backups;AccountKey={KEY}", HOST, KEY),
        (f"BlobEndpoint=https://backups.blob.core.windows.net/;SharedAccessSignature={SAS}", HOST, SAS),
        (f"BlobEndpoint=http://127.0.0.1:9/backups;AccountKey={KEY}", "http://127.0.0.1:9/backups", KEY),
    ],
)
def test_connection_strings(text: str, url: str, secret: str) -> None:
    place = from_azure_url("azure://office", WITH_SAS | {"AZURE_STORAGE_CONNECTION_STRING": text})
    assert (place.account, place.container_url) == ("backups", f"{url}/office")
    assert secret in (place.key, place.sas)


def test_the_emulators_connection_string() -> None:
    environ = {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"}
    place = from_azure_url("azure://office", environ)
    assert place.container_url == "http://127.0.0.1:10000/devstoreaccount1/office"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "does not name an account"),
        ({"AZURE_STORAGE_ACCOUNT": ""}, "does not name an account"),
        ({"AZURE_STORAGE_ACCOUNT": "https://backups.blob"}, "no account's name"),
        (ACCOUNT | {"AZURE_STORAGE_KEY": "hush-hush"}, "holds no account key"),
        (ACCOUNT | {"AZURE_STORAGE_SAS_TOKEN": "hush"}, "holds no SAS"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "hush"}, "not a list of NAME=VALUE"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=http://[::1"}, "is not a web address"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=http://127.0.0.1:x/a"}, "is not a web address"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountKey=hush"}, "neither AccountName nor BlobEndpoint"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=hush!"}, "holds no account key"),
    ],
)
def test_wrong_environments(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        from_azure_url("azure://office", environ)
    assert "hush" not in str(caught.value)


def test_web_url_with_a_sas() -> None:
    place = from_web_url(f"https://others.blob.core.windows.net/office/a/b?{SAS}", WITH_KEY)
    assert (place.account, place.container, place.prefix) == ("others", "office", "a/b")
    assert place.address == "https://others.blob.core.windows.net/office/a/b"
    assert (place.key, place.sas) == (None, SAS)


def test_web_url_of_an_emulator() -> None:
    for host in ("127.0.0.1:10000", "localhost:10000", "[::1]:10000"):
        place = from_web_url(f"http://{host}/devstoreaccount1/office/a?{SAS}", {})
        assert (place.account, place.container, place.prefix) == ("devstoreaccount1", "office", "a")
        assert place.container_url == f"http://{host}/devstoreaccount1/office"


@pytest.mark.parametrize("environ", [WITH_KEY, WITH_SAS, {"AZURE_STORAGE_CONNECTION_STRING": STRING}])
def test_web_url_without_a_sas_uses_the_environment_of_its_account(environ: dict[str, str]) -> None:
    place = from_web_url("https://backups.blob.core.windows.net/office", environ)
    assert place.key == KEY or place.sas == SAS


def test_web_url_without_anything_uses_a_login() -> None:
    place = from_web_url("https://backups.blob.core.windows.net/office", {})
    assert (place.key, place.sas) == (None, None)


def test_no_repr_shows_a_secret() -> None:
    for environ in (WITH_KEY, WITH_SAS):
        assert KEY not in repr(from_azure_url("azure://office", environ))
        assert "seCreT" not in repr(from_azure_url("azure://office", environ))


def test_stores_are_told_without_secrets() -> None:
    store = open_store(f"HTTPS://backups.blob.core.windows.net/office/a?{SAS}", {})
    assert isinstance(store, AzureStore)
    assert store.address == "https://backups.blob.core.windows.net/office/a"
    store.close()


@pytest.mark.parametrize(
    ("address", "unwanted"),
    [
        ("/tmp/x", ["azure", "http.client", "ssl", "xml.etree.ElementTree"]),
        (f"https://backups.blob.core.windows.net/office?{SAS}", ["azure", "requests"]),
    ],
)
def test_what_is_not_used_is_not_imported(address: str, unwanted: list[str]) -> None:
    """The SDK takes 170 ms, and only keys and logins need it."""
    code = (
        "import sys; from cloudmount.blobs.address import open_store; "
        f"open_store({address!r}, {{}}); sys.exit(repr([m for m in {unwanted!r} if m in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert ran.stderr.strip() == "[]"
