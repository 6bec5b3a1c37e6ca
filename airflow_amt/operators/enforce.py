"""The operator that holds tuning jobs to stop policies that were created elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from airflow.sdk import BaseOperator

from airflow_amt._lazy_hook import LazyHook
from airflow_amt._tasks import CONNECTION_FIELDS, require_name, sla_to_json
from airflow_amt.exceptions import AmtFieldError, AmtRequestError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt.tuning.policies import Sla
    from airflow_amt.watch.enforcing import EnforceReport, Selection

#: What to do about a name of which there is no tuning job.
OnMissing = Literal["fail", "succeed"]
_ON_MISSING: tuple[OnMissing, ...] = get_args(OnMissing)

#: Lengths of tags (SageMaker API, ``Tag``).
_LONGEST_TAG_KEY = 128
_LONGEST_TAG_VALUE = 256


class AmtEnforcePolicyOperator(LazyHook, BaseOperator):
    """Look once at tuning jobs that were created elsewhere, and stop those that break a stop policy.

    Purpose: hold jobs to an SLA for which no task of this provider waits (notebooks, SDKs, other schedulers):
    by name, by a part of the name, by tags. Run it in a DAG of its own, every five minutes or so.

    How it works: of the tuning jobs in progress that are selected, each is described and judged by the same
    code as in ``AmtTuningJobOperator(policies=...)``. A job that is stopped carries
    ``airflow-amt:stopped-by = policy`` and the evidence; what people were warned of is in its tags, too, so
    that the next run does not warn again. The SLA is read once, at the start.

    What fails for one job keeps no other from being looked at; the task fails in the end, and a retry looks
    at all of them again. A rule with ``stop_and_fail`` that ended a job fails the task without a retry.

    Known limitations: a rule that asks people is refused, as nobody waits for the answer. Without
    ``sagemaker:ListTags`` and ``AddTags`` each run warns again. If this task is killed right after a stop,
    its retry does not count that job, which is over then; the job's own tags tell.

    Returns ``{"version", "dry_run", "in_progress", "matched", "breached", "stopped", "warned", "kept",
    "jobs", "jobs_not_listed", "missing", "errors"}``. ``breached`` counts the jobs that a rule demands to
    stop, ``stopped`` those that this run stopped: others ended meanwhile, or it is a dry run. ``jobs`` lists
    50 at most, those that break a rule first, each with ``tuning_job_name``, ``action`` (``stop``,
    ``stop_and_fail``, ``warn`` or ``None``), ``rule``, ``code``, ``share``, ``reason`` and ``stopped``;
    ``missing``, the names without a tuning job.

    At least one of the four selectors is needed, and all that are given must hold. ``None``, and an empty
    text, is one that is not given; an empty list of names selects nothing.

    :param policies: stop policies, as :class:`airflow_amt.operators.tuning.AmtTuningJobOperator` takes them:
        in the code, or ``"variable:<key>"``, ``"connection:<id>"`` (templated).
    :param tuning_job_names: one name or a list, or text with commas or a JSON list (templated).
    :param name_prefix: how names begin (templated). Case does not matter, as for AWS.
    :param name_contains: what names contain (templated), likewise.
    :param tags: tags that a job must have, by key; the value ``None`` stands for any (templated; also the
        JSON text of that). Costs a ListTags for each job in progress whose name is selected.
    :param enforce: stop jobs and warn; ``False`` is a dry run, which only judges (templated). Not called
        ``dry_run``, which is a method of every operator.
    :param on_missing: ``fail`` makes a name without a tuning job an error; default ``succeed``: it is told. A
        job that is over is told, and left alone.
    :param on_policy_callback: a callable, a notifier or a list of them, called like Airflow's callbacks, with
        the context, in which ``policy`` holds a report: on each warning that was not told before, and on each
        stop that this run made.
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :raises AmtRequestError: an argument cannot be used, or there is no SLA that could be.
    :raises AmtEnforceError: some jobs could not be judged or stopped; all others were. Carries the result,
        which is in XCom as ``return_value`` too.
    :raises AmtPolicyBroken: a job was stopped by a rule with ``stop_and_fail``; likewise; no retry.
    """

    template_fields: Sequence[str] = (
        "policies",
        "tuning_job_names",
        "name_prefix",
        "name_contains",
        "tags",
        "enforce",
        "on_missing",
        *CONNECTION_FIELDS,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"policies": "json", "tags": "json"}
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        policies: Any,
        tuning_job_names: str | Sequence[str] | None = None,
        name_prefix: str | None = None,
        name_contains: str | None = None,
        tags: Mapping[str, str | None] | str | None = None,
        enforce: bool | str = True,
        on_missing: OnMissing = "succeed",
        on_policy_callback: Any = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # As Airflow can render, show and store it.
        self.policies = policies if isinstance(policies, (str, dict)) else sla_to_json(policies)
        self.tuning_job_names = tuning_job_names
        self.name_prefix = name_prefix
        self.name_contains = name_contains
        self.tags = tags
        self.enforce = enforce
        self.on_missing = on_missing
        self.on_policy_callback = on_policy_callback
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self._killed = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Look at all tuning jobs that are selected, and stop those that are to end."""
        from airflow_amt.task_exceptions import AmtEnforceError, AmtPolicyBroken

        report = self._enforce(context)
        result = report.to_dict()
        if report.to_fail or report.errors:
            context["ti"].xcom_push(key="return_value", value=result)
        if report.to_fail:
            # Before other errors: a retry would find these jobs over, and nothing to fail for.
            raise AmtPolicyBroken([one.to_dict() for one in report.to_fail], report.errors, result)
        if report.errors:
            raise AmtEnforceError(report.errors, result)
        return result

    def on_kill(self) -> None:
        """End after the job that is being looked at."""
        self._killed = True

    def _enforce(self, context: Context) -> EnforceReport:
        from airflow_amt._policing import AskSettings, Policing
        from airflow_amt.watch.enforcing import Enforcer

        sla, selection, enforce = self._checked()
        policing = Policing.of(
            # As it is now: all jobs of this run are judged by the same rules.
            sla,
            context=context,
            callbacks=self.on_policy_callback,
            ask=AskSettings(),
            deferrable=False,
            log=self.log,
        )
        if policing is None:
            raise ValueError("an SLA that was checked is none")
        return Enforcer(
            self.hook,
            lambda name: policing.guard(lambda: self.hook, name),
            selection=selection,
            dry_run=not enforce,
            log=self.log,
            tell=lambda report: policing.tell_report(context, report),
            missing_is_error=self.on_missing == "fail",
            cancelled=lambda: self._killed,
        ).run()

    def _checked(self) -> tuple[Sla, Selection, bool]:
        """Return the SLA, which jobs, and whether to stop them, if all arguments can be used.

        :raises AmtRequestError: they cannot; all that is wrong is listed.
        """
        problems: list[AmtFieldError] = []
        enforce = _parse_flag("enforce", self.enforce, problems)
        if self.on_missing not in _ON_MISSING:
            problems.append(
                AmtFieldError(
                    "on_missing",
                    self.on_missing,
                    f"one of {', '.join(_ON_MISSING)}",
                    "leave it out for a success",
                )
            )
        selection = self._selection(problems)
        sla = _parse_sla(self.policies, self.log, problems)
        if problems or sla is None:
            raise AmtRequestError(problems)
        return sla, selection, enforce

    def _selection(self, problems: list[AmtFieldError]) -> Selection:
        from airflow_amt.watch.enforcing import Selection

        before = len(problems)
        selection = Selection(
            names=_parse_names("tuning_job_names", self.tuning_job_names, problems),
            prefix=_parse_name_part("name_prefix", self.name_prefix, problems),
            contains=_parse_name_part("name_contains", self.name_contains, problems),
            tags=_parse_tags("tags", self.tags, problems),
        )
        if selection == Selection() and len(problems) == before:
            problems.append(
                AmtFieldError(
                    "tuning_job_names",
                    self.tuning_job_names,
                    "at least one of tuning_job_names, name_prefix, name_contains and tags",
                    "say which tuning jobs are held to the SLA",
                )
            )
        return selection


