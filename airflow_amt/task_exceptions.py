"""The errors that Airflow itself must recognise: how a task ends when its tuning job did not succeed.

::

    AmtError, AirflowException
    ├── AmtTuningJobError                  the tuning job's outcome is not a success; carries it
    │   ├── AmtTuningJobFailed                 it failed (or is being deleted)
    │   │   └── AmtAwaitedJobFailed                the same, seen by a sensor (also AirflowFailException)
    │   ├── AmtTuningJobStopped                it was stopped
    │   │   └── AmtAwaitedJobStopped               the same, seen by a sensor (also AirflowFailException)
    │   └── AmtTuningJobTimeout                this task stopped it, max_ingestion_time being over
    ├── AmtConditionNotMet                 the tuning job ended before a sensor's condition was met
    │                                          (also AirflowFailException)
    ├── AmtTaskKilled                      this task was killed while it waited
    ├── AmtNoUsableTrainingJob             no training job has what was asked for (also AirflowFailException)
    ├── AmtReapError                       the reaper could not judge or stop every tuning job
    ├── AmtEnforceError                    not every tuning job could be held to a stop policy
    └── AmtPolicyBroken                    a stop policy ended a tuning job and fails the task that looked
                                               (also AirflowFailException)

    AmtJobExistsError, AirflowException
    └── AmtOwnJobEndedError                the given name is taken by this task's own job, which is over

An operator's error lets Airflow retry: a retry starts a new tuning job. A sensor's does not, because a job
that is over stays so; as an ``AirflowFailException`` it is also what ``soft_fail`` and ``silent_fail`` heed
in every mode (``BaseSensorOperator`` of Airflow 3.1 to 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_amt._compat import AirflowException, AirflowFailException
from airflow_amt.exceptions import AmtError, AmtJobExistsError
from airflow_amt.text import MOST_MESSAGE, MOST_REASON, bounded, numbered, shown, shown_value

__all__ = [
    "AmtAwaitedJobFailed",
    "AmtAwaitedJobStopped",
    "AmtConditionNotMet",
    "AmtEnforceError",
    "AmtNoUsableTrainingJob",
    "AmtOwnJobEndedError",
    "AmtPolicyBroken",
    "AmtReapError",
    "AmtTaskKilled",
    "AmtTuningJobError",
    "AmtTuningJobFailed",
    "AmtTuningJobStopped",
    "AmtTuningJobTimeout",
]


class AmtTuningJobError(AmtError, AirflowException):
    """A tuning job is over and did not succeed.

    :param outcome: the outcome as a dict, as in XCom (:meth:`airflow_amt.tuning.TuningOutcome.to_dict`).
    """

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        self.outcome: dict[str, Any] = dict(outcome)
        super().__init__(self.outcome)

    def __str__(self) -> str:
        parts = [f"Tuning job {self.outcome.get('tuning_job_name')!r}: {self.outcome.get('explanation')}"]
        best = self.outcome.get("best_training_job")
        if best:
            metric = self.outcome.get("objective_metric") or "objective"
            parts.append(f"Best training job: {best.get('name')} ({metric} {best.get('objective')}).")
        else:
            parts.append("No training job gave an objective.")
        reasons = self.outcome.get("training_job_failure_reasons") or ()
        if reasons:
            listed = "; ".join(f"{one.get('count')} x {one.get('reason')}" for one in reasons)
            parts.append(f"Failed training jobs: {listed}.")
        return shown(" ".join(parts), MOST_REASON)

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", (self.outcome,), {}


class AmtTuningJobFailed(AmtTuningJobError):  # noqa: N818 - named as Airflow names its task failures
    """The tuning job failed, or is being deleted."""


class AmtTuningJobStopped(AmtTuningJobError):  # noqa: N818 - as above
    """The tuning job was stopped before it came to its own end."""


class AmtTuningJobTimeout(AmtTuningJobError):  # noqa: N818 - as above
    """The tuning job ran longer than ``max_ingestion_time`` and was stopped by this task."""


class AmtAwaitedJobFailed(AmtTuningJobFailed, AirflowFailException):
    """A sensor's tuning job failed: the task fails without a retry."""


class AmtAwaitedJobStopped(AmtTuningJobStopped, AirflowFailException):
    """A sensor's tuning job was stopped: the task fails without a retry."""


