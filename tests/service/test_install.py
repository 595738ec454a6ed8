"""Installing a drive as a service, and taking it away again: whole, or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
from pathlib import Path

import click
import pytest

from cloudmount.app import service
from cloudmount.app.service import Wanted, install, mount_arguments, remove, status
from cloudmount.cli.mount import command as mount
from cloudmount.cli.service import command, options_given
from cloudmount.errors import (
    CloudMountError,
    NotFoundError,
    TargetExistsError,
    UnreadableInputError,
    UsageError,
    WrongPassphraseError,
)
from cloudmount.service import changes, credentials, systemctl
from tests.service.conftest import PASSPHRASE, System
from tests.service.systemd import parsed_by_systemd

SECRETS = {
    "AZURE_STORAGE_ACCOUNT": "acc",
    "AZURE_STORAGE_KEY": "a2V5",
    "HOME": "/root",
    "HTTPS_PROXY": "http://u:p@x",
}
UNIT = "etc/systemd/system/cloudmount-mnt-a\\x20drive.service"


@pytest.fixture
def wanted(repository: Path, system: System) -> Wanted:
    """An install with some options, one of them with a folder."""
    return Wanted(
        str(repository), PASSPHRASE, "/mnt/a drive", ["--allow-other", "--hydrate-to=/vms/co pies"],
        ["/vms/co pies"], root=system.root,
    )  # fmt: skip


def silent(line: str) -> None:
    """Remarks that don't matter here."""


def test_what_an_install_makes_and_a_removal_undoes(wanted: Wanted, system: System) -> None:
    before = system.tree()
    made = install(wanted, silent)
    assert (made.unit, made.credentials, made.not_started) == (Path(UNIT).name, "encrypted", "")
    assert [line.split()[0] for line in system.asked] == ["--no-pager", "--no-pager"]
    assert [line.removeprefix("--no-pager ") for line in system.asked] == [
        "daemon-reload", f"enable --now -- {made.unit}",
    ]  # fmt: skip
    unit, record, secret = (
        system.root / UNIT,
        system.root / "etc/cloudmount/cloudmount-mnt-a\\x20drive.json",
        next((system.root / "etc/credstore.encrypted").iterdir()),
    )
    assert sorted(made.files) == sorted([str(unit), str(secret)])
    assert [stat.S_IMODE(p.stat().st_mode) for p in (unit, record, secret, record.parent, secret.parent)] == [
        0o644, 0o600, 0o600, 0o700, 0o700,
    ]  # fmt: skip
    everything = b"".join(content for _, content in system.tree().values())
    assert PASSPHRASE.encode() not in everything and PASSPHRASE not in " ".join(system.asked)
    seen = parsed_by_systemd(unit.read_text())
    assert seen.command[-4:] == ["--", "--allow-other", "--hydrate-to=/vms/co pies", "/mnt/a drive"]
    assert {"/vms/co pies", "/mnt", wanted.address} <= set(seen.required)
    (told,) = status(None, system.root)
    assert (told.state, told.enabled, told.mounted, told.kind) == ("active", "enabled", False, "systemd")
    with pytest.raises(TargetExistsError, match="service remove"):
        install(wanted, silent)
    assert remove("/mnt/a drive", silent, system.root).unit == made.unit
    assert f"--no-pager disable --now -- {made.unit}" in system.asked
    assert system.tree() == before
    with pytest.raises(NotFoundError):
        remove("/mnt/a drive", silent, system.root)


@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-creds is root's")
def test_the_encrypted_credential_is_what_the_service_reads(
    wanted: Wanted, system: System, tmp_path: Path
) -> None:
    """`systemd-creds` itself opens it, under the service's name for it and no other."""
    install(wanted, silent)
    (secret,) = (system.root / "etc/credstore.encrypted").iterdir()
    plain = tmp_path / "cloudmount"
    subprocess.run(
        ["systemd-creds", "decrypt", "--name=cloudmount", secret, plain],
        check=True,
        timeout=60,
        capture_output=True,
    )
    assert credentials.read(plain) == {"CLOUDMOUNT_REPO": wanted.address, "CLOUDMOUNT_PASSPHRASE": PASSPHRASE}
    wrong = subprocess.run(
        ["systemd-creds", "decrypt", "--name=other", secret, "-"],
        check=False,
        timeout=60,
        capture_output=True,
    )
    assert wrong.returncode != 0 and PASSPHRASE.encode() not in wrong.stdout


def test_a_store_in_azure_gets_its_variables_and_no_others(wanted: Wanted) -> None:
    azure = dataclasses.replace(wanted, address="azure://backups/office")
    found = service.variables_for(azure, SECRETS)
    assert found == {
        "CLOUDMOUNT_REPO": "azure://backups/office", "CLOUDMOUNT_PASSPHRASE": PASSPHRASE,
        "AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": "a2V5", "HTTPS_PROXY": "http://u:p@x",
    }  # fmt: skip
    assert set(service.variables_for(wanted, SECRETS)) == {"CLOUDMOUNT_REPO", "CLOUDMOUNT_PASSPHRASE"}


