"""The live cluster itself: it runs tasks, defers them, and does what a person asks through the REST API."""

from __future__ import annotations

import pytest

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
