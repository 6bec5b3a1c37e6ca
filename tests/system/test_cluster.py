"""The live cluster itself: it runs tasks, defers them, and does what a person asks through the REST API."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.local.support import wait_until
from tests.system.cluster import AirflowCluster, ClusterError

pytestmark = pytest.mark.system


def test_runs_a_task_on_a_worker_and_another_in_the_triggerer(cluster: AirflowCluster) -> None:
    run_id = cluster.trigger_dag("trivial", {"word": "hello"})

    assert cluster.wait_run("trivial", run_id) == "success"
    assert cluster.task_states("trivial", run_id) == {"say": "success", "wait": "success"}
    assert cluster.xcom("trivial", run_id, "say") == "hello"
    assert "said on a worker" in cluster.task_log("trivial", run_id, "say")
    assert "DEFERRED" in cluster.task_log("trivial", run_id, "wait")


def test_marks_a_deferred_task_failed_and_clears_it(cluster: AirflowCluster) -> None:
    run_id = cluster.trigger_dag("hold")
    cluster.wait_task("hold", run_id, "wait", states={"deferred"})

    cluster.set_task_state("hold", run_id, "wait", "failed")

    assert cluster.task_state("hold", run_id, "wait") == "failed"
    assert cluster.wait_run("hold", run_id) == "failed"

    cluster.clear("hold", run_id, ["wait"])

    cluster.wait_task("hold", run_id, "wait", states={"deferred"})
    assert cluster.task_instance("hold", run_id, "wait")["try_number"] == 2

    cluster.set_task_state("hold", run_id, "wait", "success")

    assert cluster.task_state("hold", run_id, "wait") == "success"


def test_reads_mapped_task_instances(cluster: AirflowCluster) -> None:
    run_id = cluster.trigger_dag("mapped")

    cluster.wait_task("mapped", run_id, "count", map_index=1, states={"success"})

    assert cluster.xcom("mapped", run_id, "count", map_index=1) == "one"
    with pytest.raises(KeyError):
        cluster.xcom("mapped", run_id, "count", key="nothing", map_index=1)


def test_tells_why_a_task_did_not_get_where_it_should(cluster: AirflowCluster) -> None:
    run_id = cluster.trigger_dag("broken")

    with pytest.raises(ClusterError, match=r"(?s)'failed', not one of \['success'\].*said before the end"):
        cluster.wait_task("broken", run_id, "fail", states={"success"})


def test_a_component_can_be_stopped_and_started_again(cluster: AirflowCluster) -> None:
    cluster.stop_component("triggerer", grace_seconds=0)
    run_id = cluster.trigger_dag("trivial", {"word": "again"})
    cluster.wait_task("trivial", run_id, "wait", states={"deferred"})

    cluster.start_component("triggerer")

    assert cluster.wait_run("trivial", run_id) == "success"


def test_a_component_that_ends_by_itself_is_started_again(cluster: AirflowCluster) -> None:
    before = len(cluster.revived)
    lost = cluster.components["scheduler"].process

    os.kill(lost.pid, signal.SIGKILL)
    run_id = cluster.trigger_dag("trivial", {"word": "revived"})

    assert cluster.wait_run("trivial", run_id) == "success"
    assert "scheduler" in cluster.revived[before:]
    assert cluster.components["scheduler"].process.pid != lost.pid
    assert "scheduler" in cluster.revive(3600)
    assert cluster.revive(3600) == []


class FalseCluster(AirflowCluster):
    """Components that end after so many seconds, in place of Airflow's."""

    lives_seconds = 60.0
    starts_seconds = 0.0

    def _migrate(self) -> None:
        pass

    def _command(self, name: str) -> tuple[str, ...]:
        return (str(self.lives_seconds),)

    def wait_healthy(self, timeout_seconds: float | None = None) -> None:
        time.sleep(self.starts_seconds)
        self._check_alive()


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FalseCluster:
    program = tmp_path / "sleep"
    program.write_text('#!/bin/sh\nexec sleep "$3"\n')
    program.chmod(0o755)
    monkeypatch.setattr("tests.system.cluster.sys.executable", str(program))
    return FalseCluster(home=tmp_path / "airflow", dags_folder=tmp_path, revivals=2)


def test_a_crash_loop_fails_and_what_was_stopped_stays_stopped(crashing: FalseCluster) -> None:
    with crashing:
        crashing.stop_component("triggerer", grace_seconds=0)
        crashing.lives_seconds = 0.0
        os.kill(crashing.components["scheduler"].process.pid, signal.SIGKILL)
        wait_until(lambda: crashing.revived.count("scheduler") == 2, "it is not started again")
        wait_until(
            lambda: crashing.components["scheduler"].process.poll() is not None,
            "the last one does not end",
        )
        with pytest.raises(ClusterError, match=r"scheduler ended .* started again 2 times(?s:.*)---- sched"):
            crashing.run_state("trivial", "manual")
        assert crashing.revived == ["scheduler", "scheduler"]
        assert "triggerer" not in crashing.components


def test_a_component_that_ends_while_the_cluster_starts_is_not_started_again(crashing: FalseCluster) -> None:
    crashing.lives_seconds, crashing.starts_seconds = 0.0, 2.0
    with pytest.raises(ClusterError, match="ended with exit code 0"), crashing:
        pass
    assert crashing.revived == []
