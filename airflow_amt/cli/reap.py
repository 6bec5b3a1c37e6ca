"""``airflow-amt reap``: find the tuning jobs for which no task waits any more, and stop them.

Task instances are read from Airflow's metadata database, as the ``airflow`` command does: run it where that
runs. The public REST API would need a user and a token, a running API server, and a request for each DAG run;
the database answers for hundreds at once, and finds DAG runs whose ids a tag could not hold as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.text import MOST_MESSAGE, shown

if TYPE_CHECKING:
    from rich.text import Text
    from sqlalchemy.orm import Session

    from airflow_amt.tuning.naming import Owner
    from airflow_amt.tuning.reaping import ReapPolicy, TaskView
    from airflow_amt.watch.reaping import ReapReport

#: Exit codes, beside 2 for options that cannot be used.
OK, ERRORS, ORPHANS = 0, 1, 3

#: Values in one query: SQLite of older systems takes 999.
_VALUES_A_QUERY = 300


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``reap``."""
    reap = subparsers.add_parser(
        "reap",
        help="stop the tuning jobs for which no Airflow task waits any more",
        description=(
            "Find the tuning jobs in progress that carry this Airflow's ownership tags and for which no task "
            "waits any more. A dry run unless --stop is given. Reads Airflow's configuration, connections "
            "and metadata database: run it where the airflow command runs. Exit code 0: there was nothing to "
            "do, or all of it was done; 1: errors; 2: options that cannot be used; 3: a dry run found "
            "orphans."
        ),
    )
    reap.add_argument("--stop", action="store_true", help="stop them (default: only tell)")
    reap.add_argument(
        "--grace",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that a job gets before it can be an orphan (default: 600)",
    )
    reap.add_argument(
        "--dag-id",
        action="append",
        default=[],
        metavar="ID",
        help="only jobs of this DAG, which Airflow need not know; may be given more than once",
    )
    reap.add_argument("--name-contains", metavar="TEXT", help="only jobs whose name contains this")
    reap.add_argument(
        "--include-left",
        action="store_true",
        help="stop also jobs that were to outlive a killed task (stop_on_kill=False)",
    )
    reap.add_argument("--aws-conn-id", default="aws_default", metavar="ID", help="default: aws_default")
    reap.add_argument("--region", metavar="NAME", help="AWS region (default: the connection's)")
    reap.add_argument("--json", action="store_true", help="write JSON, all orphans included")
    reap.set_defaults(run=run_reap)


def run_reap(arguments: argparse.Namespace) -> int:
    """Look, stop if that is asked for, and tell; return the exit code.

    :raises AmtFieldError: an option cannot be used.
    """
    # Connections come from the metadata database only to what calls itself a server; the airflow command's
    # own subcommands read the tables directly.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    # Airflow logs to standard output, which is the answer's place here.
    with contextlib.redirect_stdout(sys.stderr):
        report = _reap(arguments)
    if arguments.json:
        result = report.to_dict(most_listed=len(report.judged))
        print(json.dumps({**result, "errors": report.errors}, indent=2))
    else:
        _print_table(report)
    if report.errors:
        return ERRORS
    return ORPHANS if report.dry_run and report.orphans else OK


def _reap(arguments: argparse.Namespace) -> ReapReport:
    from airflow_amt.hooks.tuning import AmtHook
    from airflow_amt.watch.reaping import Reaper

    policy, name_contains = _checked(arguments)
    log = logging.getLogger("airflow_amt.reap")
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.setLevel(logging.INFO)
        log.propagate = False
    return Reaper(
        AmtHook(aws_conn_id=arguments.aws_conn_id, region_name=arguments.region),
        DatabaseTasks(),
        policy=policy,
        dry_run=not arguments.stop,
        log=log,
        name_contains=name_contains,
    ).run()


def _checked(arguments: argparse.Namespace) -> tuple[ReapPolicy, str | None]:
    from airflow_amt import _compat
    from airflow_amt._tasks import parse_seconds
    from airflow_amt.exceptions import AmtRequestError
    from airflow_amt.operators.reap import parse_dag_ids, parse_name_part
    from airflow_amt.tuning.reaping import ReapPolicy

    problems: list[AmtFieldError] = []
    try:
        parse_seconds("--grace", arguments.grace, at_least=0)
    except AmtRequestError as error:
        problems.extend(error.problems)
    dag_ids = parse_dag_ids("--dag-id", arguments.dag_id, problems)
    name_contains = parse_name_part("--name-contains", arguments.name_contains, problems)
    if problems:
        raise problems[0]
    policy = ReapPolicy(
        grace=timedelta(seconds=arguments.grace),
        deployment=_compat.deployment_id(),
        dag_ids=dag_ids,
        include_left=arguments.include_left,
    )
    return policy, name_contains


