"""What Airflow and the asset's state store tell a stored event trigger by: it must stay the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.sdk import Asset, AssetWatcher
from airflow.serialization.serialized_objects import BaseSerialization
from airflow.triggers.base import BaseEventTrigger

from airflow_amt.triggers.ended import TRIGGER_VERSION, AmtTuningJobEndedTrigger

try:
    from airflow.serialization import decoders, encoders
except ImportError:  # Airflow 3.1
    from airflow.serialization import serialized_objects

    encode_trigger: Callable[[Any], Any] = serialized_objects._encode_trigger  # type: ignore[attr-defined]
    decode_argument: Callable[[Any], Any] = serialized_objects.smart_decode_trigger_kwargs  # type: ignore[attr-defined]
else:
    encode_trigger = encoders.encode_trigger
    decode_argument = decoders.smart_decode_trigger_kwargs

GOLDEN = Path(__file__).parent / "golden"
PATHS = sorted(GOLDEN.glob("ended-trigger-v*.json"))
KEY = "airflow-amt-ended-7678b48d0958eb93"


def load(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


def through_airflow(trigger: AmtTuningJobEndedTrigger) -> tuple[dict[str, Any], bool]:
    """Store a watcher as the DAG processor does, and take it up as the triggerer does.

    :return: the arguments that the triggerer gives the class, and whether the DAG processor will know the
        stored trigger at its next parse.
    """
    asset = Asset("tuned", watchers=[AssetWatcher(name="ended", trigger=trigger)])
    stored_dag = json.loads(json.dumps(BaseSerialization.serialize(asset)))
    encoded = encode_trigger(BaseSerialization.deserialize(stored_dag).watchers[0].trigger)
    row = Trigger(classpath=encoded["classpath"], kwargs=encoded["kwargs"])
    same = BaseEventTrigger.hash(encoded["classpath"], encoded["kwargs"]) == BaseEventTrigger.hash(
        row.classpath, row.kwargs
    )
    stored = Trigger._decrypt_kwargs(row.encrypted_kwargs)
    return {key: decode_argument(value) for key, value in stored.items()}, same


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_stored_watcher_of_every_release_goes_on_where_it_was(path: Path) -> None:
    trigger = AmtTuningJobEndedTrigger(**load(path)["kwargs"])
    # With another key it would begin anew.
    assert trigger.state_key == KEY
    assert (trigger.tags, trigger.botocore_config) == ({"team": "ml"}, {"read_timeout": 10})


def test_airflow_knows_a_stored_watcher_of_this_release_again() -> None:
    stored = load(GOLDEN / f"ended-trigger-v{TRIGGER_VERSION}.json")
    classpath, kwargs = AmtTuningJobEndedTrigger(**stored["kwargs"]).serialize()
    assert BaseEventTrigger.hash(classpath, kwargs) == BaseEventTrigger.hash(
        stored["classpath"], stored["kwargs"]
    )


def test_the_state_of_a_watcher_without_arguments_has_the_key_of_the_first_release() -> None:
    assert AmtTuningJobEndedTrigger().state_key == "airflow-amt-ended-70f724e8fa95abc9"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tags": {"team": "ml", "a": ""}, "botocore_config": {"retries": {"max_attempts": 3}}},
        {"tags": {}, "botocore_config": {}, "statuses": ("Failed",), "lookback": 60, "verify": False},
        {"created_after": "2026-01-01T00:00:00+00:00", "check_interval": 2.5, "aws_conn_id": None},
    ],
)
def test_airflow_stores_it_and_gives_it_back_unchanged(options: dict[str, Any]) -> None:
    trigger = AmtTuningJobEndedTrigger(**options)
    _, kwargs = trigger.serialize()
    given, same = through_airflow(trigger)
    assert (given, same) == (kwargs, True)
    again = AmtTuningJobEndedTrigger(**given)
    assert again.serialize() == trigger.serialize()
    assert again.state_key == trigger.state_key
