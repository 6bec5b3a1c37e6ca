"""A DAG whose tasks tell people by e-mail how their tuning jobs ended, one notifier for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dags.conftest import DagTest
from tests.local.support import create_request
from tests.receivers import Mailbox, smtp_server

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    with smtp_server() as mailbox:
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", mailbox.connection)
        yield mailbox


def html_of(mail: Any) -> list[str]:
    body = mail.get_body(("html",))
    return [line.removesuffix("<br>") for line in body.get_content().strip().splitlines()]


def unnamed(**changes: Any) -> dict[str, Any]:
    request = create_request(**changes)
    del request["HyperParameterTuningJobName"]
    return request


def test_people_are_told_how_each_tuning_job_ended(dag_test: DagTest, mailbox: Mailbox) -> None:
    requests = [
        unnamed(sequence="0.1 0.7", most=2),
        unnamed(sequence="fail", most=9),
        unnamed(sequence="0.1 0.95", most=9, target=0.9),
    ]
    run = dag_test("tell", {"requests": requests})

    mails = {str(mail["Subject"]): html_of(mail) for mail in mailbox.mails}
    of_run = mails.pop(f"DAG tell ended: task failure, run {run.run_id}")
    assert of_run[0].startswith(f"DAG tell ended: task failure, run {run.run_id}.")
    assert len(mailbox.mails) == 7
    assert len(mails) == 6
    told = {}
    for ti in run.get_task_instances():
        if ti.task_id == "requests":
            continue
        outcome = ti.xcom_pull(task_ids=ti.task_id, key="outcome", map_indexes=ti.map_index)
        name = outcome["tuning_job_name"]
        # Each mail is about the tuning job of its own task instance.
        (subject,) = [one for one in mails if one.startswith(f"Tuning job {name} ")]
        lines = mails[subject]
        told[ti.task_id, ti.map_index] = [
            subject.removeprefix(f"Tuning job {name} "),
            *(line.removeprefix(f"Tuning job {name} ") for line in lines[:2]),
        ]
        words = ("succeeded", "failed", "was skipped")[ti.map_index]
        assert lines[-3] == f"Task {ti.task_id}[{ti.map_index}] of DAG tell {words}, run {run.run_id}."
        assert lines[-2].startswith("AWS console: <a href=")
        assert f"/tasks/{ti.task_id}/mapped/{ti.map_index}" in lines[-1]
    for way in ("sync", "deferred"):
        assert told[way, 0] == [
            "completed: max training jobs",
            "completed: 2 training jobs were launched; the limit is 2.",
            "Best objective 0.7 after 2 of 2 training jobs.",
        ]
        assert told[way, 1][0] == "failed"
        assert told[way, 1][1].startswith("failed: No training job succeeded after 5 attempts.")
        assert told[way, 1][2].startswith("No objective after 5 training jobs, 5 failed (AlgorithmError: ")
        assert told[way, 2] == [
            "completed: target reached",
            "completed: The best objective, 0.95, reached the target of 0.9.",
            "Best objective 0.95 after 2 training jobs.",
        ]
