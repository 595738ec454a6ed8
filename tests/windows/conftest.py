"""What services are installed for."""

from __future__ import annotations

from tests.service.conftest import repository

__all__ = ["repository"]
