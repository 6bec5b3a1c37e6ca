"""The hook that holds tuning jobs to an SLA, and where SLAs are kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_amt import _compat
from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.hooks.guard import Guard, Look
from airflow_amt.hooks.patience import bearing, persistent
from airflow_amt.hooks.tuning import AmtHook
from airflow_amt.tuning.naming import task_label
from airflow_amt.tuning.policies import RunTimes, Sla, Verdict, parse_sla
from airflow_amt.tuning.progress import TuningProgress

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

#: Key of a connection's extra that holds an SLA.
EXTRA_KEY = "amt_sla"

VARIABLE_PREFIX = "variable:"
CONNECTION_PREFIX = "connection:"

_EXAMPLE = '{"rules": [{"type": "stalled", "duration_seconds": 3600, "warn_at": 0.5}]}'

#: For how long an SLA that is kept in Airflow counts before it is read again.
_KEPT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlaSource:
    """An SLA, or where Airflow keeps it, so that it can be changed without a deploy.

    Exactly one of the three.

    :param sla: the SLA itself.
    :param variable: key of an Airflow Variable that holds its JSON.
    :param connection: id of an Airflow connection that holds it in its extra, under ``amt_sla``.
    """

    sla: Sla | None = None
    variable: str | None = None
    connection: str | None = None

    @classmethod
    def parse(cls, value: Any, *, path: str = "policies") -> SlaSource:
        """Read what a DAG's author gave.

        :param value: an SLA, a policy, a rule, a list of them, the dict or the JSON text of an SLA,
            ``"variable:<key>"`` or ``"connection:<id>"``, or what :meth:`to_dict` returned.
        :raises AmtRequestError: it is none of these; all that is wrong is listed.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            text = value.strip()
            for prefix, key in ((VARIABLE_PREFIX, "variable"), (CONNECTION_PREFIX, "connection")):
                if text.startswith(prefix):
                    return cls._kept(key, text.removeprefix(prefix).strip(), path)
            if not text.startswith(("{", "[")):
                raise AmtRequestError(
                    [
                        AmtFieldError(
                            path,
                            value,
                            'an SLA as JSON, or where it is kept, "variable:<key>" or "connection:<id>"',
                            'give for example "variable:nightly_sla"',
                        )
                    ]
                )
        if isinstance(value, Mapping):
            for key in ("variable", "connection"):
                if set(value) == {key}:
                    return cls._kept(key, value[key], path)
            if set(value) == {"sla"}:
                value = value["sla"]
        return cls(sla=parse_sla(value, path=path))

    @classmethod
    def _kept(cls, key: str, name: Any, path: str) -> SlaSource:
        if not isinstance(name, str) or not name:
            what = "key of a Variable" if key == "variable" else "id of a connection"
            raise AmtRequestError(
                [AmtFieldError(path, f"{key}:{name}", f"the {what}", f'give "{key}:nightly_sla"')]
            )
        return cls(variable=name) if key == "variable" else cls(connection=name)

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe; :meth:`parse` reads it back."""
        if self.sla is not None:
            return {"sla": self.sla.to_dict()}
        return {"variable": self.variable} if self.variable is not None else {"connection": self.connection}

    def __str__(self) -> str:
        if self.sla is not None:
            return "the SLA"
        if self.variable is not None:
            return f"Variable {self.variable!r}"
        return f"connection {self.connection!r}, extra {EXTRA_KEY!r}"

    def load(self) -> Sla:
        """Return the SLA, read from Airflow where that keeps it; blocking.

        :raises AmtRequestError: there is none, or it is not well formed.
        """
        if self.sla is not None:
            return self.sla
        found = self._read()
        if found is None:
            raise AmtRequestError(
                [AmtFieldError(str(self), None, "the JSON of an SLA", f"put it there, as {_EXAMPLE}")]
            )
        return parse_sla(found, path=str(self))

    def _read(self) -> Any:
        if self.variable is not None:
            return _compat.read_variable(self.variable)
        extra = _compat.read_connection_extra(str(self.connection))
        return None if extra is None else extra.get(EXTRA_KEY)


class SlaReader:
    """Gives an SLA to whoever looks at a job for hours; what Airflow keeps is read again now and then.

    If it cannot be read any more, or was broken by an edit, the last good one goes on to count, and that is
    logged: a job must not run without its SLA because of a typing error.

    :param source: where it is.
    :param log: where changes and errors are told.
    :param last: the one that counted last, in another process; ``None`` if there was none.
    """

    def __init__(
        self, source: SlaSource, *, log: Logger | FilteringBoundLogger, last: Sla | None = None
    ) -> None:
        self._source = source
        self._log = log
        self._sla: Sla | None = source.sla or last
        self._read_at: float | None = None

    @property
    def changeable(self) -> bool:
        """Whether Airflow keeps it, so that it may be changed meanwhile."""
        return self._source.sla is None

    def __call__(self) -> Sla:
        """Return it.

        :raises AmtRequestError: there has never been a good one.
        """
        if self._source.sla is not None:
            return self._source.sla
        now = time.monotonic()
        if self._sla is not None and self._read_at is not None and now - self._read_at < _KEPT_SECONDS:
            return self._sla
        try:
            found = self._source.load()
        except Exception as error:
            # The supervisor hands on whatever the API server or a secrets backend came up with.
            if self._sla is None:
                if isinstance(error, AmtRequestError):
                    raise
                raise AmtRequestError(
                    [
                        AmtFieldError(
                            str(self._source),
                            f"{type(error).__name__}: {error}",
                            "an SLA that can be read",
                            "see why it cannot",
                        )
                    ]
                ) from error
            self._log.exception("The SLA cannot be read (%s): the last one counts on", self._source)
            self._read_at = now
            return self._sla
        if self._sla is not None and found != self._sla:
            self._log.info("The SLA has changed (%s): %s", self._source, json.dumps(found.to_dict()))
        self._sla, self._read_at = found, now
        return found


class AmtSlaHook(AmtHook):
    """Hold tuning jobs to an SLA: judge them, and stop those that break it.

    Called from a plain ``@task``, ``enforce`` stops a tuning job that breaks a rule and returns the verdict
    (for XCom: its ``to_dict()``); who asked for it is then the task instance, and deadlines that count from a
    DAG run's times find them. A rule that demands an answer of people is only told: for an answer, wait for
    the job with :class:`airflow_amt.operators.tuning.AmtTuningJobOperator`.

    :param sla: as :meth:`SlaSource.parse` takes it: in the code, or ``"variable:<key>"``,
        ``"connection:<id>"``. Default: the extra ``amt_sla`` of the AWS connection itself.
    :param run: times of the DAG run; default: of the task in which this is called.
    :param requested_by: who asks; default: the task in which this is called.
    :param aws_conn_id: connection; ``region_name``, ``verify`` and ``config`` as of ``AwsBaseHook``.
    """

    def __init__(
        self,
        sla: Any = None,
        *,
        run: RunTimes | None = None,
        requested_by: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._given = sla
        self._run = run
        self._requested_by = requested_by

    @property
    def sla(self) -> SlaSource:
        """The SLA, or where it is kept.

        :raises AmtRequestError: what was given is none.
        """
        if self._given is not None:
            return SlaSource.parse(self._given)
        if not self.aws_conn_id:
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "sla", None, "an SLA, as there is no connection that could hold one", "give it"
                    )
                ]
            )
        return SlaSource(connection=str(self.aws_conn_id))

    @cached_property
    def _sla_reader(self) -> SlaReader:
        # One for all jobs: the last good SLA counts on for those that are looked at later.
        return SlaReader(self.sla, log=self.log)

    def evaluate(self, tuning_job_name: str) -> Verdict:
        """Judge a tuning job, and do nothing.

        :raises AmtRequestError: there is no SLA that could be used.
        :raises AmtAwsError: AWS refused a call.
        """
        guard = self._guard(tuning_job_name)
        with bearing(persistent(self.log)):
            return guard.evaluate(*self._read(tuning_job_name))

    def enforce(self, tuning_job_name: str) -> Verdict:
        """Judge a tuning job, and stop it if a rule demands it.

        :return: the verdict; :attr:`Verdict.stops` says whether the job is to be ended. It is, when this
            returns: calls that are throttled are repeated for half a minute. A task hands it on as
            ``verdict.to_dict()``: Airflow gives objects of other packages back to nobody.
        :raises AmtRequestError: there is no SLA that could be used.
        :raises AmtAwsError: AWS refused a call.
        """
        return self.look(tuning_job_name).verdict

    def look(
        self,
        tuning_job_name: str,
        *,
        tells: bool = False,
        on_news: Callable[[Look], None] | None = None,
    ) -> Look:
        """Judge a tuning job, stop it if a rule demands it, and return all there is to tell.

        :param tells: whether the caller tells people the news; otherwise they are logged.
        :param on_news: tells them; what it was given counts as told when it returns.
        :raises AmtRequestError: there is no SLA that could be used.
        :raises AmtAwsError: AWS refused a call.
        """
        guard = self._guard(tuning_job_name, tells=tells or on_news is not None)
        with bearing(persistent(self.log)):
            description, progress = self._read(tuning_job_name)
            look = guard.look(description, progress)
            if look.news and on_news is not None:
                on_news(look)
                guard.told(progress.arn, [one.id for one in look.news])
        return look

    def report(self, tuning_job_name: str) -> dict[str, Any]:
        """Judge a tuning job rule by rule, and do nothing: what operations look at.

        :return: ``{"tuning_job_name", "status", "verdict", "rules"}``: the verdict's dict, and for each rule
            ``rule``, ``code``, ``share`` of its limit that is used (``None`` if that cannot be told),
            ``reason`` and ``due``, the ids of its steps that are due.
        :raises AmtRequestError: there is no SLA that could be used.
        :raises AmtAwsError: AWS refused a call.
        """
        guard = self._guard(tuning_job_name)
        with bearing(persistent(self.log)):
            description, progress = self._read(tuning_job_name)
            verdict, levels = guard.evaluate_rules(description, progress)
        return {
            "tuning_job_name": progress.name,
            "status": progress.status,
            "verdict": verdict.to_dict(),
            "rules": [
                {
                    "rule": title,
                    "code": level.code,
                    "share": level.share,
                    "reason": level.reason,
                    "due": [one.id for one in verdict.due if one.rule == title],
                }
                for title, level in levels
            ],
        }

    def _read(self, name: str) -> tuple[dict[str, Any], TuningProgress]:
        description = self.describe_tuning_job(name)
        return description, TuningProgress.from_describe(description)

    def _guard(self, name: str, *, tells: bool = False) -> Guard:
        context = _compat.current_context()
        run, requested_by = self._run, self._requested_by
        if context is not None:
            run = run or run_times(context)
            requested_by = requested_by or task_label(context["ti"])
        return Guard(
            lambda: self,
            name,
            self._sla_reader,
            log=self.log,
            requested_by=requested_by or "AmtSlaHook",
            run=run,
            tells=tells,
        )


def run_times(context: Mapping[str, Any]) -> RunTimes:
    """Return the times of a task's DAG run, from its context.

    Airflow does not tell a task when its run was queued; ``run_after``, from which on it could be, stands for
    that: for a run that a person triggered it is when that was, for a scheduled one when it was due.
    """
    run = context.get("dag_run")
    return RunTimes(
        logical_date=getattr(run, "logical_date", None),
        queued_at=getattr(run, "run_after", None),
        data_interval_end=getattr(run, "data_interval_end", None),
    )
