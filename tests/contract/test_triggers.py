"""Stored triggers: what older releases put into the metadata database must still run."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.hooks.guard import Memory
from airflow_amt.hooks.sla import SlaSource
from airflow_amt.triggers.answer import ANSWER_TRIGGER_VERSION, AmtAnswerTrigger
from airflow_amt.triggers.ended import TRIGGER_VERSION as ENDED_TRIGGER_VERSION
from airflow_amt.triggers.ended import AmtTuningJobEndedTrigger
from airflow_amt.triggers.guarded import GUARDED_TRIGGER_VERSION, AmtGuardedTuningJobTrigger
from airflow_amt.triggers.progress import PROGRESS_TRIGGER_VERSION, AmtTuningProgressTrigger
from airflow_amt.triggers.quota import QUOTA_TRIGGER_VERSION, AmtQuotaTrigger
from airflow_amt.triggers.tuning import TRIGGER_VERSION, AmtTuningJobTrigger
from airflow_amt.tuning import parse_condition
from airflow_amt.tuning.policies import RunTimes

GOLDEN = Path(__file__).parent / "golden"

#: Every trigger, its version, and the start of the names of its golden payloads.
TRIGGERS = [
    (AmtTuningJobTrigger, TRIGGER_VERSION, "trigger"),
    (AmtTuningProgressTrigger, PROGRESS_TRIGGER_VERSION, "progress-trigger"),
    (AmtTuningJobEndedTrigger, ENDED_TRIGGER_VERSION, "ended-trigger"),
    (AmtQuotaTrigger, QUOTA_TRIGGER_VERSION, "quota-trigger"),
    (AmtAnswerTrigger, ANSWER_TRIGGER_VERSION, "answer-trigger"),
    (AmtGuardedTuningJobTrigger, GUARDED_TRIGGER_VERSION, "guarded-trigger"),
]


def load(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


def revive(stored: dict[str, Any]) -> Any:
    module, _, name = stored["classpath"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**stored["kwargs"])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*trigger-v*.json")), ids=lambda path: path.stem)
def test_a_stored_trigger_of_every_release_still_means_the_same(path: Path) -> None:
    stored = load(path)
    revived = revive(stored)
    classpath, kwargs = revived.serialize()
    assert classpath == stored["classpath"]
    for key, value in stored["kwargs"].items():
        # What is stored in another form now is still the same where it is used.
        assert key == "version" or value in (kwargs[key], getattr(revived, key))


@pytest.mark.parametrize(("kind", "version", "prefix"), TRIGGERS)
def test_the_current_version_has_a_golden_payload(kind: type[Any], version: int, prefix: str) -> None:
    stored = load(GOLDEN / f"{prefix}-v{version}.json")
    revived = revive(stored)
    assert type(revived) is kind
    assert revived.serialize() == (stored["classpath"], stored["kwargs"])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("progress-trigger-v*.json")), ids=lambda path: path.stem)
def test_a_stored_condition_of_every_release_can_be_read(path: Path) -> None:
    condition = load(path)["kwargs"]["condition"]
    assert parse_condition(condition).to_dict() == condition


COMMON: dict[str, Any] = {
    "tuning_job_name": "churn-model",
    "check_interval": 2.5,
    "deadline": "2026-01-01T00:00:00+00:00",
    "first_read_at": "2025-12-31T00:00:00+00:00",
    "state": {"known_stop": {"airflow-amt:stopped-by": "deadline"}},
    "aws_conn_id": None,
    "region_name": "eu-west-1",
    "verify": False,
    "botocore_config": {"read_timeout": 5},
    "max_failures": 3,
}
ARGUMENTS: dict[type[Any], dict[str, Any]] = {
    AmtTuningJobTrigger: {**COMMON, "stop_on_kill": True, "version": TRIGGER_VERSION},
    AmtTuningProgressTrigger: {
        **COMMON,
        "condition": {"version": 1, "type": "converged"},
        "on_end": "fail",
        "end_from_trigger": True,
        "seconds_before_timeout": 3600.0,
        "version": PROGRESS_TRIGGER_VERSION,
    },
    AmtTuningJobEndedTrigger: {
        **{key: COMMON[key] for key in ("aws_conn_id", "region_name", "verify")},
        "botocore_config": '{"read_timeout": 5}',
        "name_prefix": "nightly-",
        "name_contains": "churn",
        "statuses": ["Completed"],
        "tags": [["team", "ml"]],
        "created_after": "2026-01-01T00:00:00+00:00",
        "check_interval": 2.5,
        "lookback": 60.0,
        "version": ENDED_TRIGGER_VERSION,
    },
    AmtGuardedTuningJobTrigger: {
        **COMMON,
        "stop_on_kill": True,
        "sla": {"variable": "nightly_sla"},
        "run": {"logical_date": "2026-01-01T00:00:00+00:00"},
        "memory": {"version": 1, "told": ["budget:warn@0.8"], "answers": [], "asked": None, "sla": None},
        "requested_by": "churn manual__2026-01-01 tune",
        "tells": True,
        "version": GUARDED_TRIGGER_VERSION,
    },
    AmtQuotaTrigger: {
        "moment": "2026-01-01T00:00:00+00:00",
        "state": {"waits_for": "quota"},
        "version": QUOTA_TRIGGER_VERSION,
    },
    AmtAnswerTrigger: {
        "ti_id": "01a20de5-40b1-7e66-889b-6d3ec6b53e23",
        "question": {"subject": "Continue?", "options": ["Continue"], "defaults": ["Continue"]},
        "until": "2026-01-01T00:00:00+00:00",
        "check_interval": 2.5,
        "state": {"tuning_job_name": "churn-model"},
        "version": ANSWER_TRIGGER_VERSION,
    },
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_all_arguments_go_through_json_and_back(kind: type[Any]) -> None:
    arguments = ARGUMENTS[kind]
    accepted = set(inspect.signature(kind.__init__).parameters) - {"self", "newer"}
    assert accepted == set(arguments)
    classpath, kwargs = kind(**arguments).serialize()
    assert kwargs == arguments
    again = revive({"classpath": classpath, "kwargs": json.loads(json.dumps(kwargs))})
    assert again.serialize() == (classpath, kwargs)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("guarded-trigger-v*.json")), ids=lambda path: path.stem)
def test_a_stored_sla_of_every_release_can_be_read(path: Path) -> None:
    arguments = load(path)["kwargs"]
    assert SlaSource.parse(arguments["sla"]).to_dict() == arguments["sla"]
    assert RunTimes.parse(arguments["run"]).to_dict() == arguments["run"]
    assert Memory.parse(arguments["memory"]).to_dict() == arguments["memory"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*trigger-v*.json")), ids=lambda path: path.stem)
def test_airflow_can_store_it(path: Path) -> None:
    from airflow.models.trigger import Trigger

    classpath, kwargs = revive(load(path)).serialize()
    assert Trigger(classpath=classpath, kwargs=kwargs).kwargs == kwargs