class AmtConditionNotMet(AmtError, AirflowFailException):  # noqa: N818 - as above
    """A tuning job is over and never met the condition that a sensor waited for: no retry.

    :param result: the final progress and the condition, as in XCom
        (:func:`airflow_amt.tuning.conditions.progress_result`).
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.result: dict[str, Any] = dict(result)
        super().__init__(self.result)

    def __str__(self) -> str:
        condition = self.result.get("condition") or {}
        failure = bounded(self.result.get("failure_reason"))
        why = f" ({failure})" if failure else ""
        return shown(
            f"Tuning job {self.result.get('tuning_job_name')!r} is {self.result.get('status')}{why}, and the "
            f"condition is not met: {condition.get('reason')}",
            MOST_MESSAGE,
        )

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", (self.result,), {}


class AmtTaskKilled(AmtError, AirflowException):  # noqa: N818 - as above
    """The task was killed while it waited for a tuning job, and stops waiting.

    :param tuning_job_name: the tuning job.
    :param detail: what was done about the tuning job.
    """

    def __init__(self, tuning_job_name: str | None, detail: str) -> None:
        super().__init__(tuning_job_name, detail)
        self.tuning_job_name = tuning_job_name
        self.detail = detail

    def __str__(self) -> str:
        name, detail = shown_value(self.tuning_job_name), shown(self.detail, MOST_MESSAGE)
        return f"The task was killed while it waited for tuning job {name}: {detail}"

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", (self.tuning_job_name, self.detail), {}


class AmtNoUsableTrainingJob(AmtError, AirflowFailException):  # noqa: N818 - as above
    """A tuning job has no training job to go on with: the task fails without a retry.

    :param tuning_job_name: the tuning job.
    :param detail: what was looked for and what was found.
    """

    def __init__(self, tuning_job_name: str, detail: str) -> None:
        super().__init__(tuning_job_name, detail)
        self.tuning_job_name = tuning_job_name
        self.detail = detail

    def __str__(self) -> str:
        detail = shown(self.detail, MOST_MESSAGE)
        return f"Tuning job {shown_value(self.tuning_job_name)} has no usable training job: {detail}"

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", (self.tuning_job_name, self.detail), {}


class AmtReapError(AmtError, AirflowException):
    """The reaper could not judge or stop every tuning job; what it could do is done.

    :param errors: what went wrong, one sentence each.
    :param result: what was done, as the operator returns it.
    """

    def __init__(self, errors: Sequence[str], result: Mapping[str, Any]) -> None:
        self.errors = tuple(errors)
        self.result: dict[str, Any] = dict(result)
        super().__init__(self.errors, self.result)

    def __str__(self) -> str:
        return (
            f"The reaper looked at {self.result.get('owned')} tuning jobs and stopped "
            f"{self.result.get('stopped')}; {len(self.errors)} errors:{numbered(self.errors)}"
        )

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", (list(self.errors), self.result), {}


class AmtEnforceError(AmtError, AirflowException):
    """Not every tuning job could be held to the stop policies; what could be done is done.

    :param errors: what went wrong, one sentence each.
    :param result: what was done, as the operator returns it.
    """

    def __init__(self, errors: Sequence[str], result: Mapping[str, Any]) -> None:
        self.errors = tuple(errors)
        self.result: dict[str, Any] = dict(result)
        super().__init__(self.errors, self.result)

    def __str__(self) -> str:
        return (
            f"Of {self.result.get('matched')} tuning jobs, {self.result.get('stopped')} were stopped; "
            f"{len(self.errors)} errors:{numbered(self.errors)}"
        )

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", (list(self.errors), self.result), {}


class AmtPolicyBroken(AmtError, AirflowFailException):  # noqa: N818 - named as Airflow names its task failures
    """A stop policy with ``stop_and_fail`` ended tuning jobs: no retry, which would find them over.

    :param jobs: the jobs, each as in ``jobs`` of the result.
    :param errors: what went wrong beside that, one sentence each.
    :param result: what was done, as the operator returns it.
    """

    def __init__(
        self, jobs: Sequence[Mapping[str, Any]], errors: Sequence[str], result: Mapping[str, Any]
    ) -> None:
        self.jobs = tuple(dict(one) for one in jobs)
        self.errors = tuple(errors)
        self.result: dict[str, Any] = dict(result)
        super().__init__(self.jobs, self.errors, self.result)

    def __str__(self) -> str:
        lines = [
            shown(
                f"{one.get('tuning_job_name')}, policy {one.get('rule')}: {one.get('reason')}", MOST_MESSAGE
            )
            for one in self.jobs
        ]
        more = f"\nBeside that, {len(self.errors)} errors:{numbered(self.errors)}" if self.errors else ""
        return f"Stop policies ended {len(lines)} tuning jobs and fail the task:{numbered(lines)}{more}"

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        path = f"{type(self).__module__}.{type(self).__name__}"
        return path, (list(self.jobs), list(self.errors), self.result), {}


class AmtOwnJobEndedError(AmtJobExistsError, AirflowException):
    """An earlier try of this task used the given name, and its tuning job is over (or about to be)."""

    def __str__(self) -> str:
        return (
            f"A tuning job named {shown_value(self.name)} exists already: an earlier try of this very task "
            f"started it, and it is {shown(self.status)}. A name cannot be used twice. Fix: leave "
            "HyperParameterTuningJobName out of config to get a derived name, with which a retry starts a "
            "new tuning job; with if_exists='fail', use another if_exists."
        )

    def serialize(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return class path and arguments, for Airflow's own serialisation of exceptions."""
        return f"{type(self).__module__}.{type(self).__name__}", tuple(self.args), {}