def _print_table(report: ReapReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=not sys.stdout.isatty())
    told = [one for one in report.judged if one.decision.stop or one.decision.code.needs_a_look]
    if told:
        table = Table("Tuning job", "DAG", "Run", "Task", "Age", "Why", "")
        for one in told:
            owner = one.job.owner
            index = f"[{owner.map_index}]" if owner.map_index >= 0 else ""
            done = "stopped" if one.stopped else "orphan" if one.decision.stop else "kept"
            table.add_row(
                *map(_cell, (one.job.name, owner.dag_id, owner.run_id, f"{owner.task_id}{index}")),
                str(timedelta(seconds=round(one.job.age.total_seconds()))),
                _cell(one.decision.reason),
                done,
            )
        console.print(table)
    console.print(report.summary(), markup=False, highlight=False)
    for error in report.errors:
        print(f"airflow-amt: {shown(error, MOST_MESSAGE)}", file=sys.stderr)


def _cell(text: str) -> Text:
    from rich.text import Text

    # Not a str, in which brackets (of a map index, or anybody's) are markup.
    return Text(shown(text))


class DatabaseTasks:
    """Reads task instances from Airflow's metadata database: three queries for some hundred of a DAG."""

    def read(self, owners: Collection[Owner]) -> Mapping[Owner, TaskView]:
        """Return what Airflow says of each of these task instances, as of now."""
        from airflow.utils.session import create_session
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_amt.tuning.reaping import TaskView

        by_dag: dict[str, list[Owner]] = defaultdict(list)
        for owner in sorted(owners, key=lambda one: one.run_id):
            by_dag[owner.dag_id].append(owner)
        views: dict[Owner, TaskView] = {}
        try:
            with create_session() as session:
                for dag_id, group in by_dag.items():
                    for part in _parts(group):
                        views.update(_read_some(session, dag_id, part))
        except SQLAlchemyError as error:
            problem = f"the metadata database does not answer: {type(error).__name__}: {error}"
            return {owner: TaskView(found=None, problem=problem) for owner in owners}
        return views


def _read_some(session: Session, dag_id: str, owners: list[Owner]) -> dict[Owner, TaskView]:
    from airflow.models.dag import DagModel
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    from airflow_amt.tuning.reaping import TaskView

    runs = _runs_of_tags(session, dag_id, {owner.run_id for owner in owners})
    run_ids = {run_id for candidates in runs.values() for run_id in candidates}
    states = {
        (run_id, task_id, map_index): None if state is None else str(getattr(state, "value", state))
        for run_id, task_id, map_index, state in session.execute(
            select(
                TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state
            ).where(
                TaskInstance.dag_id == dag_id,
                TaskInstance.run_id.in_(run_ids),
                TaskInstance.task_id.in_({owner.task_id for owner in owners}),
            )
        )
    }
    known = session.scalar(select(DagModel.dag_id).where(DagModel.dag_id == dag_id)) is not None
    views: dict[Owner, TaskView] = {}
    for owner in owners:
        candidates = runs[owner.run_id]
        if len(candidates) > 1:
            problem = f"its tag {owner.run_id!r} may stand for the DAG runs {sorted(candidates)}"
            views[owner] = TaskView(found=None, problem=problem)
            continue
        run_id, run_state = next(iter(candidates.items()), (owner.run_id, None))
        key = (run_id, owner.task_id, owner.map_index)
        views[owner] = TaskView(
            found=key in states, state=states.get(key), run_state=run_state, dag_known=known
        )
    return views


def _runs_of_tags(session: Session, dag_id: str, tags: set[str]) -> dict[str, dict[str, str]]:
    """Return the state of each DAG run whose id a tag may stand for, by tag and run id."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import or_, select

    from airflow_amt.tuning.naming import MAX_TAG_VALUE_LENGTH, tag_value
    from airflow_amt.tuning.reaping import may_be_changed

    conditions: list[Any] = [DagRun.run_id.in_(tags)]
    for tag in tags:
        if may_be_changed(tag):
            # In LIKE an underscore is any character, which is what it is in a tag as well. Of a long id a tag
            # has the beginning only.
            pattern = tag if len(tag) < MAX_TAG_VALUE_LENGTH else f"{tag[:200]}%"
            conditions.append(DagRun.run_id.like(pattern))
    found: dict[str, dict[str, str]] = {tag: {} for tag in tags}
    query = select(DagRun.run_id, DagRun.state).where(DagRun.dag_id == dag_id, or_(*conditions))
    for run_id, state in session.execute(query):
        tag = tag_value(run_id)
        if tag in found:
            found[tag][run_id] = str(getattr(state, "value", state))
    return found


def _parts(owners: list[Owner]) -> Iterator[list[Owner]]:
    for start in range(0, len(owners), _VALUES_A_QUERY):
        yield owners[start : start + _VALUES_A_QUERY]
