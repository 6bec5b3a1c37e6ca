"""Stored triggers: what older releases put into the metadata database must still run."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.triggers.tuning import TRIGGER_VERSION, AmtTuningJobTrigger

GOLDEN = Path(__file__).parent / "golden"


def load(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


def revive(stored: dict[str, Any]) -> Any:
    module, _, name = stored["classpath"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**stored["kwargs"])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("trigger-v*.json")), ids=lambda path: path.stem)
def test_a_stored_trigger_of_every_release_still_means_the_same(path: Path) -> None:
    stored = load(path)
    classpath, kwargs = revive(stored).serialize()
    assert classpath == stored["classpath"]
    unchanged = {key: value for key, value in stored["kwargs"].items() if key != "version"}
    assert unchanged.items() <= kwargs.items()


def test_the_current_version_has_a_golden_payload() -> None:
    stored = load(GOLDEN / f"trigger-v{TRIGGER_VERSION}.json")
    assert revive(stored).serialize() == (stored["classpath"], stored["kwargs"])


def test_all_arguments_go_through_json_and_back() -> None:
    arguments: dict[str, Any] = {
        "tuning_job_name": "churn-model",
        "check_interval": 2.5,
        "deadline": "2026-01-01T00:00:00+00:00",
        "stop_on_kill": True,
        "state": {"known_stop": {"airflow-amt:stopped-by": "deadline"}},
        "aws_conn_id": None,
        "region_name": "eu-west-1",
        "verify": False,
        "botocore_config": {"read_timeout": 5},
        "max_failures": 3,
        "version": TRIGGER_VERSION,
    }
    accepted = set(inspect.signature(AmtTuningJobTrigger.__init__).parameters) - {"self", "newer"}
    assert accepted == set(arguments)
    classpath, kwargs = AmtTuningJobTrigger(**arguments).serialize()
    assert kwargs == arguments
    again = revive({"classpath": classpath, "kwargs": json.loads(json.dumps(kwargs))})
    assert again.serialize() == (classpath, kwargs)


def test_airflow_can_store_it() -> None:
    from airflow.models.trigger import Trigger

    classpath, kwargs = revive(load(GOLDEN / "trigger-v1.json")).serialize()
    assert Trigger(classpath=classpath, kwargs=kwargs).kwargs == kwargs
