"""One embedded AMT for all tests that need no server of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from tests.environments import Environments, environments
from tests.local.support import client_of, shared_server


@pytest.fixture(scope="session")
def amt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT whose clock runs 200 times as fast as ours; kills after a grace time of 0.6 s."""
    with shared_server(tmp_path_factory.mktemp("amt")) as server:
        yield server


@pytest.fixture(autouse=True)
def servers_end_with_their_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what a test left running, as one that failed half-way does, lest it disturbs those after it."""
    started: list[RunningServer] = []
    construct = RunningServer.__init__

    def remember(server: RunningServer, *args: Any, **options: Any) -> None:
        construct(server, *args, **options)
        started.append(server)

    monkeypatch.setattr(RunningServer, "__init__", remember)
    yield
    left = [server for server in started if server.is_running]
    for server in left:
        server.stop()
    assert left == [], "the test ends the servers that it starts"


@pytest.fixture(scope="session")
def client(amt: RunningServer) -> Iterator[Any]:
    """A boto3 client of the shared server."""
    with client_of(amt) as client:
        yield client


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    """Make virtual environments for foreign clients, one for each set of packages."""
    return environments(tmp_path_factory.mktemp("environments"))
