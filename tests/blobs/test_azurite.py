"""What only an Azure store does, on Azurite; what every store does is in test_conformance.py."""

from __future__ import annotations

import pytest

from cloudmount.blobs.address import open_store
from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.counting import CountingStore
from cloudmount.errors import BlobMissingError, StoreError, StoreRefusedError
from tests.azurite_server import ACCOUNT, KEY, AzuriteServer

pytestmark = pytest.mark.azurite


def test_every_way_to_name_a_store(azurite: AzuriteServer) -> None:
    name = azurite.new_container()
    sas = azurite.sas(name, "rcl")
    endpoint = f"BlobEndpoint={azurite.account_url};AccountName={ACCOUNT};"
    ways = [
        (f"azure://{name}/a", {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}),
        (f"azure://{name}/a", {"AZURE_STORAGE_CONNECTION_STRING": f"{endpoint}SharedAccessSignature={sas}"}),
        (f"azure://{name}/a", {"AZURE_STORAGE_CONNECTION_STRING": f"{endpoint}AccountKey={KEY}"}),
        (f"{azurite.account_url}/{name}/a?{sas}", {}),
        (f"{azurite.account_url}/{name}/a/", {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}),
    ]
    for number, (address, environ) in enumerate(ways):
        with open_store(address, environ) as store:
            store.create(f"way/{number}", b"1")
            assert len([*store.list("way/")]) == number + 1
            assert sas not in store.address
    with AzureStore(azurite.place(name)) as whole:
        assert [*whole.list_folders("")] == ["a"]


def test_folders_of_a_container_are_apart(azurite: AzuriteServer) -> None:
    name = azurite.new_container()
    with (
        AzureStore(azurite.place(name, prefix="one")) as one,
        AzureStore(azurite.place(name, prefix="one/two")) as two,
        AzureStore(azurite.place(name, prefix="on")) as three,
    ):
        one.create("x", b"1")
        two.create("x", b"2")
        three.create("x", b"3")
        assert [blob.name for blob in one.list("")] == ["two/x", "x"]
        assert [blob.name for blob in two.list("")] == ["x"]
        assert two.read("x") == b"2"
        with pytest.raises(BlobMissingError):
            three.read("two/x")


def test_a_wrong_key_and_a_sas_of_another_container(azurite: AzuriteServer) -> None:
    name, other = azurite.new_container(), azurite.new_container()
    wrong = azurite.connection_string.replace(KEY, "d3Jvbmdr" * 11)
    for address, environ, named in (
        (f"azure://{name}", {"AZURE_STORAGE_CONNECTION_STRING": wrong}, "AZURE_STORAGE_CONNECTION_STRING"),
        (f"{azurite.account_url}/{name}?{azurite.sas(other, 'rcl')}", {}, "the SAS in the address"),
    ):
        with open_store(address, environ) as store:
            for ask in (lambda: store.read("config"), lambda: [*store.list("")], store.prepare):
                with pytest.raises(StoreRefusedError, match=named) as caught:
                    ask()
                assert "sig=" not in str(caught.value)


def test_create_and_list_only_reads_nothing(azurite: AzuriteServer) -> None:
    """A SAS of `cl` can't even read the config; the message says what is missing."""
    with AzureStore(azurite.place(azurite.new_container(), permissions="cl")) as store:
        store.create("config", b"1")
        with pytest.raises(StoreRefusedError, match="its permissions are cl"):
            store.read("config")


def test_tiers(azurite: AzuriteServer) -> None:
    from azure.storage.blob import BlobServiceClient

    name = azurite.new_container()
    with AzureStore(azurite.place(name)) as store:
        for tier in ("hot", "cool", "cold"):
            store.create(tier, b"1", tier=tier)
        with pytest.raises(KeyError):
            store.create("x", b"1", tier="archive")
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        found = {
            str(blob.name): str(blob.blob_tier) for blob in service.get_container_client(name).list_blobs()
        }
    assert found == {"hot": "Hot", "cool": "Cool", "cold": "Cold"}


def test_a_garbled_upload_is_refused_by_its_digest(
    azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AzureStore(azurite.place(azurite.new_container(), permissions="rcl")) as store:
        send = store._send

        def garble(method, target, headers, body, deadline, most):  # type: ignore[no-untyped-def] # as _send
            return send(method, target, headers, body and body[:-1] + b"?", deadline, most)

        monkeypatch.setattr(store, "_send", garble)
        with pytest.raises(StoreError, match="400"):
            store.create("x", b"12345")
        monkeypatch.undo()
        assert [*store.list("")] == []


def test_a_listing_that_goes_on_asks_no_page_twice(
    azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudmount.blobs.azure.LIST_PAGE", 10)
    with AzureStore(azurite.place(azurite.new_container(), permissions="rcl")) as store:
        names = [f"packs/{number:02}" for number in range(35)]
        for name in names:
            store.create(name, b"")
        pages = 0
        real = store._page

        def count(*arguments, **options):  # type: ignore[no-untyped-def] # as _page
            nonlocal pages
            pages += 1
            return real(*arguments, **options)

        monkeypatch.setattr(store, "_page", count)
        listing = store.list("packs/")
        first = [next(listing).name for _ in range(20)]
        listing.close()  # type: ignore[attr-defined] # a generator
        assert pages == 2
        # The page's marker is kept only once the next page was wanted: go on behind page one.
        rest = [blob.name for blob in store.list("packs/", after=first[9])]
        assert [*first[:10], *rest] == names
        assert pages == 2 + 3
        assert [blob.name for blob in store.list("packs/", limit=12)] == names[:12]


def test_limits_of_up_to_a_page_are_one_request(azurite: AzuriteServer) -> None:
    with AzureStore(azurite.place(azurite.new_container(), permissions="rcl")) as inner:
        store = CountingStore(inner)
        for number in range(5):
            store.create(f"x{number}", b"")
        before = store.snapshot()
        assert [blob.name for blob in store.list("x", limit=1)] == ["x0"]
        assert len([*store.list("x", limit=1000)]) == 5
        assert (store.snapshot() - before).requests == 2
