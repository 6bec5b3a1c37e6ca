"""What the notifiers share: the message, composed from whatever context Airflow calls back with.

What a message tells, the first that is there:

1. ``context["policy"]``: the report of a policy, where a policy's callback is run.
2. The outcome that the task published to XCom, or that its exception carries.
3. The progress that a sensor published, or that its exception carries.
4. The name of the tuning job, the state of the task and its exception.

A DAG's callback may get the task instance that Airflow deems relevant, or none; a deadline's gets a DAG run.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from airflow_amt._compat import in_thread, redact, run_url
from airflow_amt._tasks import NAME_KEY, OUTCOME_KEY
from airflow_amt.links.tuning import console_url
from airflow_amt.task_exceptions import AmtConditionNotMet, AmtTuningJobError
from airflow_amt.triggers.progress import PROGRESS_KEY
from airflow_amt.tuning.message import as_html, as_mrkdwn, compact_message

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)

__all__ = ["AmtNotifier", "message_facts", "missing_provider"]


def missing_provider(extra: str, error: ImportError) -> ImportError:
    """Return the error for a notifier whose provider is not installed.

    Airflow, which imports all notifiers of the provider info, takes a missing provider for an optional
    feature if the message names its module as Python does.
    """
    return ImportError(
        f"{error.msg} (airflow_amt needs its extra {extra!r} for this notifier; "
        f"Fix: pip install 'airflow-provider-amt[{extra}]')",
        name=error.name,
        path=error.path,
    )


class AmtNotifier(BaseNotifier):
    """Mixin of the notifiers, to stand before a provider's notifier: composes the message first.

    Templates of the notifier find the message under ``amt``: ``amt.subject`` and ``amt.text``; the text for
    e-mail as ``amt.html`` and for Slack as ``amt.mrkdwn``; what is known as the dict ``amt.facts``
    (:func:`airflow_amt.tuning.message.compact_message` names the keys).

    One notifier may serve many tasks and calls: each call renders a copy of it, because rendering replaces
    the templates, and leaves Airflow's context as it was.

    :param context: context of a call that Airflow makes without an argument (``await notifier``).
    """

    _composed = False

    def __init__(self, *args: Any, context: Context | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if context is not None:
            # Set here: not every notifier of the Amazon provider hands it on.
            self.context = context

    def __call__(self, *args: Any) -> None:
        """Send the message; Airflow calls it with a context."""
        if len(args) != 1:
            # As BaseNotifier does for what was once the callback of a missed SLA.
            names = ("dag", "task_list", "blocking_task_list", "blocking_tis")
            context: dict[str, Any] = dict(zip(names, args, strict=False))
        else:
            context = dict(args[0])
        context["amt"] = _composed_message(context)
        if not hasattr(context.get("dag"), "get_template_env"):
            # dag.test() gives the callbacks of a DAG its serialised form, at which rendering fails.
            context.pop("dag", None)
        BaseNotifier.__call__(self._for_one_call(), context)

    def __await__(self) -> Generator[Any, Any, None]:
        """Send the message from within an event loop."""
        return self._send_async().__await__()

    async def _send_async(self) -> None:
        context = dict(self.context)
        if _has_to_ask(context):
            # A triggerer's event loop must not wait for XCom.
            context["amt"] = await in_thread(lambda: _composed_message(context))
        else:
            context["amt"] = _composed_message(context)
        one = self._for_one_call()
        one._update_context(context)  # type: ignore[arg-type]
        one.render_template_fields(context)  # type: ignore[arg-type]
        try:
            await one.async_notify(context)  # type: ignore[arg-type]
        except Exception as error:
            self.log.error("Failed to send notification (async): %s", error)
            raise

    def notify(self, context: Context) -> None:
        """Send the message; called directly, compose and render it first."""
        if self._composed:
            super().notify(context)
        else:
            self(context)

    async def async_notify(self, context: Context) -> None:
        """Send the message from within an event loop; called directly, compose and render it first."""
        if self._composed:
            await super().async_notify(context)
        else:
            one = copy.copy(self)
            one.context = context
            await one._send_async()

    def _for_one_call(self) -> AmtNotifier:
        one = copy.copy(self)
        one._composed = True
        return one


def _composed_message(context: Mapping[str, Any]) -> dict[str, Any]:
    facts = message_facts(context)
    message = compact_message(facts)
    return {
        "subject": message.subject,
        "text": message.text,
        "html": as_html(message.text),
        "mrkdwn": as_mrkdwn(message.text),
        "facts": facts,
    }


def _has_to_ask(context: Mapping[str, Any]) -> bool:
    return context.get("ti") is not None and not isinstance(context.get("policy"), Mapping)


def message_facts(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known, for :func:`airflow_amt.tuning.message.compact_message`.

    Reads XCom where the context has a task instance and no policy report; blocking then.

    :param context: of a callback of a task, a DAG, a policy or a deadline.
    """
    facts = _job_facts(context)
    arn = facts.get("tuning_job_arn")
    url = console_url(arn) if isinstance(arn, str) else None
    if url is not None:
        facts.setdefault("console_url", url)
    for key, value in _airflow_facts(context).items():
        if facts.get(key) is None and value is not None:
            facts[key] = value
    return facts


