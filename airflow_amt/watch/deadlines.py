"""Stop, or warn of, the tuning jobs of a DAG run that missed its deadline: for the callbacks of both kinds.

No Airflow here: who asks says which run it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtAwsError, AmtDeadlineError, AmtResourceNotFoundError
from airflow_amt.hooks.errors import is_transient
from airflow_amt.tuning import TuningJobStatus, TuningProgress
from airflow_amt.tuning.deadlines import Belongs, DeadlineAction, MissedDeadline, RunJobs, is_unsettled
from airflow_amt.tuning.naming import DEPLOYMENT_TAG
from airflow_amt.tuning.reaping import KEEP_TAG
from airflow_amt.watch.polling import Patience, patiently

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from airflow_amt.hooks.tuning import AmtHook

STOPPED_BY = "policy"

#: Attempts of one call in one round, beside botocore's own; then the other jobs have their turn.
_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 1.0
#: The wait before the second round; then doubled, as everywhere (:class:`Patience`).
_FIRST_ROUND_SECONDS = 5.0

#: Names in one sentence.
_MOST_NAMED = 20


@dataclass(slots=True, kw_only=True)
class DeadlineReport:
    """What was found and done about the tuning jobs of one DAG run; all are names.

    :param stopped: stopped by this deadline.
    :param ended: over, or being stopped by somebody else, before it could be.
    :param warned: running on, with a warning.
    :param kept: running on, because of their tag.
    :param left: in progress, of this run's ids, and not meant: another task's, or another Airflow's.
    :param errors: what could not be done, one sentence each.
    """

    stopped: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def summary(self, missed: MissedDeadline) -> str:
        """Say it in one sentence."""
        said = [
            f"{what}: {_named(names)}"
            for what, names in (
                ("stopped", self.stopped),
                ("ended before they could be stopped", self.ended),
                ("running on, with a warning", self.warned),
                ("kept by their tag", self.kept),
                ("left alone", self.left),
            )
            if names
        ]
        called = f" {missed.name}" if missed.name else ""
        return (
            f"DAG run {missed.run_id} of {missed.dag_id} missed its deadline{called} "
            f"({missed.due.isoformat()}); tuning jobs {'; '.join(said) or 'in progress: none'}."
        )


class DeadlineEnforcer:
    """One look at the tuning jobs of a DAG run that missed its deadline.

    How it works: the tuning jobs in progress that were created since the run began are listed, in pages of
    100, and the tags of each read. Those of the run are stopped at once. A job whose turn failed gets another
    one after all others had theirs, until AWS was away for too long (about 75 minutes) or refused it. Those
    that this deadline stopped before, in a process that ended before it recorded that, get their record.

    :param hook: the account and region.
    :param missed: the deadline and its DAG run.
    :param jobs: tells the run's tuning jobs.
    :param action: ``stop``, ``stop_and_fail`` or ``warn``.
    :param detail: why, for people.
    :param log: gets a line for each job of the run, and the summary.
    :param sleep: waits; may raise to end the work.
    :param check: called before each job; may raise to end the work.
    """

    def __init__(
        self,
        hook: AmtHook,
        missed: MissedDeadline,
        jobs: RunJobs,
        *,
        action: DeadlineAction,
        detail: str | None,
        log: Logger | FilteringBoundLogger,
        sleep: Callable[[float], object] = time.sleep,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._hook = hook
        self._missed = missed
        self._jobs = jobs
        self._action = action
        self._detail = missed.detail(detail)
        self._log = log
        self._sleep = sleep
        self._check = check
        self._report = DeadlineReport()
        self._seen: set[str] = set()

    def run(self) -> str:
        """Do it, and return the summary.

        :raises AmtDeadlineError: something could not be done; all else was.
        """
        since = self._missed.created_after
        self._look_at(TuningJobStatus.IN_PROGRESS, self._act, CreationTimeAfter=since)
        if self._action != "warn":
            # In an account with many jobs, of those that are over only what ended since.
            lately = {"CreationTimeAfter": since, "LastModifiedTimeAfter": self._missed.stopped_after}
            self._look_at(TuningJobStatus.STOPPING, self._settle, **lately)
            self._look_at(TuningJobStatus.STOPPED, self._settle, **lately)
        summary = self._report.summary(self._missed)
        self._log.warning("%s", summary)
        if self._report.errors:
            raise AmtDeadlineError(summary, self._report.errors)
        return summary

    def _look_at(
        self, status: TuningJobStatus, act: Callable[[str, dict[str, str]], None], **filters: Any
    ) -> None:
        """Do something about each tuning job of a status, by its tags."""
        try:
            summaries = patiently(
                lambda: list(self._hook.list_tuning_jobs(StatusEquals=status.value, **filters)),
                interval_seconds=_FIRST_ROUND_SECONDS,
                log=self._log,
                sleep=self._sleep,
            )
        except AmtAwsError as error:
            self._note(f"The tuning jobs that are {status.value} cannot be listed: {error}")
            return
        arns = {
            str(one["HyperParameterTuningJobName"]): str(one["HyperParameterTuningJobArn"])
            for one in summaries
        }
        unread: list[str] = []

        def look(name: str) -> None:
            try:
                tags = self._hook.tags(arns[name])
                if tags is None:
                    unread.append(name)
                else:
                    act(name, tags)
            except AmtResourceNotFoundError:
                self._log.info("Tuning job %s was deleted after it was listed.", name)

        # Between two lists a job may go from one status to the next.
        new = [name for name in arns if name not in self._seen]
        self._seen.update(new)
        self._in_rounds(new, look)
        if unread:
            self._note(
                f"Tags may not be read, so tuning jobs that may be of this run are left alone: "
                f"{_named(unread)}. Fix: allow sagemaker:ListTags"
            )

    def _in_rounds(self, names: Sequence[str], look: Callable[[str], None]) -> None:
        """Look at each job, and again, after all others, at those where AWS was too busy."""
        patience = Patience(interval_seconds=_FIRST_ROUND_SECONDS, log=self._log)
        while names:
            busy: dict[str, AmtAwsError] = {}
            for name in names:
                self._check()
                try:
                    self._briefly(name, look)
                except AmtAwsError as error:
                    if is_transient(error):
                        busy[name] = error
                    else:
                        self._note_job(name, error)
            if not busy:
                return
            try:
                pause = patience.bear(next(iter(busy.values())))
            except AmtAwsError:
                for name, last in busy.items():
                    self._note_job(name, last)
                return
            self._sleep(pause)
            names = list(busy)

    def _briefly(self, name: str, look: Callable[[str], None]) -> None:
        patiently(
            lambda: look(name),
            interval_seconds=_FIRST_PAUSE_SECONDS,
            log=self._log,
            sleep=self._sleep,
            most=_ATTEMPTS,
        )

    def _act(self, name: str, tags: dict[str, str]) -> None:
        """Stop a job in progress, or warn of it, if it is one of the run's."""
        belongs = self._jobs.judge(name, tags)
        if belongs is Belongs.OTHER:
            return
        if belongs is not Belongs.MINE:
            because = _WHY_NOT[belongs]
            (self._report.kept if belongs is Belongs.KEPT else self._report.left).append(name)
            self._log.info("Tuning job %s is left alone: %s.", name, because)
        elif self._action == "warn":
            progress = TuningProgress.from_describe(self._hook.describe_tuning_job(name))
            if progress.is_terminal:
                self._report.ended.append(name)
                return
            self._report.warned.append(name)
            self._log.warning("%s: %s", self._detail, progress.log_line())
        else:
            self._stop(name)

    def _settle(self, name: str, tags: dict[str, str]) -> None:
        """Let a job that this deadline stopped before be on record as stopped by it."""
        if self._jobs.judge(name, tags) is Belongs.MINE and is_unsettled(tags, self._missed.requested_by):
            self._stop(name)

    def _stop(self, name: str) -> None:
        stopped = self._hook.stop_tuning_job(
            name,
            stopped_by=STOPPED_BY,
            detail=self._detail,
            requested_by=self._missed.requested_by,
            policy=self._missed.policy_stop(self._action),
        )
        (self._report.stopped if stopped else self._report.ended).append(name)

    def _note_job(self, name: str, error: AmtAwsError) -> None:
        self._note(f"Tuning job {name} could not be dealt with: {error}")

    def _note(self, error: str) -> None:
        self._report.errors.append(error)
        self._log.error("%s", error)


_WHY_NOT = {
    Belongs.KEPT: f"it has the tag {KEEP_TAG}",
    Belongs.OTHER_TASK: "its task is none of those that are meant",
    Belongs.OTHER_DEPLOYMENT: f"its tag {DEPLOYMENT_TAG} is not this Airflow's ([amt] deployment)",
}


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
