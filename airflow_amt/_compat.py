"""The only file that knows which Airflow version runs (3.1 and later)."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from airflow.sdk import BranchMixIn
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
    )
else:
    try:  # Airflow 3.2 and later
        from airflow.sdk.configuration import conf
        from airflow.sdk.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowSensorTimeout,
            AirflowSkipException,
            AirflowTaskTimeout,
        )
    except ImportError:  # Airflow 3.1
        from airflow.configuration import conf
        from airflow.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowSensorTimeout,
            AirflowSkipException,
            AirflowTaskTimeout,
        )

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "AirflowTaskTimeout",
    "BranchMixIn",
    "DeadlineClasses",
    "airflow_version",
    "asset_state_stores",
    "base_url",
    "can_start_from_trigger",
    "count",
    "current_context",
    "deadline_classes",
    "default_deferrable",
    "deployment_id",
    "gauge",
    "import_dags",
    "in_thread",
    "is_not_found",
    "push_xcoms",
    "questions_describe_params",
    "read_answer",
    "read_connection_extra",
    "read_dag_known",
    "read_run_state",
    "read_task_state",
    "read_task_states",
    "read_variable",
    "redact",
    "run_succeeded",
    "run_url",
    "triggers_hear_of_kills",
    "upsert_question",
    "watch_rate",
    "write_answer",
]

_Result = TypeVar("_Result")

#: Threads of this process that poll AWS for triggers. One Describe takes well under a second: 16 threads
#: serve some hundred triggers, and a triggerer shares the machine with others.
_POLLING_THREADS = 16


def default_deferrable() -> bool:
    """Return ``[operators] default_deferrable``, read once when the operators are imported."""
    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))


@cache
def can_start_from_trigger() -> bool:
    """Whether the scheduler can hand a task to a triggerer at once, its trigger's arguments being templates.

    Airflow 3.3 and later. 3.1 and 3.2 know ``start_from_trigger`` and never look at it: the task begins on
    a worker.
    """
    from airflow.triggers.base import BaseTrigger

    return hasattr(BaseTrigger, "render_template_fields")


def deployment_id() -> str | None:
    """Return ``[amt] deployment``, the id by which this Airflow's tuning jobs are told from another's."""
    return str(conf.get("amt", "deployment", fallback="") or "").strip() or None


def run_url(dag_id: str, run_id: str) -> str | None:
    """Return the page of a DAG run; ``None`` unless Airflow has been told its own address."""
    base = str(conf.get("api", "base_url", fallback="") or "")
    if not base.startswith(("http://", "https://")):
        return None
    return f"{base.rstrip('/')}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


def import_dags(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Import a DAG file as Airflow's DAG processor does; no database is asked.

    :return: DAGs by id, and tracebacks by file.
    """
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

    bag = DagBag(path, safe_mode=False, load_op_links=False)
    return dict(bag.dags), dict(bag.import_errors)


def read_task_state(dag_id: str, run_id: str, task_id: str, map_index: int) -> str | None:
    """Read the state of a task instance from inside a triggerer or a task; blocking.

    :return: the state; ``None`` if it has none (cleared) or if the task instance is gone.
    :raises Exception: whatever the supervisor answers when the state cannot be read.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=dag_id, run_ids=[run_id], task_ids=[task_id], map_index=map_index
    )
    # The execution API names a mapped task instance "<task_id>_<map_index>" in its answer.
    key = task_id if map_index < 0 else f"{task_id}_{map_index}"
    state = (states.get(run_id) or {}).get(key)
    return None if state is None else str(getattr(state, "value", state))


def current_context() -> Mapping[str, Any] | None:
    """Return the context of the task that runs in this process and thread; ``None`` outside of one."""
    from airflow.sdk import get_current_context

    try:
        return dict(get_current_context())
    except RuntimeError:
        return None


def read_variable(key: str) -> str | None:
    """Read the text of an Airflow Variable from inside a task or a triggerer; blocking.

    :return: ``None`` if there is none.
    :raises Exception: whatever the supervisor or a secrets backend answers when it cannot be read.
    """
    from airflow.sdk import Variable

    found = Variable.get(key, default=None)
    return None if found is None else str(found)


def read_connection_extra(conn_id: str) -> dict[str, Any] | None:
    """Read the extra of an Airflow connection from inside a task or a triggerer; blocking.

    :return: ``None`` if there is no such connection.
    :raises Exception: whatever the supervisor or a secrets backend answers when it cannot be read.
    """
    from airflow.sdk import Connection

    try:
        found = Connection.get(conn_id)
    except Exception as error:
        if type(error).__name__ == "AirflowNotFoundException" or is_not_found(error):
            return None
        raise
    return dict(found.extra_dejson)


def push_xcoms(task_instance: Any, values: Mapping[str, Any]) -> None:
    """Push XComs of a task instance from inside a triggerer, as a worker would; blocking.

    :param task_instance: what the triggerer gave the trigger.
    :param values: by key; JSON-safe.
    :raises Exception: whatever the supervisor answers when a value cannot be stored.
    """
    from airflow.sdk.execution_time.xcom import XCom

    if task_instance is None:
        raise ValueError("a trigger without a task instance has no XCom")
    for key, value in values.items():
        XCom.set(
            key=key,
            value=value,
            dag_id=task_instance.dag_id,
            task_id=task_instance.task_id,
            run_id=task_instance.run_id,
            map_index=task_instance.map_index,
        )


def read_task_states(
    dag_id: str, task_id: str, run_ids: list[str] | None = None
) -> dict[str, dict[int, str | None]]:
    """Read the states of all task instances of one task from inside a worker; blocking.

    One task at a time: in its answer the execution API names mapped task instances ``<task_id>_<map_index>``,
    which may be the id of another task.

    :param run_ids: only of these DAG runs; ``None`` for all. They travel in the address of a request.
    :return: states by run id and map index; what is gone, or was never there, is missing.
    :raises Exception: whatever the supervisor answers when the states cannot be read.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    answer = RuntimeTaskInstance.get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=run_ids)
    return {
        run_id: {
            -1 if key == task_id else int(key.removeprefix(f"{task_id}_")): None
            if state is None
            else str(getattr(state, "value", state))
            for key, state in states.items()
        }
        for run_id, states in answer.items()
    }


