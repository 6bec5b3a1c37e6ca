"""The trigger that watches one tuning job and holds it to an SLA meanwhile."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_amt.hooks.guard import Asked, Guard, Memory, understood
from airflow_amt.hooks.sla import SlaReader, SlaSource
from airflow_amt.triggers.tuning import AmtTuningJobTrigger, EventKind
from airflow_amt.tuning.policies import Answer, RunTimes
from airflow_amt.watch.polling import MAX_FAILURES_IN_A_ROW, Reading, TuningJobReader

if TYPE_CHECKING:
    from airflow_amt.exceptions import AmtAwsError
    from airflow_amt.tuning.asking import HumanAnswer

#: Version of the stored arguments and of the event.
GUARDED_TRIGGER_VERSION = 1

_ANSWER_ATTEMPTS = 3
_ANSWER_PAUSE_SECONDS = 2.0


class AmtGuardedTuningJobTrigger(AmtTuningJobTrigger):
    """Watch one tuning job, stop it when a stop policy demands it; fire as its parent class does.

    How it works: each read is judged by the SLA (:class:`airflow_amt.hooks.guard.Guard`), with the code that
    a task on a worker uses. A stop is made from here, at once, and the end of the job awaited. What people
    are to be told needs the task's context, so the trigger fires (``policy``), a worker tells them and defers
    again. While a question to people is open, the answer is read with each read of the job; once its time is
    over, the default counts.

    A triggerer that dies between a decision and the stop loses nothing: the next one decides again from what
    AWS says.

    :param tuning_job_name: the tuning job.
    :param sla: the SLA, or where Airflow keeps it (:meth:`airflow_amt.hooks.sla.SlaSource.to_dict`).
    :param run: times of the DAG run (:meth:`airflow_amt.tuning.policies.RunTimes.to_dict`).
    :param memory: what is known of earlier looks (:meth:`airflow_amt.hooks.guard.Memory.to_dict`).
    :param requested_by: the task instance in one line, for the record of a stop.
    :param tells: whether a worker tells people the news; otherwise they are logged from here.
    :param check_interval: longest time between two reads, in seconds.
    :param deadline: as for :class:`AmtTuningJobTrigger`, as are the others.
    """

    def __init__(
        self,
        tuning_job_name: str,
        sla: dict[str, Any],
        run: dict[str, Any] | None = None,
        memory: dict[str, Any] | None = None,
        requested_by: str | None = None,
        tells: bool = False,
        check_interval: float = 30.0,
        deadline: str | None = None,
        first_read_at: str | None = None,
        stop_on_kill: bool = False,
        state: dict[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        max_failures: int = MAX_FAILURES_IN_A_ROW,
        version: int = GUARDED_TRIGGER_VERSION,
        **newer: Any,
    ) -> None:
        super().__init__(
            tuning_job_name=tuning_job_name,
            check_interval=check_interval,
            deadline=deadline,
            first_read_at=first_read_at,
            stop_on_kill=stop_on_kill,
            state=state,
            aws_conn_id=aws_conn_id,
            region_name=region_name,
            verify=verify,
            botocore_config=botocore_config,
            max_failures=max_failures,
            version=version,
            **newer,
        )
        self.sla = sla
        self.run_times = run
        self.memory = memory
        self.requested_by = requested_by
        self.tells = tells
        self._unreadable = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the stored arguments: plain, JSON-safe, without secrets."""
        _, arguments = super().serialize()
        return (
            "airflow_amt.triggers.guarded.AmtGuardedTuningJobTrigger",
            {
                **arguments,
                "version": GUARDED_TRIGGER_VERSION,
                "sla": self.sla,
                "run": self.run_times,
                "memory": self.memory,
                "requested_by": self.requested_by,
                "tells": self.tells,
            },
        )

    @cached_property
    def guard(self) -> Guard:
        """What looks at the tuning job."""
        memory = Memory.parse(self.memory)
        return Guard(
            lambda: self.reading_hook,
            self.tuning_job_name,
            SlaReader(SlaSource.parse(self.sla), log=self.log, last=memory.sla),
            log=self.log,
            requested_by=self.requested_by,
            run=RunTimes.parse(self.run_times or {}),
            memory=memory,
            answers=self._answer,
            tells=self.tells,
        )

    def new_reader(self, **options: Any) -> TuningJobReader:
        """Return what reads the tuning job and holds it to the SLA."""
        return super().new_reader(guard=self.guard, **options)

    def payload(self, kind: EventKind, reading: Reading | None, error: AmtAwsError | None) -> dict[str, Any]:
        """Return the event's payload, JSON-safe."""
        payload = super().payload(kind, reading, error)
        guard: Guard | None = vars(self).get("guard")  # none, if that could not be built
        known = {} if guard is None or guard.stop is None else {"known_stop": guard.stop.tags()}
        memory = self.memory if guard is None else guard.memory.to_dict()
        return {
            **payload,
            "version": GUARDED_TRIGGER_VERSION,
            "state": {**(self.state or {}), **known, "memory": memory},
        }

    def is_resumed(self, state: str | None) -> bool:
        """Whether Airflow ends the trigger because a person answered, and the task goes on (3.3).

        Also the question of a try before this one, of which the trigger knows nothing. If it cannot be told,
        the task is taken to go on: a job that runs on can still be stopped.
        """
        from airflow_amt import _human

        if not self.tells or self.task_instance is None:
            return False
        for attempt in range(1, _ANSWER_ATTEMPTS + 1):
            try:
                return _human.was_answered(self.task_instance.id, state)
            except Exception:
                # Whatever the supervisor raises.
                self.log.exception(
                    "Reading what people answered failed (%d of %d)", attempt, _ANSWER_ATTEMPTS
                )
            if attempt < _ANSWER_ATTEMPTS:
                time.sleep(_ANSWER_PAUSE_SECONDS)
        return True

    def _answer(self, asked: Asked) -> Answer | None:
        from airflow_amt import _human
        from airflow_amt.tuning.asking import Question

        if self.task_instance is None:
            return None
        question = Question.from_dict(asked.shown)
        ti_id = self.task_instance.id
        over = asked.until is not None and datetime.now(UTC) >= asked.until
        human: HumanAnswer | None
        try:
            human = _human.read_answer(ti_id)
            if human is None and over:
                human = _human.close_question(ti_id, question)
        except _human.UnreadableAnswerError as error:
            if not self._unreadable:
                self._unreadable = True
                self.log.warning("What people answer cannot be read, the default counts in time: %s", error)
            human = question.default_answer if over else None
        except Exception:
            # Whatever the supervisor raises; the job is watched on, and the answer is read again.
            self.log.exception("What people answered cannot be read")
            human = question.default_answer if over else None
        return None if human is None else understood(human, question, asked.rule, self.log)
