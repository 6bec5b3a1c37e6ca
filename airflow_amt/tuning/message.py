"""A compact message about a tuning job, for people: from an outcome, a policy report, or the state of a task.

Pure text. Whatever is missing, ``None`` or no sensible value is left out; a message is never about nothing
and never longer than :data:`MAX_TEXT`. The same lines serve e-mail (:func:`as_html`), Slack
(:func:`as_mrkdwn`) and plain text.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_amt.text import visible

#: Longest subject. SNS takes "less than 100 characters" without line breaks (API, ``Publish``).
MAX_SUBJECT = 99
#: Longest line of prose. Reasons and errors of training jobs may hold pages.
MAX_LINE = 300
#: Longest address that is shown: a cut one leads nowhere, so that a longer one is left out.
MAX_URL = 1000
#: Four lines of prose and two with a link, their labels and the line breaks.
MAX_TEXT = 4 * (MAX_LINE + 1) + 2 * (MAX_URL + 20)

_MAX_NAME = 80

_SYMBOLS = {"EUR": "€", "USD": "$", "GBP": "£"}
_WITHOUT_CENTS = frozenset({"JPY", "KRW"})

_STATUS_WORDS = {
    "Completed": "completed",
    "Stopped": "was stopped",
    "Stopping": "is being stopped",
    "Failed": "failed",
    "InProgress": "is running",
    "Deleting": "is being deleted",
    "DeleteFailed": "could not be deleted",
}
_TASK_WORDS = {
    "success": "succeeded",
    "failed": "failed",
    "skipped": "was skipped",
    "up_for_retry": "failed and will be retried",
    "upstream_failed": "was not run",
    "removed": "was removed",
}
#: How a unit of :mod:`airflow_amt.tuning.costs` is called behind a time span.
_UNIT_WORDS = {"compute_seconds": "compute", "billable_seconds": "billed compute"}


@dataclass(frozen=True, slots=True)
class Message:
    """What is told.

    :param subject: one line of :data:`MAX_SUBJECT` characters at the most.
    :param text: one to six lines, :data:`MAX_TEXT` characters at the most.
    """

    subject: str
    text: str


def compact_message(facts: Mapping[str, Any]) -> Message:
    """Return a message about a tuning job.

    :param facts: the dict of an outcome (:meth:`airflow_amt.tuning.TuningOutcome.to_dict`) or of a progress,
        or a policy report: ``action``, ``rule``, ``code``, ``share``, ``reason``, ``best_objective``,
        ``training_jobs`` (``launched``, ``ended``, ``failed``, ``limit``), ``consumed`` (``spent``,
        ``limit``, ``unit`` as of a budget, ``currency``), ``saving`` (``training_jobs``, ``cost`` and
        ``currency``, ``compute_seconds``, ``billable_seconds``). Beside either ``dag_id``, ``run_id``,
        ``task_id``, ``map_index``, ``task_state``, ``try_number``, ``max_tries``, ``exception``,
        ``run_reason`` (why a DAG run ended), ``missed_deadline`` (of a DAG run), ``console_url``,
        ``airflow_url``. Any may be missing.
    """
    subject, headline = _headline(facts)
    prose = [headline, _result(facts), _resources(facts), _where(facts, has_headline=bool(headline))]
    lines = [_cut(line, MAX_LINE) for line in prose if line]
    if not lines:
        lines = ["A tuning job has news, and nothing is known about it."]
    subject = subject or "News of a tuning job"
    for label, key in (("AWS console", "console_url"), ("Airflow", "airflow_url")):
        url = _url(facts.get(key))
        if url:
            lines.append(f"{label}: {url}")
    return Message(subject=_cut(subject, MAX_SUBJECT), text="\n".join(lines))


def as_html(text: str) -> str:
    """Return a message's text as HTML: escaped, its line breaks kept, its links clickable."""
    lines = []
    for line in text.split("\n"):
        label, separator, url = line.partition(": ")
        if separator and _url(url):
            lines.append(f'{html.escape(label)}: <a href="{html.escape(url)}">{html.escape(url)}</a>')
        else:
            lines.append(html.escape(line))
    return "<br>\n".join(lines)


