"""Fixtures of the end-to-end ring: one site a module, stock clients, and the logs of what failed."""

from __future__ import annotations

from tests.harness import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
