"""The example that acts while a tuning job runs, against the embedded AMT with its own trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import running
from tests.dags.conftest import REGION
from tests.dags.test_flows import states, xcom

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "amt_wait_for_condition.py"


def dag_of(folder: Path) -> Any:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

    shutil.copy(EXAMPLE, folder / EXAMPLE.name)
    bag = DagBag(str(folder))
    assert bag.import_errors == {}
    return bag.dags["amt_wait_for_condition"]


def test_the_example_acts_while_the_job_runs_and_stops_it(
    airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "amt") as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.connection(REGION))

        run = dag_of(airflow_db / "dags").test(run_conf={"target_accuracy": 0.8})

        assert set(states(run).values()) == {"success"}
        first, good = xcom(run, "first_model"), xcom(run, "good_enough")
        # Both fired while it ran, the first one on the first model and the second one on the target.
        for fired, because in ((first, "first_usable_model"), (good, "target_reached")):
            assert (fired["fired"], fired["status"]) == ("condition", "InProgress")
            assert because in fired["condition"]["because"]
        assert good["best_training_job"]["objective"] >= 0.8
        assert xcom(run, "smoke_test") == first["best_training_job"]["name"]
        assert xcom(run, "hand_on") == good["best_training_job"]["name"]
        stopped = xcom(run, "stop")
        assert (stopped["stopped"], stopped["status"]) == (True, "Stopped")
        assert stopped["tuning_job_name"] == xcom(run, "start")["tuning_job_name"]