def as_mrkdwn(text: str) -> str:
    """Return a message's text for Slack, in which ``&``, ``<`` and ``>`` have a meaning.

    Escaped, none of what AWS or a training job wrote can mention ``<!channel>`` or pretend a link.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- numbers -----------------------------------------------------------------------------------


def number_text(value: Any) -> str:
    """Return a number with 6 significant digits at the most; empty if it is none."""
    number = _number(value)
    if number is None:
        return ""
    if number == int(number) and abs(number) < 1e6:
        return f"{int(number):,}"
    return f"{number:.6g}"


def money_text(value: Any, currency: Any = None) -> str:
    """Return an amount of money with its currency, as ``€31.20``, ``$1,250`` or ``12.50 CHF``.

    Cents are shown below 10,000, and not if there are none.
    """
    number = _number(value)
    if number is None:
        return ""
    code = _text(currency, 12)
    size = abs(number)
    if 0 < size < 0.005:
        amount = f"{size:.2g}"
    elif size >= 1e6:
        amount = f"{float(f'{size:.6g}'):,.0f}" if size < 1e15 else f"{size:.6g}"
    else:
        amount = f"{size:,.{0 if size >= 1e4 or code.upper() in _WITHOUT_CENTS else 2}f}".removesuffix(".00")
    sign = "-" if number < 0 and amount != "0" else ""
    symbol = _SYMBOLS.get(code.upper())
    if symbol:
        return f"{sign}{symbol}{amount}"
    return f"{sign}{amount} {code}".rstrip()


def duration_text(seconds: Any) -> str:
    """Return a time span in its two largest units, as ``3 h 20 min``; empty if it is no number from 0."""
    number = _number(seconds)
    if number is None or number < 0:
        return ""
    if number < 10 and number != int(number):
        return f"{number:.2g} s"
    whole = round(number)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 86400:
        minutes = round(whole / 60)
        return _two(minutes // 60, "h", minutes % 60, "min") if minutes < 1440 else "1 d"
    hours = round(whole / 3600)
    return _two(hours // 24, "d", hours % 24, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{number_text(large)} {large_unit}" + (f" {small} {small_unit}" if small else "")


# --- lines -------------------------------------------------------------------------------------


def _headline(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return the subject and the first line; both empty if nothing is known of a tuning job."""
    name = _text(facts.get("tuning_job_name"), _MAX_NAME)
    job = f"Tuning job {name}" if name else "A tuning job"
    action = _text(facts.get("action"), _MAX_NAME)
    status = _text(facts.get("status"), _MAX_NAME)
    if action:
        rule = _text(facts.get("rule"), _MAX_NAME) or _text(facts.get("code"), _MAX_NAME)
        policy = f"policy {rule}" if rule else "a policy"
        said = _policy_sentence(facts, action, status, policy)
        return f"{job} {said}", _with_detail(f"{job} {said}", _policy_detail(facts))
    if status:
        words = _STATUS_WORDS.get(status, f"is {status}")
        reason = _text(facts.get("reason"), _MAX_NAME).replace("_", " ")
        subject = f"{job} {words}" + (f": {reason}" if reason and reason not in ("unknown", "failed") else "")
        condition = _mapping(facts.get("condition"))
        detail = (
            _text(facts.get("explanation"), MAX_LINE)
            or _text(condition.get("reason"), MAX_LINE)
            or _text(facts.get("failure_reason"), MAX_LINE)
        )
        # The headline has said the first half of "The tuning job failed: ..." already.
        detail = detail.removeprefix(f"The tuning job {words}: ")
        return subject, _with_detail(f"{job} {words}", detail)
    run = _run_sentence(facts)
    if run:
        return run, _with_detail(run + (f", {job[0].lower()}{job[1:]}" if name else ""), "")
    task = _task_sentence(facts)
    if task:
        return task, _with_detail(
            task + (f", {job[0].lower()}{job[1:]}" if name else ""), _error(facts, MAX_LINE)
        )
    if name:
        reason = _text(facts.get("reason"), MAX_LINE) or _text(facts.get("explanation"), MAX_LINE)
        return job, _with_detail(job, reason)
    return "", ""