def test_without_systemd_creds_a_file_for_root_only(
    wanted: Wanted, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes) -> bytes:
        raise CloudMountError("systemd-creds is not there")

    monkeypatch.setattr(credentials, "encrypted", refuse)
    before, remarks = system.tree(), []
    with pytest.raises(CloudMountError, match="not there"):
        install(dataclasses.replace(wanted, keep="systemd"), silent)
    assert system.tree() == before and not system.asked
    made = install(wanted, remarks.append)
    assert made.credentials == "file" and "only root" in remarks[0]
    (secret,) = (system.root / "etc/cloudmount").glob("*.credentials")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert credentials.read(secret)["CLOUDMOUNT_PASSPHRASE"] == PASSPHRASE
    assert f"LoadCredential=cloudmount:/etc/cloudmount/{secret.name}\n" in (system.root / UNIT).read_text()
    remove(wanted.mountpoint, silent, system.root)
    assert system.tree() == before


@pytest.mark.parametrize("fails", ["daemon-reload", "enable"])
def test_a_service_that_does_not_start_is_taken_away(wanted: Wanted, system: System, fails: str) -> None:
    before = system.tree()
    system.systemctl(fails)
    with pytest.raises(CloudMountError, match=f"no {fails} today"):
        install(wanted, silent)
    assert system.tree() == before
    assert system.asked[-1] == "--no-pager daemon-reload"  # systemd forgets the unit too
    if fails == "enable":
        assert any(" disable --now " in line for line in system.asked)


