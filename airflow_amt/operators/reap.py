"""The operator that stops the tuning jobs for which no task waits any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_amt import _compat, tuning
from airflow_amt._lazy_hook import LazyHook
from airflow_amt._tasks import CONNECTION_FIELDS, parse_seconds
from airflow_amt.exceptions import AmtFieldError, AmtRequestError

if TYPE_CHECKING:
    from airflow.sdk import Context
    from structlog.typing import FilteringBoundLogger

    from airflow_amt.tuning.naming import Owner
    from airflow_amt.tuning.reaping import ReapPolicy, TaskView
    from airflow_amt.watch.reaping import ReapReport

#: Run ids in one request to the execution API: they travel in its address, of which proxies take 8 KB.
_RUNS_A_REQUEST = 25


class AmtReapTuningJobsOperator(LazyHook, BaseOperator):
    """Find the tuning jobs of this Airflow for which no task waits any more, and stop them.

    Purpose: the safety net of a deployment. Whatever killed a task without its tuning job (a triggerer that
    was down, a worker that was lost), the job is found by its ownership tags and stopped. Run it in a DAG of
    its own, every ten minutes or so; by default it only tells.

    How it works: all tuning jobs in progress of the connection's account and region are listed, and those
    with ownership tags judged by their task instance's state, read through Airflow's execution API
    (:mod:`airflow_amt.tuning.reaping` has the rules). Every doubt keeps a job. Before one is stopped, its
    tags and its task instance are read anew. A job that is stopped carries ``airflow-amt:stopped-by =
    reaper`` and the reason.

    What it does not do: it never touches a job without ownership tags, of another Airflow deployment
    (``[amt] deployment``), of a DAG that this Airflow does not know, with the tag ``airflow-amt:keep``, or
    that no task was to wait for.

    Known limitation: deployments that share an account and DAG ids, and have no ``[amt] deployment``, cannot
    be told apart. Airflow 3.1 cannot tell a worker whether it knows a DAG that has no run left: its jobs are
    kept; name the DAG in ``dag_ids``, or use ``airflow-amt reap``.

    Returns ``{"version", "dry_run", "in_progress", "owned", "stopped", "ended", "by_code", "orphans",
    "orphans_not_listed", "errors"}``; ``orphans`` lists 50 at most, each with ``tuning_job_name``, its owner,
    ``age_seconds``, ``code``, ``reason`` and ``stopped``.

    :param stop_orphans: stop them; ``False`` is a dry run, which only tells (templated). Not called
        ``dry_run``, which is a method of every operator.
    :param grace: seconds, or a ``timedelta``, that a job gets before it can be an orphan (templated).
    :param dag_ids: only jobs of these DAGs, which Airflow need not know; a list, or ids separated by commas
        (templated). Default: all.
    :param name_contains: only jobs whose name contains this (templated).
    :param include_left: stop also jobs that were to outlive a killed task (``stop_on_kill=False``;
        templated).
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :raises AmtRequestError: an argument cannot be used.
    :raises AmtReapError: some jobs could not be judged or stopped; all others were. Carries the result, which
        is in XCom as ``return_value`` too.
    """

    template_fields: Sequence[str] = (
        "stop_orphans",
        "grace",
        "dag_ids",
        "name_contains",
        "include_left",
        *CONNECTION_FIELDS,
    )
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        stop_orphans: bool | str = False,
        grace: float | str | timedelta = 600,
        dag_ids: Sequence[str] | str | None = None,
        name_contains: str | None = None,
        include_left: bool | str = False,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stop_orphans = stop_orphans
        self.grace = grace
        self.dag_ids = dag_ids
        self.name_contains = name_contains
        self.include_left = include_left
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self._killed = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Look at all tuning jobs in progress, and stop the orphans unless it is a dry run."""
        from airflow_amt.task_exceptions import AmtReapError

        report = self._reap()
        result = report.to_dict()
        if report.errors:
            context["ti"].xcom_push(key="return_value", value=result)
            raise AmtReapError(report.errors, result)
        return result

    def on_kill(self) -> None:
        """End after the job that is being looked at."""
        self._killed = True

    def _reap(self) -> ReapReport:
        from airflow_amt.watch.reaping import Reaper

        policy, stop_orphans, name_contains = self._checked()
        return Reaper(
            self.hook,
            WorkerTasks(self.log),
            policy=policy,
            dry_run=not stop_orphans,
            log=self.log,
            name_contains=name_contains,
            cancelled=lambda: self._killed,
        ).run()

    def _checked(self) -> tuple[ReapPolicy, bool, str | None]:
        problems: list[AmtFieldError] = []
        grace = 0.0
        try:
            grace = parse_seconds("grace", self.grace, at_least=0)
        except AmtRequestError as error:
            problems.extend(error.problems)
        stop_orphans = _parse_bool("stop_orphans", self.stop_orphans, problems)
        include_left = _parse_bool("include_left", self.include_left, problems)
        dag_ids = parse_dag_ids("dag_ids", self.dag_ids, problems)
        name_contains = parse_name_part("name_contains", self.name_contains, problems)
        if problems:
            raise AmtRequestError(problems)
        policy = tuning.reaping.ReapPolicy(
            grace=timedelta(seconds=grace),
            deployment=_compat.deployment_id(),
            dag_ids=dag_ids,
            include_left=include_left,
        )
        return policy, stop_orphans, name_contains


