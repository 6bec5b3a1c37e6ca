"""One embedded AMT for the conformance suite; each test has a region, and so jobs, of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from airflow_amt.local import RunningServer, running
from tests.local.conformance.wire import Wire, connected
from tests.local.support import CLOCK_RATE, IMAGES, TRAINERS

_regions = count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT whose clock runs 200 times as fast as ours; no call may break it."""
    images = {**IMAGES, "curve:1": f"sh {TRAINERS / 'curve.sh'}"}
    with running(
        tmp_path_factory.mktemp("conformance"),
        clock_rate=CLOCK_RATE,
        images=images,
        options=("--stop-grace", "0.3"),
    ) as started:
        yield started
        assert "Traceback" not in started.log, started.log


@pytest.fixture
def wire(server: RunningServer) -> Iterator[Wire]:
    """A connection for a region in which nothing has happened yet."""
    with connected(server, f"conformance-{next(_regions)}") as connection:
        yield connection