def read_run_state(dag_id: str, run_id: str) -> str | None:
    """Read the state of a DAG run from inside a worker; ``None`` if there is no such run; blocking.

    :raises Exception: whatever the supervisor answers when it cannot be read.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        state = RuntimeTaskInstance.get_dagrun_state(dag_id, run_id)
    except Exception as error:
        if is_not_found(error):
            return None
        raise
    return str(getattr(state, "value", state))


def read_dag_known(dag_id: str) -> bool | None:
    """Read from inside a worker whether Airflow knows a DAG; blocking.

    :return: ``None`` if that cannot be told: to Airflow 3.1's workers a DAG is its runs, and there is none.
    :raises Exception: whatever the supervisor answers when it cannot be read.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    if not hasattr(RuntimeTaskInstance, "get_dag"):  # Airflow 3.1
        return True if RuntimeTaskInstance.get_dr_count(dag_id=dag_id) > 0 else None
    try:
        RuntimeTaskInstance.get_dag(dag_id)
    except Exception as error:
        if is_not_found(error):
            return False
        raise
    return True


def is_not_found(error: Exception) -> bool:
    """Whether the execution API answered that there is no such thing.

    A worker gets ``AirflowRuntimeError`` from its supervisor; in ``dag.test()`` there is none between the
    task and the API, whose client raises an error with the response itself.
    """
    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code == 404)
    detail = getattr(getattr(error, "error", None), "detail", None)
    return isinstance(detail, dict) and detail.get("status_code") == 404


def redact(text: str) -> str:
    """Return a text with those secrets masked that Airflow masks in logs, as passwords of connections."""
    from airflow.sdk._shared import secrets_masker

    return str(secrets_masker.redact(text))


def run_succeeded(dag_id: str, run_id: str) -> bool:
    """Say, from inside a task, whether a DAG run exists and was a success."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return bool(RuntimeTaskInstance.get_dr_count(dag_id=dag_id, run_ids=[run_id], states=["success"]))


def count(metric: str, tags: dict[str, str] | None = None) -> None:
    """Add one to a metric of Airflow's (StatsD, OpenTelemetry)."""
    _stats().incr(metric, tags=tags or {})


def gauge(metric: str, value: float, tags: dict[str, str] | None = None) -> None:
    """Set a metric of Airflow's (StatsD, OpenTelemetry)."""
    _stats().gauge(metric, value, tags=tags or {})


def _stats() -> Any:
    try:
        stats = import_module("airflow.sdk.observability.stats")
    except ImportError:  # Airflow 3.1
        stats = import_module("airflow.stats")
    # From 3.3 on functions of the module, before that of a class.
    return stats if hasattr(stats, "incr") else stats.Stats


def watch_rate() -> tuple[str | None, str | None]:
    """Return ``[amt] watch_calls_per_second`` and ``watch_calls_burst`` as they are set."""
    rate, burst = (
        conf.get("amt", option, fallback=None) for option in ("watch_calls_per_second", "watch_calls_burst")
    )
    return rate, burst


def airflow_version() -> str:
    """Return the version of Airflow."""
    from importlib.metadata import version

    return version("apache-airflow-core")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineClasses:
    """What Airflow builds deadlines of DAG runs from.

    :param alert: makes a ``DeadlineAlert``; its name is left out where Airflow knows none.
    :param asynchronous: ``AsyncCallback``, which runs in the triggerer.
    :param synchronous: ``SyncCallback``, which runs in an executor.
    :param intervals: the types of an interval.
    """

    alert: Callable[..., Any]
    asynchronous: Callable[..., Any]
    synchronous: Callable[..., Any]
    intervals: tuple[type, ...]