class WorkerTasks:
    """Reads task instances through the execution API, from inside a worker: a few calls for each task.

    :param log: where failed calls are told.
    """

    def __init__(self, log: Logger | FilteringBoundLogger) -> None:
        self.log = log

    def read(self, owners: Collection[Owner]) -> Mapping[Owner, TaskView]:
        """Return what Airflow says of each of these task instances, as of now."""
        views: dict[Owner, TaskView] = {}
        for (dag_id, task_id), group in _by_task(owners).items():
            try:
                views.update(self._of_task(dag_id, task_id, group))
            except Exception as error:
                # The supervisor hands on whatever the API server or the network came up with; whatever it is,
                # it means the same here: not known. Other tasks can be read all the same.
                self.log.exception("The task instances of %s %s cannot be read", dag_id, task_id)
                views.update(dict.fromkeys(group, _unread(f"{dag_id} {task_id}", error)))
        return views

    def _of_task(self, dag_id: str, task_id: str, owners: list[Owner]) -> dict[Owner, TaskView]:
        run_ids = sorted({owner.run_id for owner in owners})
        states: dict[str, dict[int, str | None]] = {}
        for start in range(0, len(run_ids), _RUNS_A_REQUEST):
            states |= _compat.read_task_states(dag_id, task_id, run_ids[start : start + _RUNS_A_REQUEST])
        real = {run_id: [run_id] for run_id in run_ids}
        unsure = {
            run_id
            for run_id in run_ids
            if tuning.reaping.may_be_changed(run_id) and not _waits(states.get(run_id))
        }
        if unsure:
            # A tag may not hold its run's id as it is: look for the runs whose id becomes this tag.
            everywhere = _compat.read_task_states(dag_id, task_id)
            real |= {
                tag: [one for one in everywhere if tuning.naming.tag_value(one) == tag] or [tag]
                for tag in unsure
            }
            states |= everywhere
        views: dict[Owner, TaskView] = {}
        for owner in owners:
            run_id, *others = real[owner.run_id]
            if others:
                problem = f"its tag {owner.run_id!r} may stand for the DAG runs {[run_id, *others]}"
                views[owner] = tuning.reaping.TaskView(found=None, problem=problem)
            else:
                views[owner] = self._of_instance(owner, run_id, states.get(run_id, {}))
        return views

    def _of_instance(self, owner: Owner, run_id: str, states: Mapping[int, str | None]) -> TaskView:
        state = states.get(owner.map_index)
        if state is not None:
            return tuning.reaping.TaskView(found=True, state=state, dag_known=True)
        try:
            return _without_state(owner, run_id, found=owner.map_index in states)
        except Exception as error:
            # As above; here it is about one DAG run.
            self.log.exception("DAG run %s of %s cannot be read", run_id, owner.dag_id)
            return _unread(f"{owner.dag_id} {run_id}", error)


def _without_state(owner: Owner, run_id: str, *, found: bool) -> TaskView:
    """Return what there is to say of a task instance that has no state or is gone."""
    run_state = _compat.read_run_state(owner.dag_id, run_id)
    if found or run_state is not None:
        return tuning.reaping.TaskView(found=found, run_state=run_state, dag_known=True)
    known = _compat.read_dag_known(owner.dag_id)
    problem = "" if known is not None else "it has no DAG run, and Airflow 3.1 tells a worker no more"
    return tuning.reaping.TaskView(found=False, dag_known=known, problem=problem)


def _unread(what: str, error: Exception) -> TaskView:
    return tuning.reaping.TaskView(found=None, problem=f"{what}: {type(error).__name__}: {error}")


def _waits(states: Mapping[int, str | None] | None) -> bool:
    """Whether all of these task instances are there and come back to their tuning jobs."""
    return bool(states) and set((states or {}).values()) <= tuning.reaping.ALIVE_STATES


def _by_task(owners: Iterable[Owner]) -> dict[tuple[str, str], list[Owner]]:
    groups: dict[tuple[str, str], list[Owner]] = defaultdict(list)
    for owner in owners:
        groups[owner.dag_id, owner.task_id].append(owner)
    return groups


def _parse_bool(field: str, value: Any, problems: list[AmtFieldError]) -> bool:
    """Return a flag, or what a template made of one; add what is wrong to the problems."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "false": False}
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in words:
        problems.append(AmtFieldError(field, value, "True or False", f"give {field} as True or False"))
    return words.get(text, False)


def parse_dag_ids(field: str, value: Any, problems: list[AmtFieldError]) -> frozenset[str]:
    """Return DAG ids from a list, or from text in which commas separate them; empty for none."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "None", "[]")):
        return frozenset()
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        given = [value]
    ids = [one.strip() if isinstance(one, str) else one for one in given]
    bad = [one for one in ids if not isinstance(one, str) or not one or tuning.naming.tag_value(one) != one]
    if bad:
        problems.append(
            AmtFieldError(field, bad[0], "ids of DAGs", "give a list of ids, or ids separated by commas")
        )
        return frozenset()
    return frozenset(ids)


def parse_name_part(field: str, value: Any, problems: list[AmtFieldError]) -> str | None:
    """Return what names of tuning jobs are to contain, if they can; ``None`` for anything."""
    from airflow_amt import service_model

    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    found = service_model.validate("ListHyperParameterTuningJobs", {"NameContains": value})
    problems.extend(
        AmtFieldError(field, value, advice.limit, advice.fix)
        for advice in (problem.as_error() for problem in found)
    )
    return str(value)
