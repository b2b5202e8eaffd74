"""Fixtures of the property ring: the bus within the test's own process, as the integration ring has it."""

from tests.integration.conftest import bus_process, own_hub

__all__ = ["bus_process", "own_hub"]
