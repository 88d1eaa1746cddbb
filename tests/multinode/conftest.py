"""What the tests with two hosts share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.hosts import TwoHosts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    """Two hosts, which end with the test."""
    with TwoHosts(tmp_path / "hosts") as two_hosts:
        yield two_hosts
