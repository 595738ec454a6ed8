"""What some tests need of whoever runs them. CI is root, so it skips none of them."""

from __future__ import annotations

import os

import pytest

IS_ROOT = os.geteuid() == 0

root = pytest.mark.skipif(not IS_ROOT, reason="needs root: to mount, or for FUSE pass-through")