def _job_facts(context: Mapping[str, Any]) -> dict[str, Any]:
    policy = context.get("policy")
    if isinstance(policy, Mapping):
        return dict(policy)
    error = context.get("exception")
    if isinstance(error, AmtTuningJobError):
        return dict(error.outcome)
    if isinstance(error, AmtConditionNotMet):
        return dict(error.result)
    for key, value in _xcoms(context.get("ti")):
        if key == NAME_KEY and isinstance(value, str):
            return {"tuning_job_name": value}
        if key != NAME_KEY and _is_of_a_job(value):
            return dict(value)
    # The errors about one tuning job name it.
    name = getattr(error, "tuning_job_name", None)
    return {"tuning_job_name": name} if isinstance(name, str) else {}


def _is_of_a_job(value: Any) -> bool:
    """Whether it is one of our dicts; any task may have an XCom of that name."""
    return isinstance(value, Mapping) and isinstance(value.get("tuning_job_name"), str)


def _xcoms(ti: Any) -> Iterator[tuple[str, Any]]:
    """Read what this very task instance told of its tuning job, the most telling first."""
    pull: Callable[..., Any] | None = getattr(ti, "xcom_pull", None)
    if pull is None:
        return
    index = getattr(ti, "map_index", None)
    for key in (OUTCOME_KEY, PROGRESS_KEY, NAME_KEY):
        try:
            value = pull(
                task_ids=ti.task_id, key=key, map_indexes=None if index is None or index < 0 else index
            )
        except Exception:  # noqa: BLE001 - whatever the supervisor, or an XCom backend, raises
            # Telling that a task failed matters more than telling all that is known. The callbacks of a DAG
            # in dag.test() have nobody to ask.
            _log.warning("XCom could not be read for a message, which tells less.", exc_info=True)
            return
        yield key, value


def _airflow_facts(context: Mapping[str, Any]) -> dict[str, Any]:
    ti, run, dag = context.get("ti"), context.get("dag_run"), context.get("dag")
    run_reason = context.get("reason")
    dag_id = _of("dag_id", ti, run, dag)
    # The DAG run of a deadline's context is a dict as of the REST API.
    run_id = _of("run_id", ti, run) or context.get("run_id") or _of("dag_run_id", run)
    facts: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id}
    if isinstance(run_reason, str) or ti is None:
        # Only the callbacks of a DAG have a reason; their task instance is one of many.
        missed = _of("deadline_time", context.get("deadline"))
        return {
            **facts,
            "run_reason": run_reason,
            "missed_deadline": missed.isoformat() if isinstance(missed, datetime) else missed,
            "airflow_url": run_url(str(dag_id), str(run_id)) if dag_id and run_id else None,
        }
    error = context.get("exception")
    state = _of("state", ti)
    state = getattr(state, "value", state)
    facts |= {
        "task_id": _of("task_id", ti),
        "map_index": _of("map_index", ti),
        "task_state": state if state is not None or error is None else "failed",
        "try_number": _of("try_number", ti),
        "max_tries": _most_tries(ti),
        "airflow_url": _of("log_url", ti),
    }
    # What it would say is in the outcome, or the progress, that it carries.
    if error is not None and not isinstance(error, AmtTuningJobError | AmtConditionNotMet):
        # It leaves Airflow, whose logs would mask a password in it.
        facts["exception"] = redact(str(error) or type(error).__name__)
    return facts


def _most_tries(ti: Any) -> int | None:
    """Return how often the task may be tried; ``max_tries`` of Airflow counts only the retries."""
    retries = _of("max_tries", ti)
    return retries + 1 if isinstance(retries, int) else None


def _of(name: str, *holders: Any) -> Any:
    """Return the first value of that name; a deadline's DAG run is a dict."""
    for holder in holders:
        value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        if value is not None:
            return value
    return None