@pytest.mark.parametrize("line", [None, "add"])
def test_a_failure_at_any_write_leaves_nothing(
    wanted: Wanted, system: System, monkeypatch: pytest.MonkeyPatch, line: str | None
) -> None:
    """Each write in turn finds the disk full."""
    wanted = dataclasses.replace(wanted, line=line)
    (system.root / "etc/fstab").write_text("proc /proc proc defaults 0 0\n")
    before = system.tree()
    real = changes.write_new
    left = [0]

    def write(path: Path, data: bytes, mode: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(data[: len(data) // 2])
            left[0] = 1000  # what is undone finds room
            raise OSError(28, "No space left on device", str(path))
        real(path, data, mode)

    monkeypatch.setattr(changes, "write_new", write)
    for allowed in range(20):
        left[0] = allowed
        try:
            install(wanted, silent)
        except CloudMountError as error:
            told = str(error)
        else:
            break
        assert "No space left" in told and "not undone" not in told
        assert system.tree() == before, allowed
    else:
        pytest.fail("it never worked")
    assert allowed >= 4
    monkeypatch.setattr(changes, "write_new", real)
    remove(wanted.mountpoint, silent, system.root)
    after = {k: v for k, v in system.tree().items() if k != "etc/fstab"}
    assert after == {k: v for k, v in before.items() if k != "etc/fstab"}


def test_an_install_that_was_killed_is_taken_away_by_remove(
    wanted: Wanted, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = system.tree()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(service, "systemctl", killed)
        patch.setattr(changes.Changes, "__exit__", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            install(wanted, silent)
    assert (system.root / UNIT).exists()
    (told,) = status(None, system.root)
    assert told.state.startswith("half installed")
    remove(wanted.mountpoint, silent, system.root)
    assert system.tree() == before


def test_what_was_changed_since_is_kept(wanted: Wanted, system: System) -> None:
    install(wanted, silent)
    unit, remarks = system.root / UNIT, []
    unit.write_text(unit.read_text() + "# mine\n")
    remove(wanted.mountpoint, remarks.append, system.root)
    assert not unit.exists() and unit.with_name(unit.name + ".saved").read_text().endswith("# mine\n")
    assert ".saved" in remarks[0]


def test_nothing_is_overwritten(wanted: Wanted, system: System) -> None:
    unit = system.root / UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text("mine")
    before = system.tree()
    with pytest.raises(TargetExistsError, match="not overwritten"):
        install(wanted, silent)
    assert system.tree() == before


def test_without_systemd_it_says_what_was_written_and_what_to_run(
    wanted: Wanted, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemctl, "_RUNNING", system.root / "nothing")
    before = system.tree()
    made = install(wanted, silent)
    assert str(system.root / UNIT) in made.not_started and "systemctl enable --now" in made.not_started
    assert (system.root / UNIT).exists() and not system.asked
    (told,) = status(wanted.mountpoint, system.root)
    assert told.state.startswith("unknown: systemd does not run here")
    remove(wanted.mountpoint, silent, system.root)
    assert system.tree() == before


def test_into_another_systems_files(wanted: Wanted, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real systemctl enables it there."""
    monkeypatch.setattr(service, "ROOT", Path("/"))
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    made = install(wanted, silent)
    assert made.credentials == "file" and not made.not_started
    link = system.root / "etc/systemd/system/multi-user.target.wants" / made.unit
    assert link.is_symlink()
    with pytest.raises(UsageError):
        install(dataclasses.replace(wanted, mountpoint="/x", keep="systemd"), silent)
    remove(wanted.mountpoint, silent, system.root)
    assert not link.is_symlink() and not list(system.root.rglob("*cloudmount*"))


def test_wrong_credentials_install_nothing(wanted: Wanted, system: System) -> None:
    before = system.tree()
    with pytest.raises(WrongPassphraseError):
        install(dataclasses.replace(wanted, passphrase="wrong"), silent)
    with pytest.raises(UsageError):
        install(dataclasses.replace(wanted, arguments=["--cache-dir=\0"]), silent)
    assert system.tree() == before


def test_lines_in_fstab(wanted: Wanted, system: System) -> None:
    before = b"# mine\n\nUUID=1 / ext4 defaults 0 1"
    fstab = system.root / "etc/fstab"
    fstab.write_bytes(before)
    fstab.chmod(0o640)
    wanted = dataclasses.replace(wanted, line="add")
    first = install(wanted, silent)
    second = install(dataclasses.replace(wanted, mountpoint="/mnt/two"), silent)
    third = install(dataclasses.replace(wanted, mountpoint="/mnt/three", line="print"), silent)
    assert fstab.read_bytes() == before + f"\n{first.line}\n{second.line}\n".encode()
    assert stat.S_IMODE(fstab.stat().st_mode) == 0o640 and third.line not in fstab.read_text()
    assert first.line == (
        "cloudmount#cloudmount-mnt-a\\134x20drive /mnt/a\\040drive fuse.cloudmount "
        "_netdev,nofail,x-systemd.mount-timeout=90 0 0"
    )
    arguments, variables = mount_arguments("cloudmount#cloudmount-mnt-a\\x20drive", system.root)
    assert arguments == list(wanted.arguments) and variables["CLOUDMOUNT_PASSPHRASE"] == PASSPHRASE
    helper = system.root / "sbin/mount.fuse.cloudmount"
    assert os.access(helper, os.X_OK) and helper.read_text().endswith(' service fstab "$@"\n')
    assert [s.kind for s in status(None, system.root)] == ["fstab"] * 3
    remove("/mnt/a drive", silent, system.root)
    remove("/mnt/three", silent, system.root)
    assert helper.exists() and fstab.read_bytes() == before + f"\n{second.line}\n".encode()
    remove("/mnt/two", silent, system.root)
    assert not helper.exists() and fstab.read_bytes() == before + b"\n"
    with pytest.raises(NotFoundError):
        mount_arguments("cloudmount#cloudmount-mnt-two", system.root)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": "\\u0000"}', b"\xff", b'{"a": "b"'])
def test_what_is_no_credential(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "credential"
    file.write_bytes(content)
    with pytest.raises(UnreadableInputError):
        credentials.read(file)
    with pytest.raises(UnreadableInputError):
        credentials.read(tmp_path / "nothing")


def test_a_record_that_is_broken_is_an_error(system: System) -> None:
    folder = system.root / "etc/cloudmount"
    folder.mkdir(parents=True)
    for content in ("", "[]", '{"version": 2}', '{"version": 1, "x": 1}'):
        (folder / "cloudmount-x.json").write_text(content)
        with pytest.raises(CloudMountError, match=r"cloudmount-x\.json"):
            status("/x", system.root)


def test_a_service_takes_every_option_of_mount_and_gives_it_as_it_was() -> None:
    assert isinstance(command, click.Group)
    installing = command.commands["install"]
    own = {p.name for p in mount.params} - {p.name for p in installing.params}
    assert own == {"daemon"}
    given = [
        "--allow-other",
        "--io-timeout",
        "30",
        "--cache-dir",
        "/c d",
        "--bandwidth=:8M",
        "--cache-size",
        "2G",
    ]
    context = installing.make_context("install", ["--repo", "/r", *given, "/mnt/x"])
    arguments, folders = options_given(context)
    assert folders == ["/c d"]
    again = mount.make_context("mount", [*arguments, "--repo", "/r", "/mnt/x"]).params
    assert again == mount.make_context("mount", [*given, "--repo", "/r", "/mnt/x"]).params


def test_only_root_installs_here(wanted: Wanted, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    before = system.tree()
    monkeypatch.undo()
    monkeypatch.setattr(service, "ROOT", system.root)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CloudMountError, match="sudo"):
        install(wanted, silent)
    with pytest.raises(CloudMountError, match="sudo"):
        remove(wanted.mountpoint, silent, system.root)
    assert system.tree() == before


def test_records_hold_no_secret(wanted: Wanted, system: System) -> None:
    install(dataclasses.replace(wanted, line="print"), silent)
    (record,) = (system.root / "etc/cloudmount").glob("*.json")
    assert PASSPHRASE not in record.read_text() and json.loads(record.read_text())["complete"] is True
