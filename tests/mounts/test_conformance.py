"""The conformance suite of trees on every driver."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.native_driver import NativeDrive
from cloudmount.nodes import Dir
from tests.mounts.drivers import DRIVERS, each_driver
from tests.mounts.mounting import Mounted, mounted
from tests.trees.calls import Mount
from tests.trees.conformance import TreeConformance
from tests.trees.conformance_life import TreeLifeConformance
from tests.trees.copied_tree import CopiedDir


@pytest.mark.mount
@each_driver
class TestDrivers(TreeConformance, TreeLifeConformance):
    @pytest.fixture
    def mount(self, tmp_path: Path, driver: str) -> Iterator[Mount]:
        with ExitStack() as mounts:
            numbers = itertools.count(1)

            def mount(root: Dir, options: DriveOptions | None = None, path: Path | None = None) -> Mounted:
                path = path or tmp_path / f"mount{next(numbers)}"
                return mounts.enter_context(mounted(DRIVERS[driver], root, path, options))

            yield mount


@pytest.mark.mount
class TestPassThrough(TreeConformance, TreeLifeConformance):
    """The native driver, where the kernel reads what it can from complete copies by itself."""

    @pytest.fixture
    def mount(self, tmp_path: Path) -> Iterator[Mount]:
        with ExitStack() as mounts:
            numbers = itertools.count(1)
            copies = tmp_path / "copies"
            copies.mkdir()

            def mount(root: Dir, options: DriveOptions | None = None, path: Path | None = None) -> Mounted:
                path = path or tmp_path / f"mount{next(numbers)}"
                shown = CopiedDir(root, copies)
                return mounts.enter_context(mounted(NativeDrive, shown, path, options))

            yield mount