def _is_not_given(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def _parse_flag(field: str, value: Any, problems: list[AmtFieldError]) -> bool:
    words = {"true": True, "false": False}
    text = str(value).strip().lower() if isinstance(value, (bool, str)) else ""
    if text not in words:
        problems.append(AmtFieldError(field, value, "True or False", f"give {field} as True or False"))
    return words.get(text, False)


def _parse_sla(given: Any, log: Any, problems: list[AmtFieldError]) -> Sla | None:
    """Return the SLA, read from where it is kept, if no rule of it asks people."""
    from airflow_amt.hooks.sla import SlaReader, SlaSource
    from airflow_amt.tuning.policies import Action

    if _is_not_given(given):
        problems.append(
            AmtFieldError(
                "policies", given, "an SLA, or where Airflow keeps it", 'give "variable:nightly_sla"'
            )
        )
        return None
    try:
        sla = SlaReader(SlaSource.parse(given, path="policies"), log=log)()
    except AmtRequestError as error:
        problems.extend(error.problems)
        return None
    problems.extend(
        AmtFieldError(
            f"policies, rule {title}",
            Action.ASK.value,
            "warn, stop or stop_and_fail: nobody here waits for an answer of people",
            "wait for the job with AmtTuningJobOperator or AmtTuningJobSensor, which ask; or use warn",
        )
        for title, rule in zip(sla.titles, sla.rules, strict=True)
        if any(step.action is Action.ASK for step in rule.steps)
    )
    return sla


def _parse_names(field: str, value: Any, problems: list[AmtFieldError]) -> tuple[str, ...] | None:
    if _is_not_given(value):
        return None
    given = value
    if isinstance(value, str):
        text = value.strip()
        given = _from_json(text) if text.startswith("[") else [one.strip() for one in text.split(",")]
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        problems.append(
            AmtFieldError(
                field,
                value,
                "the name of a tuning job, or a list of names",
                "give a list, names separated by commas, or a template with | tojson",
            )
        )
        return ()
    names = []
    for position, one in enumerate(given):
        try:
            names.append(require_name(f"{field}[{position}]", one))
        except AmtRequestError as error:
            problems.extend(error.problems)
    return tuple(names)


def _parse_name_part(field: str, value: Any, problems: list[AmtFieldError]) -> str:
    from airflow_amt.operators.reap import parse_name_part

    text = value.strip() if isinstance(value, str) else value
    return parse_name_part(field, text, problems) or ""


def _parse_tags(field: str, value: Any, problems: list[AmtFieldError]) -> dict[str, str | None]:
    if _is_not_given(value):
        return {}
    given = _from_json(value) if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        problems.append(
            AmtFieldError(field, value, "a dict of tags", 'give {"team": "churn"}, or None for any value')
        )
        return {}
    tags: dict[str, str | None] = {}
    for key, one in given.items():
        if not isinstance(key, str) or not 1 <= len(key) <= _LONGEST_TAG_KEY:
            problems.append(
                AmtFieldError(
                    field, key, f"keys of 1 to {_LONGEST_TAG_KEY} characters", "give the key of a tag"
                )
            )
        elif one is not None and (not isinstance(one, str) or len(one) > _LONGEST_TAG_VALUE):
            problems.append(
                AmtFieldError(
                    f"{field}[{key!r}]",
                    one,
                    f"text of at most {_LONGEST_TAG_VALUE} characters, or None for any value",
                    "give the value of the tag as text",
                )
            )
        else:
            tags[key] = one
    return tags


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
