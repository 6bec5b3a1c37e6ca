"""Reading one tuning job again and again: the same steps in operators, sensors and triggers.

No Airflow here and no sleeping: each reader says what it saw and how long to wait, the caller waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from logging import Logger
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import is_transient
from airflow_amt.hooks.patience import Bearer, bearing
from airflow_amt.text import MOST_REASON, shown
from airflow_amt.tuning import TrainingJobResult, TuningProgress
from airflow_amt.tuning.conditions import Condition, ConditionResult, Met
from airflow_amt.tuning.schedule import Need, change_key

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from airflow_amt.hooks.guard import Guard, Look

_Result = TypeVar("_Result")

#: Reads that may fail in a row before the task fails. With the longest wait that is about 90 minutes of
#: an outage of AWS, while the tuning job itself goes on.
MAX_FAILURES_IN_A_ROW = 20

#: Longest wait between two reads that fail, in seconds.
LONGEST_BACKOFF_SECONDS = 300.0

#: Between two lines about the progress that a trigger writes, in seconds, where nothing else depends on it.
_LOG_SECONDS = 60.0

#: For how many intervals a description stands for its job while status and counters stay the same. At least
#: a little less than one: reads are made early to come apart.
_DESCRIPTION_GOOD_FOR_AT_LEAST = 0.8
_DESCRIPTION_GOOD_FOR_AT_MOST = 10.0

#: Shortest wait before a step of a stop policy can become due, in seconds.
_SHORTEST_LOOK_SECONDS = 1.0


class Verdict(str, Enum):
    """What a read of a tuning job says to do."""

    WAIT = "wait"
    ENDED = "ended"
    DEADLINE = "deadline"
    CONDITION = "condition"
    POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One read of a tuning job.

    :param verdict: whether to wait on, or that the job is over, the condition is met, the deadline is over or
        a stop policy has something to tell people.
    :param delay_seconds: how long to wait before the next read, if the verdict is to wait.
    :param progress: what was read; ``None`` if the read failed.
    :param result: the condition, evaluated on it; ``None`` without a condition, if the read failed, or if the
        job is over and that is only handed on.
    :param look: what its guard made of it; ``None`` without a guard or if the read failed.
    :param is_in_doubt: it was a summary, and only a description tells: that is to be read at once.
    :param has_failed: the read failed, so the wait may be longer than the interval.
    """

    verdict: Verdict
    delay_seconds: float
    progress: TuningProgress | None
    result: ConditionResult | None = None
    look: Look | None = None
    is_in_doubt: bool = False
    has_failed: bool = False

    def judged(self) -> tuple[TuningProgress, ConditionResult]:
        """Return what was read, and the condition evaluated on it.

        :raises ValueError: the read failed, or there was no condition.
        """
        if self.progress is None or self.result is None:
            raise ValueError("nothing was read, or there is no condition to judge it by")
        return self.progress, self.result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """What the last description told.

    :param key: by what a summary would differ.
    :param first_at: when one with this key was first read.
    :param at: when it was read.
    :param result: what the condition said.
    """

    key: tuple[Any, ...]
    first_at: float
    at: float
    result: ConditionResult


class Patience:
    """Bears transient errors: waits longer after each one in a row, and gives up after too many.

    :param interval_seconds: the wait after the first error.
    :param log: where each error is told.
    :param most: errors in a row after which the last one is raised.
    """

    def __init__(
        self,
        *,
        interval_seconds: float,
        log: Logger | FilteringBoundLogger,
        most: int = MAX_FAILURES_IN_A_ROW,
    ) -> None:
        self._interval_seconds = interval_seconds
        self._log = log
        self._most = most
        self._failures = 0
        self.spent = False

    def bear(self, error: AmtAwsError) -> float:
        """Take note of an error.

        :return: seconds to wait before trying again.
        :raises AmtAwsError: the error itself, if it is not transient or one too many.
        """
        if not is_transient(error):
            raise error
        self._failures += 1
        if self._failures >= self._most:
            self._log.error("Giving up: reading AWS failed %d times in a row.", self._failures)
            self.spent = True
            raise error
        doubled = max(self._interval_seconds, 1.0) * 2.0 ** min(self._failures - 1, 16)
        delay = min(doubled, LONGEST_BACKOFF_SECONDS)
        self._log.warning(
            "Reading AWS failed (%d of at most %d in a row), the tuning job itself goes on; next attempt in "
            "%.0f s: %s",
            self._failures,
            self._most,
            delay,
            error,
        )
        return delay

    def relieved(self) -> None:
        """Take note of a success."""
        self._failures = 0


