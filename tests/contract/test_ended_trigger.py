"""The stored event trigger: what older releases put into the metadata database must still mean the same."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.triggers.ended import TRIGGER_VERSION, AmtTuningJobEndedTrigger

GOLDEN = Path(__file__).parent / "golden"
PATHS = sorted(GOLDEN.glob("ended-trigger-v*.json"))


def load(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_stored_trigger_of_every_release_still_means_the_same(path: Path) -> None:
    stored = load(path)
    trigger = AmtTuningJobEndedTrigger(**stored["kwargs"])
    classpath, kwargs = trigger.serialize()
    assert classpath == stored["classpath"]
    unchanged = {key: value for key, value in stored["kwargs"].items() if key != "version"}
    assert unchanged.items() <= kwargs.items()
    # Where it is, is kept under this key: with another one it would begin anew.
    assert trigger.state_key == "airflow-amt-ended-7678b48d0958eb93"


def test_the_current_version_has_a_golden_payload() -> None:
    stored = load(GOLDEN / f"ended-trigger-v{TRIGGER_VERSION}.json")
    assert AmtTuningJobEndedTrigger(**stored["kwargs"]).serialize() == (stored["classpath"], stored["kwargs"])
    accepted = set(inspect.signature(AmtTuningJobEndedTrigger.__init__).parameters) - {"self", "newer"}
    assert accepted == set(stored["kwargs"])


def test_airflow_can_store_it_and_tells_watchers_apart_by_it() -> None:
    from airflow.models.trigger import Trigger
    from airflow.triggers.base import BaseEventTrigger

    stored = load(PATHS[-1])
    kept = Trigger(classpath=stored["classpath"], kwargs=stored["kwargs"])
    assert kept.kwargs == stored["kwargs"]
    classpath, kwargs = AmtTuningJobEndedTrigger(**stored["kwargs"]).serialize()
    assert BaseEventTrigger.hash(classpath, kwargs) == BaseEventTrigger.hash(kept.classpath, kept.kwargs)
