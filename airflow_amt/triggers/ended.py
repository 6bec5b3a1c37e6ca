"""The event trigger that tells of every tuning job that ended: what an asset is watched with."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_amt import _compat
from airflow_amt._lazy_hook import LazyHook
from airflow_amt.exceptions import AmtAwsError, AmtFieldError, AmtRequestError
from airflow_amt.hooks.metering import Meter, meter_of
from airflow_amt.tuning import TuningProgress
from airflow_amt.tuning.history import iso
from airflow_amt.tuning.values import parse_number
from airflow_amt.watch.ended import STATE_VERSION, EndedJobsReader, JobFilter
from airflow_amt.watch.polling import LONGEST_BACKOFF_SECONDS
from airflow_amt.watch.shared import configured_rate

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook

#: Version of the stored arguments.
TRIGGER_VERSION = 2

#: Version of the event's payload.
EVENT_VERSION = 1

#: Final statuses that can be watched for (SageMaker API, ``HyperParameterTuningJobStatus``).
FINAL_STATUSES = ("Completed", "Failed", "Stopped")

#: What a name can be made of (SageMaker API, ``NameContains``), and how long one is.
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_LONGEST_NAME = 32

#: Share of the interval by which waits may be longer: watchers started together shall not poll together.
_JITTER = 0.1

#: Between two events of one look, so that the scheduler has made the run of the first when the next comes.
_APART_SECONDS = 5.0

#: An event is in the metadata database a second or two after the trigger fired; before that it dies with the
#: triggerer. What was found is put into the state only when it is older than this.
_SETTLE_SECONDS = 10.0

#: Longest time without a write of the state while nothing ends.
_SAVE_SECONDS = 300.0

#: Between two messages of a trigger that cannot use its stored arguments.
_REMIND_SECONDS = 600.0

#: How Airflow before 3.3 gives a watcher's arguments back that are no plain values (seen with 3.2.2 and
#: 3.1.8), and how it means to store them: key of the kind, key of the value.
_ENCODINGS = (("Encoding.TYPE", "Encoding.VAR"), ("__type", "__var"))

_STATE_ATTEMPTS = 3
_STATE_PAUSE_SECONDS = 2.0


class AmtTuningJobEndedTrigger(LazyHook, BaseEventTrigger):
    """Fire for each tuning job of an account and region that ends, however it was made.

    Purpose: a DAG that is scheduled on "a tuning job ended"::

        ended = Asset("churn-tuned", watchers=[AssetWatcher(name="ended",
            trigger=AmtTuningJobEndedTrigger(name_prefix="churn-"))])

    How it works: one ``ListHyperParameterTuningJobs`` an interval, of the jobs that were modified since the
    last one. Each job gives one event ``{"version", "tuning_job_name", "tuning_job_arn", "status",
    "created_at", "ended_at"}``, found in a DAG run under
    ``triggering_asset_events[asset][i].extra["payload"]``. Airflow may start one run for several events.
    Errors of AWS are logged and borne for ever, with waits of up to five minutes: a watcher must not die of
    an outage, nor of a permission that somebody can still give.

    Events of one look are five seconds apart: Airflow 3.3.2 starts no run for an event that comes while it
    makes a run of the one before (seen with two in 12 ms), and leaves it to the run of the next event.

    Delivery is at least once. On Airflow 3.3 and later where the watcher is is kept in the state store of
    the asset: a job that ended while no triggerer ran, or while the DAG was paused, is delivered up to seven
    days later, and a restart repeats only what was found in the last seconds before it. Before 3.3 nothing
    survives a restart: it delivers again what ended within ``lookback``, and misses what ended earlier while
    nobody looked. So let the DAG be idempotent by ``tuning_job_arn``.

    What it does not do: the first time, it does not tell of jobs that ended more than ``lookback`` ago. A
    change of its filters or connection makes it another watcher, which begins anew.

    :param name_prefix: only jobs whose name begins so.
    :param name_contains: only jobs whose name contains this.
    :param statuses: only jobs that end as one of these: ``Completed``, ``Failed``, ``Stopped``.
    :param tags: only jobs with these tags, a mapping; costs a ``ListTags`` for each job that ends. Stored as
        pairs.
    :param created_after: only jobs created then or later: aware, or ISO 8601 with an offset.
    :param check_interval: seconds between two looks, 1 at least.
    :param lookback: seconds, or a timedelta: how far back it looks when it begins.
    :param aws_conn_id: connection; its secrets stay out of the stored arguments.
    :param region_name: AWS region.
    :param verify: as for boto3.
    :param botocore_config: as for ``botocore.config.Config``, of what JSON can hold; stored in the metadata
        database as JSON text.
    :param version: version of the stored arguments; leave it out. Airflow gives it when it makes the trigger
        from what is stored. Then nothing is raised: Airflow's triggerer would end, with all its triggers, of
        an error here (seen with 3.2.2). The trigger logs it again and again instead, and watches nothing.
    :param newer: arguments that a newer release stored and this one does not know; they are logged.
    :raises AmtRequestError: an argument is not well formed; all that are, are listed.
    """

    # Arguments are stored without a dict: Airflow before 3.3 gives a watcher's dicts back garbled.

    def __init__(
        self,
        name_prefix: str | None = None,
        name_contains: str | None = None,
        statuses: Collection[str] = FINAL_STATUSES,
        tags: Mapping[str, str] | Sequence[Sequence[str]] | None = None,
        created_after: datetime | str | None = None,
        check_interval: float = 30.0,
        lookback: timedelta | float = 900.0,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | str | None = None,
        version: int | None = None,
        **newer: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        problems: list[AmtFieldError] = []
        self.name_prefix = _name(problems, "name_prefix", name_prefix)
        self.name_contains = _name(problems, "name_contains", name_contains)
        # Airflow tells watchers apart by their arguments: the same ones must always look the same.
        self.statuses = _statuses(problems, statuses)
        self.tags = _tags(problems, tags)
        self.created_after = _moment(problems, created_after)
        self.check_interval = _seconds(problems, "check_interval", check_interval, at_least=1)
        self.lookback = _seconds(problems, "lookback", lookback, at_least=0)
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = _botocore_config(problems, botocore_config)
        self.version = version
        self._newer = newer
        self._meter: Meter | None = None
        self._problem = AmtRequestError(problems) if problems else None
        if self._problem is not None and version is None:
            raise self._problem

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the stored arguments: plain, JSON-safe, without secrets."""
        return (
            "airflow_amt.triggers.ended.AmtTuningJobEndedTrigger",
            {
                "version": TRIGGER_VERSION,
                "name_prefix": self.name_prefix,
                "name_contains": self.name_contains,
                "statuses": self.statuses,
                "tags": [list(pair) for pair in self.tags.items()] or None,
                "created_after": self.created_after,
                "check_interval": self.check_interval,
                "lookback": self.lookback,
                "aws_conn_id": self.aws_conn_id,
                "region_name": self.region_name,
                "verify": self.verify,
                "botocore_config": (
                    None if self.botocore_config is None else json.dumps(self.botocore_config, sort_keys=True)
                ),
            },
        )

    @property
    def state_key(self) -> str:
        """Key of this watcher's state in the state store of its asset, which may have other watchers."""
        path, arguments = self.serialize()
        # How often and how far back it looks does not change what it looks for.
        what = {key: value for key, value in arguments.items() if key not in ("check_interval", "lookback")}
        # For ever as of version 1: another key is another watcher, which begins anew.
        what |= {"version": 1, "tags": self.tags, "botocore_config": self.botocore_config}
        digest = hashlib.sha256(json.dumps([path, what], sort_keys=True).encode()).hexdigest()
        return f"airflow-amt-ended-{digest[:16]}"

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch, and yield an event for each tuning job that ended; never returns."""
        if self._newer:
            self.log.warning(
                "A newer release of airflow-provider-amt stored this trigger (version %s); not known here "
                "and ignored: %s",
                self.version,
                ", ".join(sorted(self._newer)),
            )
        if self._problem is not None:
            await self._remind(self._problem)
        stored = await self._load()
        reader = EndedJobsReader(
            self._list_jobs,
            self._read_tags,
            self._filter(),
            log=self.log,
            since=datetime.now(UTC) - timedelta(seconds=self.lookback),
            state=stored,
        )
        if stored is None:
            # From now on nothing is missed, however long the next restart takes.
            await self._save(reader.state)
        saved_at = time.monotonic()
        waiting: tuple[float, dict[str, Any]] | None = None
        changed = False
        failures = 0
        while True:
            delay = self.check_interval
            ended: list[TuningProgress] = []
            try:
                ended = await _compat.in_thread(reader.read)
                failures = 0
            except AmtAwsError as error:
                failures += 1
                delay = _backoff(self.check_interval, failures)
                self.log.error(
                    "Looking for tuning jobs that ended failed (%d in a row); next attempt in %.0f s: %s",
                    failures,
                    delay,
                    error,
                )
            except Exception:
                # Building the hook can raise anything (Airflow: no such connection), and a trigger that
                # raises is started again at once, for ever.
                failures += 1
                delay = _backoff(self.check_interval, failures)
                self.log.exception(
                    "Looking for tuning jobs that ended failed (%d in a row); next attempt in %.0f s",
                    failures,
                    delay,
                )
            for number, job in enumerate(ended):
                if number:
                    await asyncio.sleep(_APART_SECONDS)
                yield TriggerEvent(_payload(job))  # type: ignore[no-untyped-call]
            now = time.monotonic()
            changed = changed or bool(ended)
            if waiting is not None and now - waiting[0] >= _SETTLE_SECONDS:
                await self._save(waiting[1])
                saved_at, waiting = now, None
            if not failures and waiting is None and (changed or now - saved_at >= _SAVE_SECONDS):
                waiting, changed = (now, reader.state), False
            await asyncio.sleep(delay * random.uniform(1, 1 + _JITTER))  # noqa: S311 - only spread

    async def _remind(self, problem: AmtRequestError) -> None:
        """Say again and again what is wrong; never returns.

        A trigger that raises or returns is started again at once, for ever. This one is ended by Airflow
        when the DAG file is parsed and its watcher has other arguments then, or is gone.
        """
        while True:
            self.log.error(
                "This watcher watches nothing: its stored arguments (version %s; this release stores version "
                "%d) cannot be used. Fix: see that the DAG processor and the triggerers have the same "
                "releases of airflow-provider-amt and of Airflow, and let the DAG file be parsed again. %s",
                self.version,
                TRIGGER_VERSION,
                problem,
            )
            await asyncio.sleep(_REMIND_SECONDS)

    async def cleanup(self) -> None:
        """Close the connections to AWS."""
        self.close_hook()

    # The hook is built in the thread that reads: here it would block all triggers.

    def _list_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        return self._metered_hook().list_tuning_jobs(**filters)

    def _read_tags(self, arn: str) -> dict[str, str] | None:
        return self._metered_hook().tags(arn)

    def _metered_hook(self) -> AmtHook:
        """Return the hook, whose calls count with those of all other watching of the connection."""
        hook = self.hook
        if self._meter is None:
            hook.build("ListHyperParameterTuningJobs")
            self._meter = meter_of(hook, *configured_rate())
        return hook

    def _filter(self) -> JobFilter:
        return JobFilter(
            statuses=frozenset(self.statuses),
            name_contains=self.name_contains,
            name_prefix=self.name_prefix,
            tags=self.tags,
            created_after=None if self.created_after is None else datetime.fromisoformat(self.created_after),
        )

    async def _load(self) -> dict[str, Any] | None:
        """Return where an earlier instance of this watcher stopped; ``None`` if that is not known."""
        stores = _compat.asset_state_stores(self)
        for attempt in range(1, _STATE_ATTEMPTS + 1):
            try:
                found = [await store.aget(self.state_key) for store in stores]
            except Exception:
                # Whatever the supervisor raises, it means the same here: not known. It is logged.
                self.log.exception("Reading the watcher's state failed (%d of %d)", attempt, _STATE_ATTEMPTS)
                await asyncio.sleep(_STATE_PAUSE_SECONDS)
                continue
            # An asset that began to be watched by this trigger later has the newer state, or none.
            states = [one for one in found if isinstance(one, dict) and one.get("version") == STATE_VERSION]
            return min(states, key=lambda one: str(one.get("since")), default=None)
        self.log.error(
            "The watcher's state cannot be read: it begins with what ended in the last %.0f s.", self.lookback
        )
        return None

    async def _save(self, state: dict[str, Any]) -> None:
        for store in _compat.asset_state_stores(self):
            try:
                await store.aset(self.state_key, state)
            except Exception:
                # The next restart tells some jobs again; that is no reason to stop watching.
                self.log.exception("The watcher's state cannot be written")


def _payload(job: TuningProgress) -> dict[str, Any]:
    return {
        "version": EVENT_VERSION,
        "tuning_job_name": job.name,
        "tuning_job_arn": job.arn,
        "status": job.status,
        "created_at": iso(job.created_at),
        "ended_at": iso(job.ended_at or job.last_modified_at),
    }


def _backoff(interval: float, failures: int) -> float:
    return max(interval, min(interval * 2.0 ** min(failures, 16), LONGEST_BACKOFF_SECONDS))


# Each returns what can be used in any case, and adds to the problems what is not accepted.


def _name(problems: list[AmtFieldError], field: str, value: Any) -> str | None:
    if value is None or (
        isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and set(value) <= _NAME_CHARACTERS
    ):
        return value
    problems.append(
        AmtFieldError(
            field,
            value,
            f"1 to {_LONGEST_NAME} letters, digits and hyphens, as names of tuning jobs have them",
            "give a part of a name, or leave it out",
        )
    )
    return None


def _statuses(problems: list[AmtFieldError], statuses: Any) -> list[str]:
    statuses = _plain(statuses)
    # A status that is no text may not be hashable.
    if (
        not isinstance(statuses, str)
        and isinstance(statuses, Collection)
        and statuses
        and all(status in FINAL_STATUSES for status in statuses)
    ):
        return sorted(set(statuses))
    problems.append(
        AmtFieldError(
            "statuses",
            statuses,
            f"one or more of {', '.join(FINAL_STATUSES)}",
            'give a list such as ["Completed"]',
        )
    )
    return sorted(FINAL_STATUSES)


def _tags(problems: list[AmtFieldError], tags: Any) -> dict[str, str]:
    tags = _plain(tags)
    pairs: Any = tags.items() if isinstance(tags, Mapping) else [] if tags is None else tags
    if not isinstance(pairs, str) and isinstance(pairs, Collection) and all(_is_pair(pair) for pair in pairs):
        return dict(sorted(pairs))
    problems.append(
        AmtFieldError("tags", tags, "a mapping of texts to texts", 'give for example {"team": "churn"}')
    )
    return {}


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _botocore_config(problems: list[AmtFieldError], config: Any) -> dict[str, Any] | None:
    config = _plain(config)
    if config is None:
        return None
    try:
        # The same as what will come back from the database.
        text = config if isinstance(config, str) else json.dumps(config, sort_keys=True)
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        plain = None
    if isinstance(plain, dict):
        return plain
    problems.append(
        AmtFieldError(
            "botocore_config",
            config,
            "a dict of botocore.config.Config's arguments that JSON can hold",
            'give for example {"read_timeout": 10}, or set the others in the extra of the connection',
        )
    )
    return None


def _plain(value: Any) -> Any:
    """Return a stored value without what Airflow before 3.3 may leave around it."""
    if isinstance(value, dict):
        for kind, content in _ENCODINGS:
            if value.keys() == {kind, content} and value[kind] in ("dict", "tuple", "set"):
                return _plain(value[content])
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _moment(problems: list[AmtFieldError], value: Any) -> str | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, datetime) and moment.tzinfo is not None:
            return iso(moment)
    except (ValueError, OverflowError):
        pass  # no moment at all, or none in UTC
    problems.append(
        AmtFieldError(
            "created_after",
            value,
            "an aware datetime, or ISO 8601 with an offset",
            "give for example 2026-01-01T00:00:00+00:00",
        )
    )
    return None


def _seconds(
    problems: list[AmtFieldError], field: str, value: timedelta | float, *, at_least: float
) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        return parse_number(field, seconds, at_least=at_least, at_most=31_536_000)
    except AmtFieldError as problem:
        problems.append(problem)
        return at_least
