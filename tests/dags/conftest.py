"""Running DAGs in this process with ``dag.test()``, against an embedded AMT."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from tests.local.support import shared_server

REGION = "eu-west-1"
DAGS = Path(__file__).parent / "flows.py"

#: Runs a DAG of ``flows.py`` with this configuration; returns its run.
DagTest = Callable[[str, dict[str, Any]], Any]


@pytest.fixture(scope="session")
def amt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT whose clock runs fast and that knows the scripted trainers of ``tests/local``."""
    with shared_server(tmp_path_factory.mktemp("amt")) as server:
        yield server


@pytest.fixture(scope="session")
def client(amt: RunningServer) -> Iterator[Any]:
    """A boto3 client of the embedded AMT."""
    client = amt.client(REGION)
    yield client
    client.close()


@pytest.fixture
def connection(amt: RunningServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection ``aws_default`` leads to the embedded AMT."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", amt.connection(REGION))
    return "aws_default"


@pytest.fixture
def dag_test(airflow_db: Path, connection: str) -> DagTest:
    """Run a DAG of ``flows.py`` to its end."""
    folder = airflow_db / "dags"
    copy = folder / DAGS.name
    if not copy.exists():
        shutil.copy(DAGS, copy)

    def run(dag_id: str, conf: dict[str, Any]) -> Any:
        try:
            from airflow.dag_processing.dagbag import DagBag
        except ImportError:  # Airflow 3.1
            from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

        bag = DagBag(str(folder))
        assert bag.import_errors == {}
        return bag.dags[dag_id].test(run_conf=conf)

    return run