def deadline_classes() -> DeadlineClasses | None:
    """Return what deadlines of DAG runs are built from; ``None`` on Airflow 3.1, where they are a draft."""
    try:
        from airflow.sdk.definitions.callback import AsyncCallback, SyncCallback
        from airflow.sdk.definitions.deadline import DeadlineAlert
    except ImportError:  # Airflow 3.1
        return None
    try:
        from airflow.sdk.definitions.deadline import VariableInterval
    except ImportError:  # Airflow 3.2: no intervals from variables, and no names
        return DeadlineClasses(
            alert=lambda **given: DeadlineAlert(
                **{key: value for key, value in given.items() if key != "name"}
            ),
            asynchronous=AsyncCallback,
            synchronous=SyncCallback,
            intervals=(timedelta,),
        )
    return DeadlineClasses(
        alert=DeadlineAlert,
        asynchronous=AsyncCallback,
        synchronous=SyncCallback,
        intervals=(timedelta, VariableInterval),
    )


def triggers_hear_of_kills() -> bool:
    """Whether Airflow calls a trigger's ``on_kill`` (3.3 and later)."""
    from airflow.triggers.base import BaseTrigger

    return hasattr(BaseTrigger, "on_kill")


@cache
def _threads(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=_POLLING_THREADS, thread_name_prefix=name)


async def in_thread(
    call: Callable[[], _Result],
    *,
    urgent: bool = False,
    lasting: bool = False,
    threads: ThreadPoolExecutor | None = None,
) -> _Result:
    """Run a blocking call of a trigger in a thread in which Airflow connections can be read.

    Airflow 3.1's triggerer answers a thread only if asgiref started it. From 3.2 any thread may ask, and a
    plain one is better: asgiref loses the message of a cancellation, by which Airflow 3.3 tells a user's
    kill from a shutdown.

    :param urgent: do not wait for a polling thread: those may all be busy with reads that hang.
    :param lasting: it may take long, and must not take a polling thread from others meanwhile.
    :param threads: the caller's own threads.
    """
    if threads is None:
        threads = _threads(
            "airflow-amt-kill" if urgent else "airflow-amt-callback" if lasting else "airflow-amt"
        )
    if _asks_through_asgiref():
        from asgiref.sync import sync_to_async

        # Shielded: asgiref would hand a cancellation on to a question that the thread has just asked, whose
        # answer the triggerer then takes for that of its own next question, and dies of (seen with 3.1.8).
        return await asyncio.shield(sync_to_async(call, thread_sensitive=False, executor=threads)())
    # Airflow finds a trigger's own log, which people see as the task's, by a context variable.
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: context.run(call))


def _asks_through_asgiref() -> bool:
    from airflow.sdk.execution_time import task_runner

    supervisor = getattr(task_runner, "SUPERVISOR_COMMS", None)
    return type(supervisor).__name__ == "TriggerCommsDecoder" and not hasattr(supervisor, "start_reader")


def asset_state_stores(trigger: Any) -> list[Any]:
    """Return the state stores (``aget``, ``aset``) of the assets that an event trigger is watched for.

    Airflow 3.3 and later give a trigger one for each asset; its mapping can only be asked for assets that
    one knows, which a trigger does not. Before 3.3 there are none.
    """
    accessors = getattr(trigger, "asset_state_store", None)
    if accessors is None:
        return []
    by_name = getattr(accessors, "_by_name", {})
    return [by_name[name] for name in sorted(by_name)]


def base_url() -> str | None:
    """Return ``[api] base_url`` without a slash at the end; ``None`` if it is not set."""
    return str(conf.get("api", "base_url", fallback="") or "").strip().rstrip("/") or None


@cache
def questions_describe_params() -> bool:
    """Whether the fields of a question to people have a description and a schema (3.1.3 and later)."""
    from importlib.metadata import version

    from packaging.version import Version

    return Version(version("apache-airflow-core")).release >= (3, 1, 3)


def upsert_question(ti_id: Any, **question: Any) -> Any:
    """Store a question to people, from inside a worker; blocking. See :mod:`airflow_amt._human`.

    :return: the question that is stored, the first of this task instance; ``None`` in ``dag.test()`` of some
        versions.
    """
    # What airflow.sdk.execution_time.hitl.upsert_hitl_detail sends; that one keeps the answer to itself.
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload

    return task_runner.SUPERVISOR_COMMS.send(CreateHITLDetailPayload(ti_id=ti_id, multiple=False, **question))


def read_answer(ti_id: Any) -> Any:
    """Read what people answered, from inside a triggerer; blocking; ``None`` in ``dag.test()``."""
    from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail

    return get_hitl_detail_content_detail(ti_id)


def write_answer(ti_id: Any, chosen: list[str], params: dict[str, Any]) -> Any:
    """Answer a question in nobody's name, from inside a triggerer; blocking; ``None`` in ``dag.test()``."""
    from airflow.sdk.execution_time.hitl import update_hitl_detail_response

    return update_hitl_detail_response(ti_id, chosen, params)


def __getattr__(name: str) -> Any:
    # Not at the top: only the branching operator needs it, and everything imports this module.
    if name != "BranchMixIn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:  # Airflow 3.3 and later
        from airflow.sdk import BranchMixIn as Mixin
    except ImportError:  # from a provider that Airflow itself depends on
        return import_module("airflow.providers.standard.operators.branch").BranchMixIn
    return Mixin
