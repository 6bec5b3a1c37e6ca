"""Find the tuning jobs that nobody waits for any more, and stop them: for the operator and the command.

No Airflow here: who asks says how task instances are read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow_amt.exceptions import AmtAwsError, AmtResourceNotFoundError
from airflow_amt.hooks.errors import is_transient
from airflow_amt.text import MOST_REASON, shown
from airflow_amt.tuning import TuningJobStatus
from airflow_amt.tuning.naming import Owner
from airflow_amt.tuning.reaping import (
    OwnedJob,
    ReapCode,
    ReapDecision,
    ReapPolicy,
    TaskView,
    decide,
    latest_by_owner,
    owner_of,
    settled_by_tags,
)
from airflow_amt.watch.polling import patiently

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from airflow_amt.hooks.tuning import AmtHook

_Result = TypeVar("_Result")

#: Version of the result.
REAP_VERSION = 1

#: Orphans that a result lists; it counts all of them.
MOST_LISTED = 50

STOPPED_BY = "reaper"

#: Attempts of one call, beside botocore's own, before the reaper gives up: half a minute. It runs again.
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 1.0


class TaskViews(Protocol):
    """Reads task instances. What cannot be read is in the answer, as a view that says so."""

    def read(self, owners: Collection[Owner]) -> Mapping[Owner, TaskView]:
        """Return what Airflow says of each of these task instances, as of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A tuning job that was looked at.

    :param job: the job, its owner and tags.
    :param decision: whether it is kept or stopped, and why.
    :param stopped: whether this run stopped it.
    """

    job: OwnedJob
    decision: ReapDecision
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        owner = self.job.owner
        return {
            "tuning_job_name": self.job.name,
            "dag_id": owner.dag_id,
            "run_id": owner.run_id,
            "task_id": owner.task_id,
            "map_index": owner.map_index,
            "age_seconds": round(self.job.age.total_seconds()),
            "code": self.decision.code.value,
            "reason": self.decision.reason,
            "stopped": self.stopped,
        }


@dataclass(slots=True, kw_only=True)
class ReapReport:
    """What a run of the reaper found and did.

    :param dry_run: whether it only looked.
    :param in_progress: tuning jobs in progress, old enough, that were listed.
    :param judged: those with ownership tags, in the order of their creation.
    :param ended: names of orphans that came to their end before they could be stopped.
    :param errors: what could not be done, one sentence each.
    """

    dry_run: bool
    in_progress: int = 0
    judged: list[Judged] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def orphans(self) -> list[Judged]:
        """The jobs that nobody waits for, stopped or not."""
        return [one for one in self.judged if one.decision.stop]

    def to_dict(self, most_listed: int = MOST_LISTED) -> dict[str, Any]:
        """Return it JSON-safe, with so many orphans at most."""
        orphans = self.orphans
        codes = Counter(one.decision.code.value for one in self.judged)
        return {
            "version": REAP_VERSION,
            "dry_run": self.dry_run,
            "in_progress": self.in_progress,
            "owned": len(self.judged),
            "stopped": sum(one.stopped for one in orphans),
            "ended": len(self.ended),
            "by_code": dict(sorted(codes.items())),
            "orphans": [one.to_dict() for one in orphans[:most_listed]],
            "orphans_not_listed": max(len(orphans) - most_listed, 0),
            "errors": len(self.errors),
        }

    def summary(self) -> str:
        """Say it in one line."""
        orphans = self.orphans
        stopped = sum(one.stopped for one in orphans)
        done = "would be stopped (dry run)" if self.dry_run else f"{stopped} of them stopped"
        by_code = ", ".join(f"{count} {code}" for code, count in self.to_dict()["by_code"].items())
        return (
            f"{self.in_progress} tuning jobs in progress, {len(self.judged)} with an owner in Airflow"
            f"{f' ({by_code})' if by_code else ''}; {len(orphans)} orphans, {done}; "
            f"{len(self.errors)} errors."
        )


class Reaper:
    """One look over all tuning jobs in progress of an account and region.

    How it works: the jobs are listed in pages of 100 and their tags read one by one; those that the tags do
    not settle are judged by their task instances. Before a job is stopped its tags and its task instance are
    read anew and have to give the same answer, and it has to be in progress still. A call that fails for good
    is noted and the next job looked at; if AWS itself does not answer, the rest is left to the next run.

    :param hook: the account and region.
    :param tasks: reads task instances.
    :param policy: what was asked for.
    :param dry_run: look only.
    :param log: gets a line for each job that is not simply waited for.
    :param name_contains: only jobs whose name contains this (``NameContains``).
    :param cancelled: asked between two jobs whether to end early.
    """

    def __init__(
        self,
        hook: AmtHook,
        tasks: TaskViews,
        *,
        policy: ReapPolicy,
        dry_run: bool,
        log: Logger | FilteringBoundLogger,
        name_contains: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._hook = hook
        self._tasks = tasks
        self._policy = policy
        self._log = log
        self._name_contains = name_contains
        self._cancelled = cancelled
        self._sleep = sleep
        self._report = ReapReport(dry_run=dry_run)
        self._arns: dict[str, str] = {}

    def run(self) -> ReapReport:
        """Look at all jobs, stop the orphans unless it is a dry run, and report."""
        try:
            for one in self._judge(self._owned_jobs()):
                self._report.judged.append(one if self._report.dry_run else self._stop(one))
        except _GivenUpError as error:
            self._note(f"Given up, the rest is left to the next run: {error.cause}")
        self._log.info("Reaper: %s", self._report.summary())
        return self._report

    def _owned_jobs(self) -> list[OwnedJob]:
        """Return the jobs in progress that carry ownership tags, oldest first."""
        filters: dict[str, Any] = {
            "StatusEquals": TuningJobStatus.IN_PROGRESS.value,
            "SortBy": "CreationTime",
            "SortOrder": "Ascending",
        }
        now = datetime.now(UTC)
        if self._policy.grace > timedelta(0):
            filters["CreationTimeBefore"] = now - self._policy.grace
        if self._name_contains:
            filters["NameContains"] = self._name_contains
        try:
            summaries = self._patiently(lambda: list(self._hook.list_tuning_jobs(**filters)))
        except AmtAwsError as error:
            self._note(f"The tuning jobs cannot be listed: {error}")
            return []
        self._report.in_progress = len(summaries)
        jobs: list[OwnedJob] = []
        for summary in summaries:
            if self._cancelled():
                return []
            name = str(summary["HyperParameterTuningJobName"])
            arn = str(summary["HyperParameterTuningJobArn"])
            tags = self._tags(name, arn)
            owner = owner_of(tags or {})
            if owner is None or (self._policy.dag_ids and owner.dag_id not in self._policy.dag_ids):
                continue
            jobs.append(OwnedJob(name=name, owner=owner, tags=tags or {}, age=now - summary["CreationTime"]))
            self._arns[name] = arn
        later = latest_by_owner({job.name: (job.owner, job.generation) for job in jobs})
        return [replace(job, superseded_by=later.get(job.name)) for job in jobs]

    def _judge(self, jobs: list[OwnedJob]) -> Iterator[Judged]:
        open_questions = {job.owner for job in jobs if settled_by_tags(job, self._policy) is None}
        views = self._tasks.read(open_questions) if open_questions else {}
        problems = {view.problem for view in views.values() if view.problem and view.found is None}
        for problem in sorted(problems):
            self._note(f"Task instances cannot be read, their tuning jobs are kept: {problem}")
        for job in jobs:
            if self._cancelled():
                return
            decision = settled_by_tags(job, self._policy) or decide(job, views[job.owner], self._policy)
            self._tell(job, decision)
            yield Judged(job=job, decision=decision)

    def _stop(self, found: Judged) -> Judged:
        """Stop an orphan, if it still is one."""
        if not found.decision.stop:
            return found
        job = found.job
        try:
            again = self._look_again(job)
            if not again.stop:
                self._log.warning(
                    "Tuning job %s is kept after all: %s (%s).", job.name, again.reason, again.code.value
                )
                return replace(found, decision=again)
            detail = f"{again.code.value}: {again.reason}"
            stopped = self._patiently(
                lambda: self._hook.stop_tuning_job(
                    job.name, stopped_by=STOPPED_BY, detail=detail, requested_by=STOPPED_BY
                )
            )
        except AmtResourceNotFoundError:
            stopped = False
        except AmtAwsError as error:
            self._note(f"Tuning job {job.name} is an orphan and could not be stopped: {error}")
            return found
        if not stopped:
            self._report.ended.append(job.name)
            self._log.info("Tuning job %s ended before it could be stopped.", job.name)
        return replace(found, stopped=stopped)

    def _look_again(self, job: OwnedJob) -> ReapDecision:
        """Decide anew from what AWS and Airflow say right now.

        :raises AmtAwsError: AWS cannot be read.
        """
        tags = self._patiently(lambda: self._hook.tags(self._arns[job.name]))
        if tags is None:
            return ReapDecision(code=ReapCode.UNREADABLE, reason="its tags can no longer be read")
        if owner_of(tags) != job.owner:
            return ReapDecision(code=ReapCode.UNREADABLE, reason="its ownership tags have just been changed")
        later = job.superseded_by
        if later is not None and not self._is_in_progress(later):
            later = None
        view = self._tasks.read([job.owner])[job.owner]
        return decide(replace(job, tags=tags, superseded_by=later), view, self._policy)

    def _is_in_progress(self, name: str) -> bool:
        try:
            description = self._patiently(lambda: self._hook.describe_tuning_job(name))
        except AmtResourceNotFoundError:
            return False
        return bool(description["HyperParameterTuningJobStatus"] == TuningJobStatus.IN_PROGRESS.value)

    def _tags(self, name: str, arn: str) -> dict[str, str] | None:
        try:
            tags = self._patiently(lambda: self._hook.tags(arn))
        except AmtResourceNotFoundError:
            return None  # it was deleted after it was listed
        except AmtAwsError as error:
            self._note(f"The tags of tuning job {name} cannot be read, it is kept: {error}")
            return None
        if tags is None:
            self._note(
                f"The tags of tuning job {name} may not be read, it is kept. Fix: allow sagemaker:ListTags."
            )
        return tags

    def _tell(self, job: OwnedJob, decision: ReapDecision) -> None:
        if decision.code in (ReapCode.TASK_WAITS, ReapCode.NOT_WAITING, ReapCode.YOUNG):
            return
        owner = job.owner
        self._log.info(
            "Tuning job %s of %s %s %s[%d], %.0f s old: %s, %s (%s).",
            *map(shown, (job.name, owner.dag_id, owner.run_id, owner.task_id)),
            owner.map_index,
            job.age.total_seconds(),
            "orphan" if decision.stop else "kept",
            shown(decision.reason, MOST_REASON),
            decision.code.value,
        )

    def _patiently(self, call: Callable[[], _Result]) -> _Result:
        """Make a call to AWS.

        :raises AmtAwsError: AWS refused it.
        :raises _GivenUpError: AWS did not answer, or was too busy, for too long.
        """
        try:
            return patiently(
                call,
                interval_seconds=_FIRST_PAUSE_SECONDS,
                log=self._log,
                sleep=self._sleep,
                most=_ATTEMPTS,
            )
        except AmtAwsError as error:
            if is_transient(error):
                raise _GivenUpError(error) from error
            raise

    def _note(self, error: str) -> None:
        self._report.errors.append(error)
        self._log.error("%s", error)


class _GivenUpError(Exception):
    """AWS cannot be reached for now."""

    def __init__(self, cause: AmtAwsError) -> None:
        super().__init__(cause)
        self.cause = cause
