"""Options that several commands share.

Decided here and only here: their names, forms and texts (`docs/cli.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloudmount.app.sizes import parse_bytes
from cloudmount.cli.output import Output, size_text
from cloudmount.cli.passphrase import TRIES, ask, from_elsewhere
from cloudmount.errors import UsageError, WrongPassphraseError

if TYPE_CHECKING:
    from cloudmount.repo.repository import Repository

F = TypeVar("F", bound=Callable[..., Any])
Bandwidth = tuple[float | None, float | None]


def parse_bandwidth(text: str | None) -> Bandwidth:
    """UP[:DOWN] in bytes a second; an empty one is unlimited."""
    if text is None:
        return None, None
    up, _, down = text.partition(":")

    def limit(part: str) -> float | None:
        value = parse_bytes(part) if part else None
        if value == 0:
            raise UsageError("a bandwidth of 0 moves nothing; leave it out for no limit")
        return value

    if not up and not down:
        raise UsageError(f"{text!r} is no bandwidth; write 2M, 1M:8M or :8M")
    return limit(up), limit(down)


@dataclass(frozen=True, slots=True)
class Common:
    """What every command that opens a repository is given."""

    out: Output
    address: str
    passphrase_file: str | None
    bandwidth: Bandwidth = (None, None)
    opened: list[Repository] = field(default_factory=list)

    def needed_address(self) -> str:
        """The repository; `UsageError` when none was given."""
        if not self.address:
            raise UsageError("which repository? give --repo or set CLOUDMOUNT_REPO")
        return self.address

    def passphrase(self) -> str:
        """From the file, the environment, or the terminal; it may be wrong."""
        return from_elsewhere(self.passphrase_file) or ask()

    def open_repository(self, *, cached: bool = True) -> Repository:
        """The repository, opened. Who types at a terminal is asked again when it was wrong."""
        from cloudmount.app.opening import check_there, open_repository

        given = from_elsewhere(self.passphrase_file)
        if given is None:
            check_there(self.address)  # before somebody types 24 words for nothing
        for left in reversed(range(TRIES)):
            try:
                repository = open_repository(
                    self.address,
                    given or ask(),
                    bandwidth=self.bandwidth,
                    tell=self.out.warn,
                    cached=cached,
                )
                self.opened.append(repository)
                return repository
            except WrongPassphraseError as error:
                if given is not None or not left:
                    raise
                self.out.warn(f"{error}; try again")
        raise AssertionError

    def tell_requests(self) -> None:
        """What the store was asked, for `--verbose`."""
        from cloudmount.blobs.counting import CountingStore

        for repository in self.opened:
            if isinstance(repository.store, CountingStore):
                n = repository.store.snapshot()
                kinds = f"{n.read} reads, {n.list + n.list_folders} listings, {n.writes} writes"
                moved = f"{size_text(n.bytes_down)} came, {size_text(n.bytes_up)} went"
                self.out.say(f"The store was asked {n.requests} times ({kinds}): {moved}.")


_OUTPUT = (
    click.option("--json", "json_", is_flag=True, help="One JSON document on standard output."),
    click.option("--quiet", is_flag=True, help="No progress and no remarks; warnings stay."),
    click.option("--verbose", is_flag=True, help="Say more, and where an error came from."),
)
_STORE = (
    click.option(
        "--repo",
        metavar="R",
        envvar="CLOUDMOUNT_REPO",
        help="Folder, file:///PATH, azure://CONTAINER[/PREFIX] or https://...?SAS  [CLOUDMOUNT_REPO]",
    ),
    click.option(
        "--passphrase-file", metavar="FILE", help="Read the passphrase or recovery phrase from FILE."
    ),
)
_BANDWIDTH = (
    click.option(
        "--bandwidth",
        metavar="UP[:DOWN]",
        help="At most so many bytes a second, such as 2M, 1M:8M or :8M.",
    ),
)


def _with_options(
    wrapped: Callable[..., Any], function: Callable[..., Any], options: Sequence[Callable[..., Any]]
) -> Any:
    """`wrapped` as the command `function`, whose own options come first in its help."""
    wrapped.__doc__, wrapped.__name__ = function.__doc__, function.__name__
    for option in reversed(options):
        wrapped = option(wrapped)
    kept: Any = wrapped
    kept.__click_params__ += getattr(function, "__click_params__", [])  # click reads it from its end
    return kept


def output_options(function: F) -> F:
    """--json, --quiet, --verbose; the command gets `out`."""

    def wrapped(*args: Any, json_: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        return function(*args, out=Output(json=json_, quiet=quiet, verbose=verbose), **kwargs)

    decorated: F = _with_options(wrapped, function, _OUTPUT)
    return decorated


def repository_options(*, moves_data: bool = False, optional: bool = False) -> Callable[[F], F]:
    """--repo and --passphrase-file (and --bandwidth); the command gets `common`. `optional`: it may do
    without a repository."""

    def decorate(function: F) -> F:
        def wrapped(
            *args: Any, out: Output, repo: str | None, passphrase_file: str | None, **kwargs: Any
        ) -> Any:
            bandwidth = parse_bandwidth(kwargs.pop("bandwidth", None))
            common = Common(out, repo or "", passphrase_file, bandwidth)
            if not optional:
                common.needed_address()
            try:
                return function(*args, common=common, **kwargs)
            finally:
                if out.verbose:
                    common.tell_requests()

        decorated: F = output_options(
            _with_options(wrapped, function, _STORE + (_BANDWIDTH if moves_data else ()))
        )
        return decorated

    return decorate
