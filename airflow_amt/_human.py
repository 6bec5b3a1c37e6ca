"""Airflow's human-in-the-loop requests for a task that is watching something: raised, read and closed.

Facts, of 3.1.8, 3.2.2 and 3.3.2, each tried on live Airflow:

- A worker can raise a question, and neither read nor close it; a triggerer can read and close it, and not
  raise it. People are shown the question, and can answer it in the UI, while the task is deferred, to
  whatever trigger.
- The first text stays: raised again for the same task instance, also in a later try, only an answer that was
  given is taken away.
- Airflow 3.3 resumes a deferred task itself when a person answers, with an event of its own, and ends the
  task's trigger as if somebody had killed the task (``on_kill``). Before 3.3, and whenever the task is not
  deferred at that moment, the answer is only stored.
- In ``dag.test()`` nothing can be read or closed.

Everything here blocks; in a trigger it runs in a thread (:func:`airflow_amt._compat.in_thread`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airflow_amt import _compat
from airflow_amt.tuning.asking import HumanAnswer, Question

#: States of a task that goes on because a person answered; see :func:`was_answered`.
RESUMED_STATES = frozenset({"scheduled", "queued", "running"})


class UnreadableAnswerError(RuntimeError):
    """Nobody's answer can be read here: this is ``dag.test()``, or no triggerer."""


def raise_question(ti_id: Any, question: Question) -> Question:
    """Ask people, from inside a worker; an answer that was given before is taken away.

    :param ti_id: id of the task instance whose task runs here.
    :param question: what to ask.
    :return: the question as people see it: the first one of this task instance, whatever is asked now.
    :raises Exception: whatever the supervisor answers when it cannot be stored.
    """
    stored = _compat.upsert_question(
        ti_id,
        subject=question.subject,
        body=question.body,
        options=list(question.options),
        defaults=list(question.defaults) or None,
        params=_params(question),
        assigned_users=[dict(user) for user in question.assigned_users],
    )
    if stored is None:  # dag.test()
        return question
    return Question(
        subject=stored.subject,
        body=stored.body or "",
        options=tuple(stored.options),
        defaults=tuple(stored.defaults or ()),
        # In the form of this release, whatever form this Airflow stores.
        params=question.params if set(stored.params or ()) == set(question.params) else {},
        assigned_users=tuple(user.model_dump() for user in stored.assigned_users or ()),
    )


def read_answer(ti_id: Any) -> HumanAnswer | None:
    """Read what was answered, from inside a triggerer; ``None`` as long as nobody has.

    :raises UnreadableAnswerError: see there.
    :raises Exception: whatever the supervisor answers when it cannot be read, as after the task was cleared.
    """
    found = _compat.read_answer(ti_id)
    if found is None:
        raise UnreadableAnswerError("Airflow gives no answers of people here; in dag.test() it does not")
    return _answer(found) if found.response_received else None


def close_question(ti_id: Any, question: Question) -> HumanAnswer:
    """Take the default, so that the question does not wait any more, from inside a triggerer.

    :param question: the one that was raised; it has a default.
    :return: the default; or the answer of a person who was faster.
    :raises UnreadableAnswerError: see there.
    :raises Exception: whatever the supervisor answers when it can be neither closed nor read.
    """
    default = question.default_answer
    if not default.chosen:
        raise ValueError("a question without a default can only be answered")
    try:
        found = _compat.write_answer(ti_id, list(default.chosen), dict(default.params))
    except Exception:
        # A conflict, if somebody has answered; whatever it is, what is stored now tells.
        answer = read_answer(ti_id)
        if answer is None:
            raise
        return answer
    if found is None:
        raise UnreadableAnswerError("Airflow takes no answers here; in dag.test() it does not")
    return _answer(found)


def resumed_answer(event: Mapping[str, Any] | None) -> HumanAnswer | None:
    """Return the answer if Airflow itself resumed the task because of it (3.3); ``None`` for other events."""
    if not event or "chosen_options" not in event:
        return None
    user = event.get("responded_by_user") or {}
    return HumanAnswer.from_dict(
        {
            "chosen": event.get("chosen_options"),
            "params": event.get("params_input"),
            "by": user.get("name") or user.get("id"),
            "at": event.get("responded_at"),
        }
    )


def was_answered(ti_id: Any, state: str | None) -> bool:
    """Whether the end of a trigger is no kill: Airflow 3.3 resumed the task because a person answered.

    From inside a triggerer, for a trigger whose task has a question open. When a task is cleared its question
    moves to the next try's id, so that nothing is found here.

    :param ti_id: id of the task instance at the time at which it was deferred.
    :param state: its state now.
    """
    if state not in RESUMED_STATES:
        return False
    try:
        return read_answer(ti_id) is not None
    except Exception as error:
        if isinstance(error, UnreadableAnswerError) or _compat.is_not_found(error):
            return False
        raise


def question_url(ti: Any) -> str | None:
    """Return the page on which people answer; ``None`` if ``[api] base_url`` is not set."""
    base = _compat.base_url()
    if base is None:
        return None
    path = "/".join(
        f"{kind}/{quote(str(name), safe='')}"
        for kind, name in (("dags", ti.dag_id), ("runs", ti.run_id), ("tasks", ti.task_id))
    )
    index = getattr(ti, "map_index", None)
    mapped = "" if index is None or index < 0 else f"/mapped/{index}"
    return f"{base}/{path}{mapped}/required_actions"


def _answer(found: Any) -> HumanAnswer:
    user = found.responded_by_user
    return HumanAnswer(
        chosen=tuple(found.chosen_options or ()),
        params=dict(found.params_input or {}),
        by=None if user is None else user.name or user.id,
        at=found.responded_at,
    )


def _params(question: Question) -> dict[str, Any]:
    if _compat.questions_describe_params():
        return {name: dict(value) for name, value in question.params.items()}
    return {name: value.get("value") for name, value in question.params.items()}
