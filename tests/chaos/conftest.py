"""Fixtures of the chaos ring: the logs of what failed."""

from __future__ import annotations

from tests.harness import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
