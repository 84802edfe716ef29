"""What holds for every test: the collector sees as little as in a server, which also sets aside what its start made."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """A version that goes is collected at once; over all that pytest holds each time would take a third of a second."""
    gc.collect()
    gc.freeze()
