"""Finding the tuning jobs that ended since somebody began to look: each one once, none left out.

No Airflow here and no sleeping, as in :mod:`airflow_amt.watch.polling`: the caller waits, and keeps the
state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_amt.tuning import TuningProgress
from airflow_amt.tuning.history import iso

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

#: Version of the state that :attr:`EndedJobsReader.state` returns.
STATE_VERSION = 1

#: How far each read reaches back beyond the last one: for clocks that differ, and for a list that shows a
#: change later than a description does. What was found in that time is remembered, so none is told twice.
OVERLAP = timedelta(minutes=15)


#: How far back a reader looks that goes on from a state: one that was stopped for a year shall not tell of a
#: year of jobs.
LONGEST_CATCH_UP = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which tuning jobs are looked for.

    :param statuses: final statuses.
    :param name_contains: a part of the name.
    :param name_prefix: the start of the name, upper and lower case as they are.
    :param tags: tags that a job must have, with these values.
    :param created_after: earliest creation (aware).
    """

    statuses: frozenset[str]
    name_contains: str | None = None
    name_prefix: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None

    def parameters(self) -> dict[str, Any]:
        """Return what ``ListHyperParameterTuningJobs`` itself can filter by."""
        parameters: dict[str, Any] = {"SortBy": "CreationTime", "SortOrder": "Descending"}
        # One text is all that it takes: the longer one leaves out more.
        texts = [text for text in (self.name_prefix, self.name_contains) if text]
        if texts:
            parameters["NameContains"] = max(texts, key=len)
        if self.created_after is not None:
            parameters["CreationTimeAfter"] = self.created_after
        if len(self.statuses) == 1:
            (parameters["StatusEquals"],) = self.statuses
        return parameters

    def admits(self, job: TuningProgress) -> bool:
        """Say whether a job is looked for, as far as its summary tells."""
        name = job.name.casefold()
        return (
            job.status in self.statuses
            and (not self.name_prefix or job.name.startswith(self.name_prefix))
            # AWS compares names without their case.
            and (not self.name_contains or self.name_contains.casefold() in name)
            and (
                self.created_after is None
                or (job.created_at is not None and job.created_at >= self.created_after)
            )
        )


class EndedJobsReader:
    """Finds the tuning jobs that ended since it began, each one once.

    How it works: each read lists the jobs that were modified since shortly before the last complete read
    (the end of a job modifies it), and leaves out those that it found before. A read that fails is as if it
    had not been made.

    :param list_jobs: ``ListHyperParameterTuningJobs``, all pages, with the operation's own parameters.
    :param read_tags: the tags of a job by ARN; ``None`` if they may not be read.
    :param wanted: which jobs are looked for.
    :param log: where trouble is told.
    :param since: from when on (aware): a job that ended before is not found.
    :param state: where an earlier reader stopped (:attr:`state`); goes before ``since``.
    """

    def __init__(
        self,
        list_jobs: Callable[..., Iterable[Mapping[str, Any]]],
        read_tags: Callable[[str], Mapping[str, str] | None],
        wanted: JobFilter,
        *,
        log: Logger | FilteringBoundLogger,
        since: datetime,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._list_jobs = list_jobs
        self._read_tags = read_tags
        self._wanted = wanted
        self._log = log
        self._floor = self._since = since
        # By name, with the time of the end: a name can be used again once its job is deleted.
        self._found: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        if state is not None:
            self._since = datetime.fromisoformat(state["since"])
            self._floor = max(datetime.fromisoformat(state["floor"]), datetime.now(UTC) - LONGEST_CATCH_UP)
            self._found = dict(state["found"])

    @property
    def state(self) -> dict[str, Any]:
        """Where this reader is: JSON-safe, for another one to go on from."""
        return {
            "version": STATE_VERSION,
            "since": iso(self._since),
            "floor": iso(self._floor),
            "found": dict(self._found),
        }

    def read(self) -> list[TuningProgress]:
        """Read once; return the jobs that ended, those that ended first before the others.

        :raises AmtAwsError: a call failed.
        """
        started_at = datetime.now(UTC)
        earliest = max(self._floor, self._since - OVERLAP)
        found: list[tuple[datetime, TuningProgress]] = []
        left_out: dict[str, str] = {}
        unread: list[str] = []
        for summary in self._list_jobs(LastModifiedTimeAfter=earliest, **self._wanted.parameters()):
            job = TuningProgress.from_list_summary(summary)
            ended_at = job.ended_at or job.last_modified_at
            if ended_at is None or ended_at < earliest or not self._wanted.admits(job):
                continue
            key = str(iso(ended_at))
            if self._found.get(job.name) == key:
                continue
            # Once per job, not once per read: tags cost a call.
            if self._left_out.get(job.name) == key:
                left_out[job.name] = key
                continue
            if self._wanted.tags:
                tags = self._read_tags(job.arn)
                if tags is None:
                    unread.append(job.name)
                    continue
                if not self._wanted.tags.items() <= tags.items():
                    left_out[job.name] = key
                    continue
            found.append((ended_at, job))
        self._left_out = left_out
        self._found.update({job.name: str(iso(ended_at)) for ended_at, job in found})
        if unread:
            self._log.error(
                "The tags of %s cannot be read, by which this watcher shall choose: they are held back until "
                "sagemaker:ListTags is permitted.",
                ", ".join(unread),
            )
        else:
            self._since = started_at
            self._forget(max(self._floor, started_at - OVERLAP))
        return [job for _, job in sorted(found, key=lambda pair: pair[0])]

    def _forget(self, earliest: datetime) -> None:
        """Drop what no read will come across again."""
        self._found = {
            name: ended_at
            for name, ended_at in self._found.items()
            if datetime.fromisoformat(ended_at) >= earliest
        }
