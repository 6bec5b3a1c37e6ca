"""What Airflow and the asset's state store tell a stored event trigger by: it must stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_amt.triggers.ended import AmtTuningJobEndedTrigger

PATHS = sorted((Path(__file__).parent / "golden").glob("ended-trigger-v*.json"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_stored_watcher_of_every_release_goes_on_where_it_was(path: Path) -> None:
    from airflow.triggers.base import BaseEventTrigger

    stored = json.loads(path.read_text())
    trigger = AmtTuningJobEndedTrigger(**stored["kwargs"])
    # With another key it would begin anew.
    assert trigger.state_key == "airflow-amt-ended-7678b48d0958eb93"
    classpath, kwargs = trigger.serialize()
    assert BaseEventTrigger.hash(classpath, kwargs) == BaseEventTrigger.hash(
        stored["classpath"], stored["kwargs"]
    )
