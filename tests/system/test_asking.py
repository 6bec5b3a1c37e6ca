"""People answer questions about real tuning jobs, in a real browser, on a live Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from airflow_amt.tuning.naming import STOPPED_BY_TAG, STOPPED_DETAIL_TAG, from_tag_list
from tests.system.browser import Person, chromium
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION, ROOT, processes_of
from tests.system.dags.scripted import SCENARIOS, request

pytestmark = pytest.mark.system


#: People who have to log in; Ada is the one whom the DAGs ask.
PASSWORDS = {"ada": "engine-1843", "bob": "other-person"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, amt: RunningServer) -> Iterator[AirflowCluster]:
    """A live Airflow of its own, where people have names."""
    home = tmp_path_factory.mktemp("asking") / "airflow"
    with AirflowCluster(
        home=home,
        dags_folder=Path(__file__).parent / "asking_dags",
        amt=amt,
        region_name=REGION,
        environment={"PYTHONPATH": str(ROOT)},
        passwords=PASSWORDS,
    ) as started:
        yield started
    assert processes_of(home) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def ada(browser: Any, cluster: AirflowCluster, tmp_path: Path) -> Iterator[Person]:
    with Person(browser, cluster.base_url, pictures=tmp_path, user=("ada", PASSWORDS["ada"])) as somebody:
        yield somebody


def _create(client: Any, name: str, gate: Path) -> None:
    """Create a tuning job whose first training job comes to 0.4 and whose second one never ends."""
    gate.touch()
    body = request(SCENARIOS["stopped_externally"], gate=str(gate))
    body["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"] = 9
    client.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **body)


def _describe(client: Any, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return answer


def _status(client: Any, name: str) -> str:
    return str(_describe(client, name)["HyperParameterTuningJobStatus"])


def _tags(client: Any, name: str) -> dict[str, str]:
    arn = _describe(client, name)["HyperParameterTuningJobArn"]
    return dict(from_tag_list(client.list_tags(ResourceArn=arn)["Tags"]))


def _wait(cluster: AirflowCluster, reached: Any, what: str) -> None:
    cluster._wait_for(reached, timeout_seconds=60, describe=lambda: what)


def _ask(cluster: AirflowCluster, client: Any, dag_id: str, name: str, gate: Path) -> str:
    """Start a tuning job, wait for its first result, have people asked, and return the DAG run's id.

    When it returns, Airflow is ready for an answer.
    """
    _create(client, name, gate)
    _wait(cluster, lambda: "BestTrainingJob" in _describe(client, name), f"{name} has no best training job")
    run_id = cluster.trigger_dag(dag_id, {"watched": name})
    cluster.wait_task(dag_id, run_id, "ask", states={"deferred"})
    cluster.wait_deferral_known(dag_id, run_id, "ask")
    return run_id


def _wait_watched(cluster: AirflowCluster, dag_id: str, run_id: str) -> None:
    """Wait until the trigger has looked for an answer.

    The first question of a triggerer takes long, as Airflow builds its API in the process. A trigger that is
    overtaken by an answer meanwhile fires late, and SQLite may have given its id to another one by then.
    """
    cluster.wait_task_log(dag_id, run_id, "ask", "Nobody has answered yet")


def test_somebody_stops_a_tuning_job(
    cluster: AirflowCluster, amt: RunningServer, ada: Person, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id = _ask(cluster, client, "asking", "ask-stop", tmp_path / "gate")
    _wait_watched(cluster, "asking", run_id)
    question = cluster.xcom("asking", run_id, "ask", "question")
    assert question["subject"].startswith("ask-stop: best 0.4 after ")

    ada.open_required_actions()
    ada.expect_text(question["subject"])
    ada.picture("list")
    ada.open_question(question["subject"])
    ada.expect_text(
        "80 % of the *budget* are used.",
        "Best objective so far:",
        "Limit: 50.00 EUR",
        "Without an answer by",
    )
    ada.picture("question")
    ada.answer("Stop and use the best")

    cluster.wait_task("asking", run_id, "ask", states={"success"})
    assert cluster.xcom("asking", run_id, "ask") == {
        "version": 1,
        "tuning_job_name": "ask-stop",
        "choice": "stop",
        "raise_by": None,
        "by": "ada",
        "timed_out": False,
        "stopped": True,
    }
    _wait(cluster, lambda: _status(client, "ask-stop") == "Stopped", "ask-stop is not stopped")
    tags = _tags(client, "ask-stop")
    assert tags[STOPPED_BY_TAG] == "operator"
    assert tags[STOPPED_DETAIL_TAG] == "ada chose to stop it in Airflow"
    # One notifier failed, and the other one was called all the same.
    told = cluster.xcom("asking", run_id, "ask", "notified")
    assert told == f"{question['subject']} -> {question['url']}"
    assert "nobody is at home" in cluster.task_log("asking", run_id, "ask")
    # The address that people are given leads to the question, which is not open any more.
    ada.page.goto(question["url"])
    ada.expect_text(question["subject"])
    ada.picture("answered")
    ada.expect_no_pending_question(question["subject"])


def test_somebody_raises_the_limit_by_another_percentage(
    cluster: AirflowCluster, amt: RunningServer, ada: Person, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id = _ask(cluster, client, "asking", "ask-raise", tmp_path / "gate")
    _wait_watched(cluster, "asking", run_id)
    # An answer that is none: the API takes it, and the task asks again.
    path = f"/dags/asking/dagRuns/{run_id}/taskInstances/ask/-1/hitlDetails"
    nonsense = {"chosen_options": ["Raise the limit"], "params_input": {"raise_by_percent": 5000}}
    cluster.request("PATCH", path, body=nonsense)
    cluster.wait_task_log("asking", run_id, "ask", "it is asked again")
    cluster.wait_task("asking", run_id, "ask", states={"deferred"})
    cluster.wait_deferral_known("asking", run_id, "ask", times=2)

    ada.go_to_question("asking", run_id, "ask")
    ada.expect_text("Raise the limit by (%)")
    ada.answer("Raise the limit", {"raise_by_percent": "75"})

    cluster.wait_task("asking", run_id, "ask", states={"success"})
    result = cluster.xcom("asking", run_id, "ask")
    assert (result["choice"], result["raise_by"], result["by"]) == ("raise", 0.75, "ada")
    assert result["stopped"] is False
    assert _status(client, "ask-raise") == "InProgress"
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="ask-raise")


def test_only_who_is_assigned_may_answer(
    cluster: AirflowCluster, amt: RunningServer, ada: Person, browser: Any, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id = _ask(cluster, client, "asking_ada", "ask-ada", tmp_path / "gate")
    _wait_watched(cluster, "asking_ada", run_id)
    with Person(browser, cluster.base_url, pictures=tmp_path, user=("bob", PASSWORDS["bob"])) as bob:
        bob.go_to_question("asking_ada", run_id, "ask")
        assert bob.try_to_answer("Stop and use the best") == 403
    assert cluster.task_state("asking_ada", run_id, "ask") == "deferred"

    ada.go_to_question("asking_ada", run_id, "ask")
    ada.answer("Continue")

    cluster.wait_task("asking_ada", run_id, "ask", states={"success"})
    result = cluster.xcom("asking_ada", run_id, "ask")
    assert (result["choice"], result["by"], result["stopped"]) == ("continue", "ada", False)
    assert _status(client, "ask-ada") == "InProgress"
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="ask-ada")


def test_without_an_answer_the_default_is_taken_and_recorded(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id = _ask(cluster, client, "asking_in_vain", "ask-in-vain", tmp_path / "gate")
    cluster.wait_task("asking_in_vain", run_id, "ask", states={"success"})
    result = cluster.xcom("asking_in_vain", run_id, "ask")
    assert (result["choice"], result["by"], result["timed_out"], result["stopped"]) == (
        "stop",
        None,
        True,
        True,
    )
    _wait(cluster, lambda: _status(client, "ask-in-vain") == "Stopped", "ask-in-vain is not stopped")
    assert _tags(client, "ask-in-vain")[STOPPED_DETAIL_TAG] == "nobody answered in time in Airflow"
    detail = cluster.request("GET", f"/dags/asking_in_vain/dagRuns/{run_id}/taskInstances/ask/-1/hitlDetails")
    assert (detail["response_received"], detail["chosen_options"]) == (True, ["Stop and use the best"])
    assert detail["responded_by_user"] is None
    # There is no limit, so nobody could raise one.
    assert detail["options"] == ["Continue", "Stop and use the best"]
    assert detail["params"] == {}


def test_a_job_that_is_over_is_not_asked_about(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    _create(client, "ask-over", tmp_path / "gate")
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="ask-over")
    run_id = cluster.trigger_dag("asking", {"watched": "ask-over"})
    cluster.wait_task("asking", run_id, "ask", states={"success"})
    result = cluster.xcom("asking", run_id, "ask")
    assert (result["choice"], result["stopped"]) == (None, False)
    answer = cluster.request("GET", f"/dags/asking/dagRuns/{run_id}/hitlDetails")
    assert answer["total_entries"] == 0


RULE = "max_failed_training_jobs"


def _begin(cluster: AirflowCluster, dag_id: str, gate: Path) -> tuple[str, str]:
    """Start a DAG run whose tuning job comes to a question; return the run's id and the tuning job's name."""
    gate.touch()
    run_id = cluster.trigger_dag(dag_id, {"gate": str(gate)})
    cluster.wait_task_log(dag_id, run_id, "tune", "People are asked")
    cluster.wait_task(dag_id, run_id, "tune", states={"deferred"})
    return run_id, str(cluster.xcom(dag_id, run_id, "tune", "tuning_job_name"))


def test_a_policy_asks_while_its_task_watches_on_and_heeds_the_answers(
    cluster: AirflowCluster, amt: RunningServer, ada: Person, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id, name = _begin(cluster, "policy_asks", tmp_path / "gate")
    cluster.wait_deferral_known("policy_asks", run_id, "tune", times=2)
    ada.go_to_question("policy_asks", run_id, "tune")
    ada.expect_text(f"{name}: best 0.4 after ", "2 of 3 training jobs that ended have failed")
    ada.picture("policy-question")
    ada.answer("Raise the limit", {"raise_by_percent": "75"})

    # Of 17.5 failures two are still more than 11 %: people are asked once more.
    asked = f"{RULE}=raise:0.75:ada"
    cluster.wait_task_log("policy_asks", run_id, "tune", asked)
    cluster.wait_task_log("policy_asks", run_id, "tune", "People are asked", times=2)
    cluster.wait_task("policy_asks", run_id, "tune", states={"deferred"})
    cluster.wait_deferral_known("policy_asks", run_id, "tune", times=3)
    assert _status(client, name) == "InProgress"
    assert _tags(client, name)["airflow-amt:policy-answers"] == asked
    ada.go_to_question("policy_asks", run_id, "tune")
    ada.answer("Stop and use the best")

    cluster.wait_task("policy_asks", run_id, "tune", states={"success"})
    outcome = cluster.xcom("policy_asks", run_id, "tune", "outcome")
    assert (outcome["status"], outcome["reason"]) == ("Stopped", "stopped_by_provider")
    evidence = outcome["evidence"]
    assert (evidence["stopped_by"], evidence["policy"], evidence["action"]) == ("policy", RULE, "stop")
    assert evidence["detail"].startswith("ada decided to stop it.")
    assert outcome["best_training_job"]["objective"] == 0.4
    tags = _tags(client, name)
    assert tags["airflow-amt:policy-answers"] == f"{asked} {RULE}=stop:ada"
    told = cluster.xcom("policy_asks", run_id, "tune", "told-stop-end")
    assert told["outcome"]["status"] == "Stopped"
    first = cluster.xcom("policy_asks", run_id, "tune", f"told-ask-{RULE}:ask@0.11")
    assert first["best_objective"] == 0.4


def test_a_policys_question_that_nobody_answers_ends_with_the_default(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id, name = _begin(cluster, "policy_asks_in_vain", tmp_path / "gate")
    cluster.wait_task("policy_asks_in_vain", run_id, "tune", states={"success"})
    outcome = cluster.xcom("policy_asks_in_vain", run_id, "tune", "outcome")
    assert outcome["evidence"]["detail"].startswith("Nobody answered in time so it is stopped.")
    assert _tags(client, name)["airflow-amt:policy-answers"] == f"{RULE}=stop:timeout"
    path = f"/dags/policy_asks_in_vain/dagRuns/{run_id}/taskInstances/tune/-1/hitlDetails"
    detail = cluster.request("GET", path)
    assert (detail["response_received"], detail["chosen_options"]) == (True, ["Stop and use the best"])
    assert detail["responded_by_user"] is None