def _policy_sentence(facts: Mapping[str, Any], action: str, status: str, policy: str) -> str:
    share = _number(facts.get("share"))
    used = "" if share is None else f"{number_text(round(min(share, 1e6) * 100))} % of the limit of "
    match action:
        case "warn":
            return f"has used {used}{policy}" if used else f"has a warning of {policy}"
        case "ask":
            return f"waits for an answer to {policy}"
        case "stop" | "stop_and_fail":
            done = "is being stopped by" if status in ("InProgress", "Stopping") else "stopped by"
            return f"{done} {policy}" + (", which fails the task" if action == "stop_and_fail" else "")
    return f"has {action.replace('_', ' ')} of {policy}"


def _policy_detail(facts: Mapping[str, Any]) -> str:
    spent = _spent(facts) if _is_budget(facts) else ""
    return spent or _text(facts.get("reason"), MAX_LINE)


def _is_budget(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("action")) and "budget" in (facts.get("code"), facts.get("rule"))


def _result(facts: Mapping[str, Any]) -> str:
    """Say what there is to show for it: best objective, training jobs, their failures."""
    ended, failed, limit = _training_jobs(facts)
    best_job = _mapping(facts.get("best_training_job"))
    best = number_text(facts.get("best_objective")) or number_text(best_job.get("objective"))
    metric = _text(facts.get("objective_metric"), _MAX_NAME) or "objective"
    parts = []
    done = ""
    if ended is not None:
        of = "" if limit is None else f" of {limit:,}"
        done = f"{ended:,}{of} training job{'' if (limit or ended) == 1 else 's'}"
    if best:
        parts.append(f"Best {metric} {best}" + (f" after {done}" if done else ""))
    elif done:
        parts.append(f"No objective after {done}")
    if failed:
        parts.append(f"{failed:,} failed{_most_frequent(facts)}")
    return _sentence(", ".join(parts))