class TuningJobReader:
    """Reads one tuning job at intervals until it is over, a condition is met or a deadline is over.

    It reads by itself (:meth:`read`), or judges what others read (:meth:`take`, :meth:`fail`), with the same
    answers. The list of training jobs is read only if the condition cannot be told without it, and then only
    when the counters have changed.

    :param describe: reads the job: answers as ``DescribeHyperParameterTuningJob``.
    :param interval_seconds: time between two reads.
    :param deadline: aware; ``None`` for none.
    :param log: where a line is written when the progress changed.
    :param most_failures: as ``most`` of :class:`Patience`.
    :param condition: what to wait for beside the end of the job; ``None`` for nothing.
    :param list_training_jobs: lists its training jobs: answers as
        ``ListTrainingJobsForHyperParameterTuningJob``, all pages. Needed with a condition.
    :param guard: holds the job to stop policies; ``None`` for none.
    :param hands_on_end: that the job is over is only handed on, to one who reads it himself: a summary that
        tells so will do, and the condition is left to him.
    """

    def __init__(
        self,
        describe: Callable[[], Mapping[str, Any]],
        *,
        interval_seconds: float,
        log: Logger | FilteringBoundLogger,
        deadline: datetime | None = None,
        most_failures: int = MAX_FAILURES_IN_A_ROW,
        condition: Condition | None = None,
        list_training_jobs: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
        guard: Guard | None = None,
        hands_on_end: bool = False,
    ) -> None:
        self._describe = describe
        self._interval_seconds = interval_seconds
        self._deadline = deadline
        self._log = log
        self._patience = Patience(interval_seconds=interval_seconds, log=log, most=most_failures)
        self._last: TuningProgress | None = None
        self._told_at: float | None = None
        self._condition = condition
        self._list_training_jobs = list_training_jobs
        self._listed: tuple[tuple[Any, ...], Sequence[TrainingJobResult]] | None = None
        self._last_met: Met | None = None
        self._described: _Described | None = None
        #: Whether only a change of the job can change what the condition says.
        self._is_settled = True
        self.guard = guard
        #: Whether a summary tells enough of a job that is over.
        self.ends_by_summary = hands_on_end and guard is None

    # --- reading by itself ---------------------------------------------------------------------

    def read(self) -> Reading:
        """Read once. A job that is over, or a condition that is met, counts even after the deadline.

        A guard looks at what was read, and may stop the job.

        :raises AmtAwsError: the read, or a stop, failed for good: not found, not permitted, or too often in a
            row.
        """
        try:
            description = self._describe()
        except AmtAwsError as error:
            return self.fail(error)
        return self.take(TuningProgress.from_describe(description), description)

    # --- judging what others read --------------------------------------------------------------

    @property
    def need(self) -> Need:
        """What it needs to know, as long as it is not in doubt."""
        always = (
            self.guard is not None
            or (self._condition is not None and self._condition.changes_with_time)
            or not self._is_settled
        )
        return Need.DESCRIPTION if always else Need.SUMMARY

    @property
    def is_curious(self) -> bool:
        """Whether a summary will do, and a description would make a better line in the log."""
        return self._condition is None and self.guard is None

    @property
    def quiet_seconds(self) -> float:
        """For how long a change of counters need not be told: only the log is waiting for it."""
        if not self.is_curious or self._told_at is None:
            return 0.0
        return max(0.0, self._told_at + _LOG_SECONDS - time.monotonic())

    @property
    def seconds_described(self) -> float:
        """For how long a summary is no news that shows the job as it was described."""
        if self._described is None:
            return math.inf
        # The best objective or convergence may be told later than the counters. So the first description of
        # them stands for an interval, and a later one for as long as nothing had come before it.
        good_for = max(
            _DESCRIPTION_GOOD_FOR_AT_LEAST * self._interval_seconds,
            min(
                self._described.at - self._described.first_at,
                _DESCRIPTION_GOOD_FOR_AT_MOST * self._interval_seconds,
            ),
        )
        return max(0.0, self._described.at + good_for - time.monotonic())

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline; ``None`` if there is none."""
        if self._deadline is None:
            return None
        return (self._deadline - datetime.now(UTC)).total_seconds()

    def makes_calls(self, progress: TuningProgress) -> bool:
        """Whether :meth:`take` will make calls to AWS about this, and block."""
        if self.guard is not None:
            return True
        return (
            self._condition is not None
            and not progress.is_summary
            and self._condition.needs_training_jobs(progress)
        )

    def take(self, progress: TuningProgress, description: Mapping[str, Any] | None = None) -> Reading:
        """Judge what was read.

        :param progress: the job.
        :param description: what it was read from, unless that was a summary.
        :raises AmtAwsError: as for :meth:`read`.
        """
        if self.ends_by_summary and progress.is_summary and progress.is_terminal:
            self._patience.relieved()
            self._tell(progress)
            return Reading(verdict=Verdict.ENDED, delay_seconds=0.0, progress=progress)
        look: Look | None = None
        try:
            if self.guard is not None and description is not None:
                look = self.guard.look(description, progress)
            known = self._as_described(progress)
            result = self._judge(progress) if known is None else known
        except AmtAwsError as error:
            return self.fail(error)
        if known is None and self._is_in_doubt(progress, result):
            # No relief: the read that tells is still to succeed.
            return Reading(verdict=Verdict.WAIT, delay_seconds=0.0, progress=progress, is_in_doubt=True)
        self._patience.relieved()
        self._tell(progress)
        self._tell_result(result)
        if progress.is_terminal:
            return Reading(
                verdict=Verdict.ENDED, delay_seconds=0.0, progress=progress, result=result, look=look
            )
        if look is not None and look.news:
            return Reading(verdict=Verdict.POLICY, delay_seconds=0.0, progress=progress, look=look)
        if result is not None and result.met is Met.YES:
            return Reading(verdict=Verdict.CONDITION, delay_seconds=0.0, progress=progress, result=result)
        return self._wait(self._interval_seconds, progress=progress, result=result, look=look)

    def fail(self, error: AmtAwsError) -> Reading:
        """Judge that reading failed.

        :raises AmtAwsError: the error itself, as for :meth:`read`.
        """
        return self._wait(self._patience.bear(error), has_failed=True)

    def give_up(self) -> Reading:
        """Judge that nothing was read though it was time."""
        reading = self._wait(0.0)
        if reading.verdict is Verdict.DEADLINE:
            self._log.warning("The deadline is over, and AWS did not answer in time what became of the job.")
        return reading

    def _wait(
        self,
        delay: float,
        *,
        progress: TuningProgress | None = None,
        result: ConditionResult | None = None,
        look: Look | None = None,
        has_failed: bool = False,
    ) -> Reading:
        left = self.seconds_left
        if left is not None and left <= 0:
            return Reading(
                verdict=Verdict.DEADLINE, delay_seconds=0.0, progress=progress, result=result, look=look
            )
        return Reading(
            verdict=Verdict.WAIT,
            delay_seconds=_until_next_look(look, delay if left is None else min(delay, left)),
            progress=progress,
            result=result,
            look=look,
            has_failed=has_failed,
        )

    def _is_in_doubt(self, progress: TuningProgress, result: ConditionResult | None) -> bool:
        if not progress.is_summary or (self.guard is None and self._condition is None):
            return False
        # What follows is decided, and handed on, by what only a description tells.
        return self.guard is not None or progress.is_terminal or result is None or result.met is not Met.NO

    def _judge(self, progress: TuningProgress) -> ConditionResult | None:
        if self._condition is None:
            return None
        if progress.is_summary:
            return self._condition.evaluate(progress)
        if not self._condition.needs_training_jobs(progress):
            result = self._condition.evaluate(progress)
            self._is_settled = result.met is not Met.UNKNOWN
        else:
            result = self._condition.evaluate(progress, self._training_jobs(progress))
            self._is_settled = result.met is not Met.UNKNOWN and self._listed is not None
        key, now, before = change_key(progress), time.monotonic(), self._described
        first_at = before.first_at if before is not None and before.key == key else now
        self._described = _Described(key=key, first_at=first_at, at=now, result=result)
        return result

    def _as_described(self, progress: TuningProgress) -> ConditionResult | None:
        """Return what the condition said of the last description, if a summary shows the job as then."""
        if not progress.is_summary or self._described is None or self.need is Need.DESCRIPTION:
            return None
        stands = self.seconds_described > 0 and self._described.key == change_key(progress)
        return self._described.result if stands else None

    def _training_jobs(self, progress: TuningProgress) -> Sequence[TrainingJobResult]:
        counters = (progress.training_jobs, progress.objectives)
        if self._listed is not None and self._listed[0] == counters:
            return self._listed[1]
        jobs = [TrainingJobResult.from_summary(one) for one in self._list_training_jobs()]
        # A list that lags behind the counters is read again, else it would stand until they change.
        complete = sum(one.has_ended for one in jobs) >= progress.training_jobs.ended
        self._listed = (counters, jobs) if complete else None
        return jobs

    def _tell(self, progress: TuningProgress) -> None:
        if self._last is None:
            changed = True
        elif self._last.is_summary or progress.is_summary:
            changed = change_key(progress) != change_key(self._last)
        else:
            changed = progress.change_key() != self._last.change_key()
        if changed:
            self._last = progress
            self._told_at = time.monotonic()
            self._log.info("%s", progress.log_line())

    def _tell_result(self, result: ConditionResult | None) -> None:
        if result is None or result.met is self._last_met:
            return
        self._last_met = result.met
        reason = shown(result.reason, MOST_REASON)
        if result.met is Met.UNKNOWN:
            self._log.warning("Whether the condition is met cannot be told yet: %s", reason)
        else:
            answer = "met" if result.met is Met.YES else "not met yet"
            self._log.info("The condition is %s: %s", answer, reason)


def _until_next_look(look: Look | None, delay: float) -> float:
    """Return how long to wait, no longer than until time alone can make a policy's step due."""
    if look is None or look.verdict.next_look_at is None:
        return delay
    left = (look.verdict.next_look_at - datetime.now(UTC)).total_seconds()
    # Not at once: what is due by the clock of AWS may not be so by this one yet.
    return min(delay, max(left, _SHORTEST_LOOK_SECONDS))


def patiently(
    call: Callable[[], _Result],
    *,
    interval_seconds: float,
    log: Logger | FilteringBoundLogger,
    sleep: Callable[[float], object] = time.sleep,
    most: int = MAX_FAILURES_IN_A_ROW,
) -> _Result:
    """Make a call to AWS until it succeeds, bearing transient errors.

    Of what consists of several calls, only the one that failed is made again (by the hook).

    :param most: as for :class:`Patience`.
    :raises AmtAwsError: as :meth:`Patience.bear`.
    """
    patience = Patience(interval_seconds=interval_seconds, log=log, most=most)

    def bear(error: AmtAwsError) -> None:
        sleep(patience.bear(error))

    with bearing(Bearer(bear=bear, relieved=patience.relieved)):
        while True:
            try:
                return call()
            except AmtAwsError as error:
                if patience.spent:
                    raise
                bear(error)
