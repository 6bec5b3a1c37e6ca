"""Airflow's store of questions to people, at the boundary of the supervisor, as 3.1 to 3.3 behave."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


class RefusedError(Exception):
    """What the supervisor raises: the answer of the API is in it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.error = SimpleNamespace(detail={"status_code": status_code})


@dataclass
class FakePeople:
    """The questions by task instance: the first text stays, and raising again takes an answer away.

    :param unreadable: as in ``dag.test()``: what is asked of a triggerer is answered with nothing.
    :param broken: errors to raise instead of the next answers.
    """

    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    unreadable: bool = False
    broken: list[Exception] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def send(self, msg: Any) -> Any:
        kind = type(msg).__name__
        self.asked.append(kind)
        if self.broken:
            raise self.broken.pop(0)
        if kind == "CreateHITLDetailPayload":
            stored = self.details.setdefault(str(msg.ti_id), {"question": msg.model_copy()})
            stored["answer"] = None
            return stored["question"]
        if self.unreadable:
            return None
        stored = self.details.get(str(msg.ti_id), {})
        if "question" not in stored:
            raise RefusedError(404)
        if kind == "UpdateHITLDetail":
            if stored["answer"] is not None:
                raise RefusedError(409)
            self.answer(msg.ti_id, *msg.chosen_options, by=None, **msg.params_input)
        return stored["answer"] or SimpleNamespace(
            response_received=False,
            chosen_options=(),
            params_input={},
            responded_by_user=None,
            responded_at=None,
        )

    def answer(self, ti_id: Any, *chosen: str, by: str | None = "Ada", **params: Any) -> None:
        """Answer as a person, or in nobody's name."""
        self.details[str(ti_id)]["answer"] = SimpleNamespace(
            response_received=True,
            chosen_options=list(chosen),
            params_input=params,
            responded_by_user=None if by is None else SimpleNamespace(id="7", name=by),
            responded_at=AT,
        )

    def question(self, ti_id: Any) -> Any:
        """Return what people see."""
        return self.details[str(ti_id)]["question"]


def install(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    """Put it in the place of the supervisor."""
    from airflow.sdk.execution_time import task_runner

    people = FakePeople()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", people, raising=False)
    return people