def _training_jobs(facts: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Return how many training jobs ended, failed, and are the limit."""
    told = _mapping(facts.get("training_jobs"))
    counters = _mapping(facts.get("training_job_counters"))
    ended = _count(told.get("ended"))
    failed = _count(told.get("failed"))
    if counters:
        by = {key: _count(counters.get(key)) or 0 for key in counters}
        errors = by.get("RetryableError", 0) + by.get("NonRetryableError", 0)
        ended = by.get("Completed", 0) + errors + by.get("Stopped", 0) if ended is None else ended
        failed = errors if failed is None else failed
    if ended is None:
        ended = _count(told.get("launched"))
    limit = _count(told.get("limit"))
    if limit is None:
        limit = _count(facts.get("max_training_jobs"))
    evidence = _mapping(facts.get("evidence"))
    if limit is None and str(evidence.get("field")).endswith("MaxNumberOfTrainingJobs"):
        limit = _count(evidence.get("limit"))
    return ended, failed, limit


def _most_frequent(facts: Mapping[str, Any]) -> str:
    reasons = facts.get("training_job_failure_reasons")
    if not isinstance(reasons, Sequence) or isinstance(reasons, str) or not reasons:
        return ""
    first = _text(_mapping(reasons[0]).get("reason"), 120)
    return f" ({first})" if first else ""


def _resources(facts: Mapping[str, Any]) -> str:
    """Say what was consumed and what was saved."""
    parts = []
    spent = "" if _is_budget(facts) else _spent(facts)
    if spent:
        parts.append(spent)
    runtime = duration_text(facts.get("runtime_seconds"))
    if runtime:
        parts.append(f"It ran for {runtime}")
    saved = _saved(facts)
    if saved:
        parts.append(saved)
    return " ".join(_sentence(part) for part in parts)


def _spent(facts: Mapping[str, Any]) -> str:
    consumed = _mapping(facts.get("consumed"))
    unit, currency = _text(consumed.get("unit"), _MAX_NAME), consumed.get("currency")
    spent = _amount(consumed.get("spent"), unit, currency)
    limit = _amount(consumed.get("limit"), unit, currency)
    if not spent:
        return ""
    what = f" of {_UNIT_WORDS[unit]}" if unit in _UNIT_WORDS else ""
    return f"{spent} of {limit}{what} spent" if limit else f"{spent}{what} spent"


def _amount(value: Any, unit: str, currency: Any) -> str:
    return duration_text(value) if unit in _UNIT_WORDS else money_text(value, currency)


def _saved(facts: Mapping[str, Any]) -> str:
    saving = _mapping(facts.get("saving"))
    jobs = _count(saving.get("training_jobs"))
    parts = [f"{jobs:,} training job{'' if jobs == 1 else 's'}"] if jobs else []
    money = _number(saving.get("cost"))
    currency = saving.get("currency") or _mapping(facts.get("consumed")).get("currency")
    compute = next(
        (
            f"{duration_text(saving.get(unit))} of {word}"
            for unit, word in reversed(_UNIT_WORDS.items())
            if (_number(saving.get(unit)) or 0.0) > 0
        ),
        "",
    )
    # An amount behind "about 160 training jobs" reads as money only with its currency.
    extra = money_text(money, currency) if money is not None and money > 0 and currency else compute
    if extra:
        parts.append(f"({extra})" if parts else extra)
    return f"Saved about {' '.join(parts)}" if parts else ""


def _where(facts: Mapping[str, Any], *, has_headline: bool) -> str:
    """Say where in Airflow, and how the task ended; what the headline has said is not repeated."""
    run_id = _text(facts.get("run_id"), 120)
    told_of_job = _text(facts.get("action"), 1) or _text(facts.get("status"), 1)
    if has_headline and not told_of_job:
        return f"Run {run_id}." if run_id and not _run_sentence(facts) else ""
    sentence = _run_sentence(facts)
    error = ""
    if not sentence:
        sentence = _task_sentence(facts)
        error = _error(facts, 160)
        if run_id:
            sentence = f"{sentence}, run {run_id}" if sentence else f"Run {run_id}"
    return _with_detail(sentence, error) if sentence or error else ""


def _run_sentence(facts: Mapping[str, Any]) -> str:
    """Return how a DAG run ended; empty where the facts are of a task."""
    reason, deadline = _text(facts.get("run_reason"), 120), _text(facts.get("missed_deadline"), 40)
    if not reason and not deadline:
        return ""
    dag_id, run_id = _text(facts.get("dag_id"), _MAX_NAME), _text(facts.get("run_id"), 120)
    subject = f"DAG {dag_id}" if dag_id else "A DAG run"
    ended = "succeeded" if reason == "success" else f"ended: {reason.replace('_', ' ')}"
    ended = ended if reason else f"missed its deadline of {deadline}"
    return f"{subject} {ended}" + (f", run {run_id}" if run_id else "")


def _task_sentence(facts: Mapping[str, Any]) -> str:
    task_id, dag_id = _text(facts.get("task_id"), _MAX_NAME), _text(facts.get("dag_id"), _MAX_NAME)
    if not task_id:
        return f"DAG {dag_id}" if dag_id else ""
    index = _count(facts.get("map_index"))
    sentence = f"Task {task_id}" + ("" if index is None else f"[{index}]")
    sentence += f" of DAG {dag_id}" if dag_id else ""
    state = _TASK_WORDS.get(_text(facts.get("task_state"), _MAX_NAME))
    if state is None:
        return sentence
    tries, most = _count(facts.get("try_number")), _count(facts.get("max_tries"))
    retries = most is not None and most > 1 and tries and "failed" in state
    return f"{sentence} {state}" + (f" (try {tries} of {most})" if retries else "")


def _error(facts: Mapping[str, Any], limit: int) -> str:
    return _text(facts.get("exception"), limit)


# --- values ------------------------------------------------------------------------------------


def _text(value: Any, limit: int) -> str:
    """Return a value as text on one line; empty for none, and for what a template renders for none.

    White space becomes one space; what else cannot be seen becomes an escape.
    """
    if value is None or isinstance(value, (Mapping, bytes, float, list, tuple, set)):
        return ""
    text = visible(" ".join(str(value)[: 20 * limit].split()))
    return "" if text == "None" else _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def _sentence(text: str) -> str:
    return text if not text or text[-1] in ".!?…" else f"{text}."


def _with_detail(text: str, detail: str) -> str:
    return _sentence(": ".join(part for part in (text, detail) if part))


def _url(value: Any) -> str:
    """Return a web address that can stand in a line as it is; else nothing."""
    if isinstance(value, str) and len(value) <= MAX_URL and re.fullmatch(r"https?://[!-~]+", value):
        return value
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not 0 <= number < 1e9 else int(number)
