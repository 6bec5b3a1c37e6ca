"""One embedded AMT for all tests that need no server of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_amt.local import RunningServer, running
from tests.local.support import CLOCK_RATE, IMAGES, client_of


@pytest.fixture(scope="session")
def amt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT whose clock runs 200 times as fast as ours; kills after a grace time of 0.3 s."""
    folder = tmp_path_factory.mktemp("amt")
    with running(folder, clock_rate=CLOCK_RATE, images=IMAGES, options=("--stop-grace", "0.3")) as server:
        yield server
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="session")
def client(amt: RunningServer) -> Iterator[Any]:
    """A boto3 client of the shared server."""
    with client_of(amt) as client:
        yield client
