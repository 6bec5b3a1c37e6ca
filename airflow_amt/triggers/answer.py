"""The trigger that waits for a person's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_amt import _compat, _human
from airflow_amt.tuning.asking import HumanAnswer, Question

#: Version of the stored arguments and of the event.
ANSWER_TRIGGER_VERSION = 1

#: Failed reads in a row after which the task resumes to say so.
_MOST_FAILURES = 5


class AmtAnswerTrigger(BaseTrigger):
    """Fire once: when somebody answered a question, or when the time is over and its default is taken.

    The event is ``{"version", "ti_id", "event": "answered" | "error", "answer", "error", "state"}``. Airflow
    3.3 may resume the task itself before this trigger looks; then this one is just ended.

    In ``dag.test()`` nobody's answer can be read: the default is taken when the time is over.

    :param ti_id: id of the task instance that raised the question.
    :param question: the question (:meth:`airflow_amt.tuning.asking.Question.to_dict`).
    :param until: until when an answer counts: ISO 8601 with an offset; ``None`` for no end.
    :param check_interval: seconds between two looks; the first one is one interval away.
    :param state: what the task needs when it resumes, JSON-safe; handed back in the event.
    :param version: version of the stored arguments.
    :param newer: arguments that a newer release stored and this one does not know.
    """

    def __init__(
        self,
        ti_id: str,
        question: dict[str, Any],
        until: str | None = None,
        check_interval: float = 5.0,
        state: dict[str, Any] | None = None,
        version: int = ANSWER_TRIGGER_VERSION,
        **newer: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ti_id = ti_id
        self.question = question
        self.until = until
        self.check_interval = check_interval
        self.state = state
        self.version = version
        self._newer = newer

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the stored arguments."""
        return (
            "airflow_amt.triggers.answer.AmtAnswerTrigger",
            {
                "version": ANSWER_TRIGGER_VERSION,
                "ti_id": self.ti_id,
                "question": self.question,
                "until": self.until,
                "check_interval": self.check_interval,
                "state": self.state,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the answer and yield one event."""
        if self._newer:
            self.log.warning("Ignored, as stored by a newer release: %s", ", ".join(sorted(self._newer)))
        until = None if self.until is None else datetime.fromisoformat(self.until)
        question = Question.from_dict(self.question)
        failures = 0
        told = False
        while True:
            left = None if until is None else (until - datetime.now(UTC)).total_seconds()
            await asyncio.sleep(
                self.check_interval if left is None else max(0.0, min(left, self.check_interval))
            )
            over = until is not None and datetime.now(UTC) >= until
            try:
                answer = await _compat.in_thread(lambda over=over: self._look(question, over))  # type: ignore[misc]
            except Exception as error:
                # Anything that the supervisor may say. The task shall tell people, not hang for ever.
                failures += 1
                self.log.exception("The answer cannot be read (%d of %d)", failures, _MOST_FAILURES)
                if failures < _MOST_FAILURES:
                    await asyncio.sleep(self.check_interval)
                    continue
                yield self._event("error", None, f"{type(error).__name__}: {error}")
                return
            failures = 0
            if answer is not None:
                yield self._event("answered", answer, None)
                return
            if not told:
                self.log.info(
                    "Nobody has answered yet; looking every %g s%s.",
                    self.check_interval,
                    "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S %Z}",
                )
                told = True

    def _look(self, question: Question, over: bool) -> HumanAnswer | None:
        try:
            if over:
                return _human.close_question(self.ti_id, question)
            return _human.read_answer(self.ti_id)
        except _human.UnreadableAnswerError as error:
            self.log.info("%s.", error)
            return question.default_answer if over else None

    def _event(self, kind: str, answer: HumanAnswer | None, error: str | None) -> TriggerEvent:
        return TriggerEvent(  # type: ignore[no-untyped-call]
            {
                "version": ANSWER_TRIGGER_VERSION,
                "ti_id": self.ti_id,
                "event": kind,
                "answer": None if answer is None else answer.to_dict(),
                "error": error,
                "state": self.state,
            }
        )
