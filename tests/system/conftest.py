"""The live cluster that all system tests share, and its logs beside every failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest

from airflow_amt.local import RunningServer, running
from tests.system.cluster import AirflowCluster
from tests.system.dags.scripted import TRAINERS

#: AMT seconds per real second: two minutes, AMT's shortest time limit, pass in 6 s.
CLOCK_RATE = 20.0
REGION = "eu-central-1"
ROOT = Path(__file__).parents[2]
DAGS_FOLDER = Path(__file__).parent / "dags"

_CLUSTER: pytest.StashKey[AirflowCluster] = pytest.StashKey()


@pytest.fixture(scope="session")
def amt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT whose clock runs at `CLOCK_RATE`."""
    state_dir = tmp_path_factory.mktemp("amt") / "state"
    with running(state_dir, clock_rate=CLOCK_RATE, roots=[TRAINERS]) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, amt: RunningServer
) -> Iterator[AirflowCluster]:
    """A live Airflow whose connection `aws_default` leads to the embedded AMT."""
    home = tmp_path_factory.mktemp("cluster") / "airflow"
    started = AirflowCluster(
        home=home,
        dags_folder=DAGS_FOLDER,
        amt=amt,
        region_name=REGION,
        # DAG files share modules with the tests, and run the same airflow_amt as they do.
        environment={"PYTHONPATH": str(ROOT)},
    )
    with started:
        request.config.stash[_CLUSTER] = started
        yield started
        del request.config.stash[_CLUSTER]
    assert processes_of(home) == []


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the living processes whose environment names this AIRFLOW_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRFLOW_HOME") == str(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone, or somebody else's
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the tails of the components' logs to the report of a test that failed."""
    report = yield
    cluster = item.config.stash.get(_CLUSTER, None)
    if report.failed and cluster is not None:
        report.sections.append(("Airflow cluster", cluster.log_tails()))
    return report
