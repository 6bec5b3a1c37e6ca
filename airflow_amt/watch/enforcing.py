"""Hold tuning jobs that were created elsewhere to an SLA: one look over all that are selected.

No Airflow here: who asks brings the guard of a tuning job and tells people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging import Logger
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_amt.exceptions import AmtAwsError, AmtResourceNotFoundError
from airflow_amt.hooks.errors import is_transient
from airflow_amt.tuning.policies import Action, Due, Situation, Verdict
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.report import policy_report
from airflow_amt.tuning.status import TuningJobStatus
from airflow_amt.tuning.stops import Stop
from airflow_amt.watch.polling import patiently

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from airflow_amt.hooks.guard import Guard, Look
    from airflow_amt.hooks.tuning import AmtHook

_Result = TypeVar("_Result")

#: Version of the result.
ENFORCE_VERSION = 1

#: Tuning jobs, and missing names, that a result lists; it counts all of them.
MOST_LISTED = 50

#: Attempts of one call, beside botocore's own, before it counts as failed: half a minute.
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 1.0

#: Tuning jobs in a row that AWS gives no answer about, before the rest is left to the next run.
_MOST_UNANSWERED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tuning jobs are looked at: all that is given must hold. Case of names is ignored, as by AWS.

    :param names: these; ``None`` for any.
    :param prefix: the name begins with this.
    :param contains: the name contains this.
    :param tags: it has these tags; of a value that is ``None``, any value.
    """

    names: tuple[str, ...] | None = None
    prefix: str = ""
    contains: str = ""
    tags: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """The longest text that each name contains."""
        return max(self.prefix, self.contains, key=len)

    def fits_name(self, name: str) -> bool:
        """Say whether a name is selected."""
        key = name.lower()
        return (
            key.startswith(self.prefix.lower())
            and self.contains.lower() in key
            and (self.names is None or key in {one.lower() for one in self.names})
        )

    def fits_tags(self, tags: Mapping[str, str]) -> bool:
        """Say whether the tags are selected."""
        return all(key in tags and value in (None, tags[key]) for key, value in self.tags.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforced:
    """A tuning job that was looked at.

    :param name: its name.
    :param verdict: what is to be done about it; ``None`` if that could not be decided, or not be done.
    :param stop: the stop that this run made.
    :param error: why there is no verdict.
    """

    name: str
    verdict: Verdict | None = None
    stop: Stop | None = None
    error: str = ""

    @property
    def action(self) -> Action | None:
        """What is to be done, or was done."""
        if self.stop is not None and self.stop.policy is not None:
            return Action(self.stop.policy.action)
        return None if self.verdict is None else self.verdict.action

    @property
    def breached(self) -> bool:
        """Whether a rule demands its end."""
        return self.action is not None and self.action.stops

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        verdict = self.verdict or Verdict(reason=self.error)
        facts: dict[str, Any] = {
            "tuning_job_name": self.name,
            "action": None if self.action is None else self.action.value,
            "rule": verdict.rule,
            "code": verdict.code,
            "share": verdict.share,
            "reason": verdict.reason,
            "stopped": self.stop is not None,
        }
        if verdict.action is None and self.stop is not None and self.stop.policy is not None:
            # A stop whose answer was lost: seen only now.
            policy = self.stop.policy
            facts |= {"rule": policy.rule, "code": policy.code, "share": policy.share}
            facts["reason"] = self.stop.detail or verdict.reason
        return facts


@dataclass(slots=True, kw_only=True)
class EnforceReport:
    """What a look over tuning jobs found and did.

    :param dry_run: whether it only judged.
    :param in_progress: tuning jobs in progress that were listed, or are in progress of those named.
    :param looked: those that are selected, in the order of their creation, or in which they were named.
    :param missing: names of which there is no tuning job.
    :param errors: what could not be done, one sentence each.
    """

    dry_run: bool
    in_progress: int = 0
    looked: list[Enforced] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def to_fail(self) -> list[Enforced]:
        """The jobs that this run stopped, of which a rule says that the task fails."""
        return [one for one in self.looked if one.stop is not None and one.action is Action.STOP_AND_FAIL]

    def to_dict(self, most_listed: int = MOST_LISTED) -> dict[str, Any]:
        """Return it JSON-safe, with so many jobs at most: those that break a rule first."""
        jobs = sorted(self.looked, key=_rank)
        return {
            "version": ENFORCE_VERSION,
            "dry_run": self.dry_run,
            "in_progress": self.in_progress,
            "matched": len(self.looked),
            "breached": sum(one.breached for one in self.looked),
            "stopped": sum(one.stop is not None for one in self.looked),
            "warned": sum(one.action is Action.WARN for one in self.looked),
            "kept": sum(one.action is None and not one.error for one in self.looked),
            "jobs": [one.to_dict() for one in jobs[:most_listed]],
            "jobs_not_listed": max(len(jobs) - most_listed, 0),
            "missing": self.missing[:most_listed],
            "errors": len(self.errors),
        }

    def summary(self) -> str:
        """Say it in one line."""
        facts = self.to_dict(0)
        done = "would be stopped (dry run)" if self.dry_run else f"{facts['stopped']} of them stopped"
        return (
            f"{self.in_progress} tuning jobs in progress, {facts['matched']} of them selected: "
            f"{facts['breached']} break a rule, {done}; {facts['warned']} with a warning, {facts['kept']} "
            f"keep every rule; {facts['errors']} errors."
        )


def _rank(one: Enforced) -> tuple[int, bool]:
    """Return where it stands in a result: the most severe first, and of the others those with an error."""
    return 1 if one.action is None else -one.action.severity, not one.error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A tuning job in progress whose name is selected.

    :param description: if it was read already.
    """

    name: str
    arn: str
    description: Mapping[str, Any] | None = None


class Enforcer:
    """One look over all tuning jobs in progress that are selected.

    How it works: the jobs are listed in pages of 100, or described if they are named; where tags are asked
    for they are read one by one. Each job is described right before its guard looks at it, which stops it
    where a rule demands that. What fails for one job is noted and the next one looked at; if AWS gives no
    answer about several in a row, the rest is left to the next run.

    :param hook: the account and region.
    :param guard: gives what holds a tuning job, by its name, to the SLA.
    :param selection: which tuning jobs.
    :param dry_run: judge only.
    :param log: gets a line for each job of which something is to be told.
    :param tell: tells people of a warning or a stop; gets its report.
    :param missing_is_error: whether a name without a tuning job is an error.
    :param cancelled: asked before each job whether to end early.
    """

    def __init__(
        self,
        hook: AmtHook,
        guard: Callable[[str], Guard],
        *,
        selection: Selection,
        dry_run: bool,
        log: Logger | FilteringBoundLogger,
        tell: Callable[[Mapping[str, Any]], None],
        missing_is_error: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._hook = hook
        self._guard = guard
        self._selection = selection
        self._log = log
        self._tell = tell
        self._missing_is_error = missing_is_error
        self._cancelled = cancelled
        self._sleep = sleep
        self._report = EnforceReport(dry_run=dry_run)
        self._unanswered = 0

    def run(self) -> EnforceReport:
        """Look at all jobs, stop those that are to end unless it is a dry run, and report."""
        try:
            for one in self._candidates():
                self._handle(one)
        except _EndedEarlyError as error:
            self._note(str(error))
        self._log.info("Stop policies: %s", self._report.summary())
        return self._report

    # -- which jobs ---------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[_Candidate]:
        if self._selection.names is None:
            return self._listed()
        return self._named(self._selection.names)

    def _listed(self) -> Iterator[_Candidate]:
        filters: dict[str, Any] = {
            "StatusEquals": TuningJobStatus.IN_PROGRESS.value,
            "SortBy": "CreationTime",
            "SortOrder": "Ascending",
        }
        if self._selection.part:
            filters["NameContains"] = self._selection.part
        try:
            summaries = self._patiently(lambda: list(self._hook.list_tuning_jobs(**filters)))
        except AmtAwsError as error:
            self._note(f"The tuning jobs cannot be listed: {error}")
            return
        self._report.in_progress = len(summaries)
        found = [
            _Candidate(name=name, arn=str(one["HyperParameterTuningJobArn"]))
            for one in summaries
            if self._selection.fits_name(name := str(one["HyperParameterTuningJobName"]))
        ]
        for position, candidate in enumerate(found):
            self._go_on(len(found) - position)
            yield candidate

    def _named(self, names: tuple[str, ...]) -> Iterator[_Candidate]:
        # Twice the same name is the same job, whose answer the first look may have changed.
        wanted: dict[str, str] = {}
        for name in names:
            wanted.setdefault(name.lower(), name)
        for position, name in enumerate(wanted.values()):
            self._go_on(len(wanted) - position)
            if not self._selection.fits_name(name):
                self._log.info("Tuning job %s is not selected by its name.", name)
                continue
            candidate = self._described(name)
            if candidate is not None:
                yield candidate

    def _described(self, name: str) -> _Candidate | None:
        """Return a job that was named, if it is in progress."""
        try:
            description = self._patiently(lambda: self._hook.describe_tuning_job(name))
        except AmtResourceNotFoundError:
            self._unanswered = 0
            self._report.missing.append(name)
            if self._missing_is_error:
                self._note(f"There is no tuning job {name}.")
            else:
                self._log.warning("There is no tuning job %s.", name)
            return None
        except AmtAwsError as error:
            self._fail(name, error)
            return None
        status = description.get("HyperParameterTuningJobStatus")
        if status != TuningJobStatus.IN_PROGRESS.value:
            self._unanswered = 0
            self._log.info("Tuning job %s is %s: it is left alone.", name, status)
            return None
        self._report.in_progress += 1
        arn = str(description["HyperParameterTuningJobArn"])
        return _Candidate(name=name, arn=arn, description=description)

    def _go_on(self, left: int) -> None:
        """Look whether to go on.

        :raises _EndedEarlyError: the task is being killed, or AWS gives no answers.
        """
        jobs = f"{left} tuning jobs were not looked at" if left != 1 else "one tuning job was not looked at"
        if self._cancelled():
            raise _EndedEarlyError(f"The task is being ended: {jobs}.")
        if self._unanswered >= _MOST_UNANSWERED:
            raise _EndedEarlyError(f"AWS gives no answers: {jobs}, the next run does.")

    # -- one job ------------------------------------------------------------------------------------------

    def _handle(self, candidate: _Candidate) -> None:
        """Look at a job if its tags are selected, and keep what became of it."""
        name = candidate.name
        try:
            if self._selection.tags and not self._fits_tags(candidate):
                return
            found = self._look(candidate)
        except AmtResourceNotFoundError:
            self._log.info("Tuning job %s was deleted meanwhile.", name)
        except AmtAwsError as error:
            self._fail(name, error)
            return
        except Exception as error:  # noqa: BLE001 - see below
            # A mistake that only this job brings out (of a policy of one's own, of this package) must not
            # keep the others from being looked at.
            self._log.exception("Tuning job %s cannot be judged", name)
            self._failed(name, f"{type(error).__name__}: {error}")
        else:
            self._report.looked.append(found)
        self._unanswered = 0

    def _fits_tags(self, candidate: _Candidate) -> bool:
        tags = self._patiently(lambda: self._hook.tags(candidate.arn))
        if tags is None:
            self._note(
                f"The tags of tuning job {candidate.name} may not be read, so it is left alone. Fix: allow "
                "sagemaker:ListTags, or select by name."
            )
            return False
        return self._selection.fits_tags(tags)

    def _look(self, candidate: _Candidate) -> Enforced:
        name = candidate.name
        described = candidate.description
        if described is None or self._selection.tags:
            # Anew, as reading tags may have taken a while.
            described = self._patiently(lambda: self._hook.describe_tuning_job(name))
        description = described
        progress = TuningProgress.from_describe(description)
        guard = self._guard(name)
        if self._report.dry_run:
            verdict = self._patiently(lambda: guard.evaluate(description, progress))
            if verdict.action is not None:
                self._log.info(
                    "Tuning job %s, policy %s, dry run: %s (%s).",
                    name,
                    verdict.rule,
                    verdict.reason,
                    verdict.action.value,
                )
            return Enforced(name=name, verdict=verdict)
        look = self._patiently(lambda: guard.look(description, progress))
        self._tell_people(guard, look, progress)
        return Enforced(name=name, verdict=look.verdict, stop=look.stop)

    def _tell_people(self, guard: Guard, look: Look, progress: TuningProgress) -> None:
        verdict = look.verdict
        if look.stop is not None:
            due = verdict.due[0] if verdict.stops else None
            self._tell(_late_report(look.stop, progress) if due is None else look.reports[due.id])
        elif verdict.stops:
            self._log.info(
                "Tuning job %s, policy %s: %s It ended, or somebody else stopped it.",
                progress.name,
                verdict.rule,
                verdict.reason,
            )
        for news in look.news:
            self._log.warning("Tuning job %s, policy %s: %s", progress.name, news.rule, news.reason)
            self._tell(look.reports[news.id])
        if look.news:
            self._patiently(lambda: guard.told(progress.arn, [one.id for one in look.news]))

    # -- errors -------------------------------------------------------------------------------------------

    def _patiently(self, call: Callable[[], _Result]) -> _Result:
        """Make a call to AWS.

        :raises AmtAwsError: AWS refused it, or did not answer for half a minute.
        """
        return patiently(
            call,
            interval_seconds=_FIRST_PAUSE_SECONDS,
            log=self._log,
            sleep=self._sleep,
            most=_ATTEMPTS,
        )

    def _fail(self, name: str, error: AmtAwsError) -> None:
        self._unanswered = self._unanswered + 1 if is_transient(error) else 0
        self._failed(name, str(error))

    def _failed(self, name: str, error: str) -> None:
        self._note(f"Tuning job {name}: {error}")
        self._report.looked.append(Enforced(name=name, error=error))

    def _note(self, error: str) -> None:
        self._report.errors.append(error)
        self._log.error("%s", error)


class _EndedEarlyError(Exception):
    """Not all tuning jobs were looked at."""


def _late_report(stop: Stop, progress: TuningProgress) -> dict[str, Any]:
    """Return what there is to tell people of a stop whose answer was lost, from its record."""
    policy = stop.policy
    rule, code = ("", "") if policy is None else (policy.rule, policy.code)
    due = Due(
        id=f"{rule}:{Action.STOP.value}",
        rule=rule,
        code=code,
        action=Action.STOP if policy is None else Action(policy.action),
        share=0.0 if policy is None or policy.share is None else policy.share,
        reason=stop.detail or "",
        evidence={} if policy is None else policy.evidence,
    )
    return policy_report(due, Situation(progress=progress, now=datetime.now(UTC)))
