"""`cloudmount backup`."""

from __future__ import annotations

import importlib
import threading

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Moment, count_text, seconds_text, size_text

INCOMPLETE = 9


@click.command()
@repository_options(moves_data=True)
@click.option("--name", metavar="M", help="The machine's name; this computer's when left out.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches (*, ?, [...]).")
@click.option("--as-file", multiple=True, metavar="PATTERN", help="Keep matching disk images as plain files.")
@click.option("--force-read", is_flag=True, help="Read unchanged files and images again too.")
@click.option(
    "--machine", "machine_file", metavar="FILE", help="What it is beside its disks, for boot (TOML)."
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def command(
    common: Common,
    name: str | None,
    exclude: tuple[str, ...],
    as_file: tuple[str, ...],
    force_read: bool,
    machine_file: str | None,
    paths: tuple[str, ...],
) -> int:
    """Back up disks, files and folders as one snapshot.

    Disk images (VHDX, VHD, raw) are stored by their content, chains flattened; only what is new is
    sent. An interrupted backup goes on where it was when it is run again.
    """
    from cloudmount.app.estimate import Estimate
    from cloudmount.app.machinefile import read_machine_file
    from cloudmount.app.select import machine_name
    from cloudmount.backup.progress import BackupProgress
    from cloudmount.backup.sources import Sources

    out = common.out
    hardware = read_machine_file(machine_file) if machine_file is not None else None
    Sources(paths, as_file=as_file)  # a path that can't be read is told before a passphrase is asked for
    if name is not None:
        machine_name(name)
    progress = BackupProgress()
    # Loaded while the passphrase is asked for and hashed: 0.1 s less to wait.
    threading.Thread(target=importlib.import_module, args=("cloudmount.app.backup",), daemon=True).start()
    repository = common.open_repository()
    from cloudmount.app.backup import backup, own_folders

    estimate = Estimate(paths, exclude=exclude, leave_out=own_folders(repository))

    def moment() -> Moment:
        total = max(estimate.total, progress.source_bytes) if estimate.total is not None else 0
        return Moment(progress.done_bytes, total, progress.current)

    if not out.quiet:
        estimate.start()
    with out.progress(moment):
        result, folder = backup(
            repository,
            paths,
            name=name,
            progress=progress,
            exclude=exclude,
            as_file=as_file,
            force_read=force_read,
            hardware=hardware,
        )
    estimate.stop()
    value = {
        "snapshot": result.key.id,
        "name": folder,
        "machine": result.machine,
        "time": result.summary["time"],
        "source_bytes": progress.source_bytes,
        "read_bytes": progress.read_bytes,
        "new_bytes": progress.new_bytes,
        "stored_bytes": progress.stored_bytes,
        "frames": progress.frames,
        "new_frames": progress.new_frames,
        "writes": progress.writes,
        "seconds": round(result.seconds, 3),
        "incomplete": result.incomplete,
    }
    counts = {"disk": len(result.summary["disks"]), "file": result.summary["files"]["count"]}
    what = [count_text(count, thing) for thing, count in counts.items() if count] or ["folders only"]
    text = (
        f"{result.machine}/{folder}: {', '.join(what)}, {size_text(progress.source_bytes)}\n"
        f"{size_text(progress.read_bytes)} read, {size_text(progress.new_bytes)} new, "
        f"{size_text(progress.stored_bytes)} stored in {seconds_text(result.seconds)}"
    )
    out.result(value, text)
    if result.incomplete:
        problems = count_text(result.summary["problem_count"], "problem")
        out.warn(f"done, but incomplete: {problems}, told above ('cloudmount show' lists them too)")
        return INCOMPLETE
    return 0
