"""Reading one tuning job again and again: the same steps in operators, sensors and triggers.

No Airflow here and no sleeping: each reader says what it saw and how long to wait, the caller waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from logging import Logger
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import is_transient
from airflow_amt.hooks.patience import Bearer, bearing
from airflow_amt.tuning import TuningProgress

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_Result = TypeVar("_Result")

#: Reads that may fail in a row before the task fails. With the longest wait that is about 90 minutes of
#: an outage of AWS, while the tuning job itself goes on.
MAX_FAILURES_IN_A_ROW = 20

#: Longest wait between two reads that fail, in seconds.
LONGEST_BACKOFF_SECONDS = 300.0


class Verdict(str, Enum):
    """What a read of a tuning job says to do."""

    WAIT = "wait"
    ENDED = "ended"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One read of a tuning job.

    :param verdict: whether to wait on, or that the job is over, or that the deadline is.
    :param delay_seconds: how long to wait before the next read, if the verdict is to wait.
    :param progress: what was read; ``None`` if the read failed.
    """

    verdict: Verdict
    delay_seconds: float
    progress: TuningProgress | None


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
    """Reads one tuning job at intervals until it is over or a deadline is.

    :param describe: reads the job: answers as ``DescribeHyperParameterTuningJob``.
    :param interval_seconds: time between two reads.
    :param deadline: aware; ``None`` for none.
    :param log: where a line is written when the progress changed.
    :param most_failures: as ``most`` of :class:`Patience`.
    """

    def __init__(
        self,
        describe: Callable[[], Mapping[str, Any]],
        *,
        interval_seconds: float,
        log: Logger | FilteringBoundLogger,
        deadline: datetime | None = None,
        most_failures: int = MAX_FAILURES_IN_A_ROW,
    ) -> None:
        self._describe = describe
        self._interval_seconds = interval_seconds
        self._deadline = deadline
        self._log = log
        self._patience = Patience(interval_seconds=interval_seconds, log=log, most=most_failures)
        self._last: tuple[Any, ...] | None = None

    def read(self) -> Reading:
        """Read once. A job that is over counts as ended even after the deadline.

        :raises AmtAwsError: the read failed for good: not found, not permitted, or too often in a row.
        """
        progress: TuningProgress | None = None
        delay = self._interval_seconds
        try:
            progress = TuningProgress.from_describe(self._describe())
        except AmtAwsError as error:
            delay = self._patience.bear(error)
        else:
            self._patience.relieved()
            self._tell(progress)
            if progress.is_terminal:
                return Reading(verdict=Verdict.ENDED, delay_seconds=0.0, progress=progress)
        if self._deadline is not None:
            left = (self._deadline - datetime.now(UTC)).total_seconds()
            if left <= 0:
                return Reading(verdict=Verdict.DEADLINE, delay_seconds=0.0, progress=progress)
            delay = min(delay, left)
        return Reading(verdict=Verdict.WAIT, delay_seconds=delay, progress=progress)

    def _tell(self, progress: TuningProgress) -> None:
        key = progress.change_key()
        if key != self._last:
            self._last = key
            self._log.info("%s", progress.log_line())


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
