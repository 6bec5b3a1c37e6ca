"""``airflow-amt check``: everything that the operator would refuse, without running anything.

A request, or each tuning operator of a DAG file, goes through the very check that
:class:`airflow_amt.operators.tuning.AmtTuningJobOperator` makes before its first call. Templates that need
nothing but the DAG's parameters are rendered with their defaults; what depends on another template is
reported as not checked, never as a problem.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.text import amount, numbered, shown
from airflow_amt.tuning.request import check_documented_rules, is_endless
from airflow_amt.tuning.templates import decided, is_template, templated_fields

if TYPE_CHECKING:
    from airflow_amt.operators.tuning import AmtTuningJobOperator

#: Version of what ``--json`` prints.
REPORT_VERSION = 1

#: Of an SLA that Airflow keeps only the place is checked.
_KEPT = ("variable:", "connection:")

#: Mapped task instances of one operator that are looked at.
_MOST_MAPPED = 1000

_ENDLESS = (
    "neither max_training_jobs nor max_runtime limits this tuning job: other criteria may never be met. "
    "Set one of the two in criteria"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found about one request.

    :param where: the file, or DAG, task and map index.
    :param problems: what the operator would refuse.
    :param not_checked: fields with a template that cannot be rendered here, or whose content Airflow keeps,
        and what they hold.
    :param warnings: what it would take but say a word about.
    """

    where: str
    problems: list[AmtFieldError] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings, JSON-safe."""
        return {
            "where": self.where,
            "problems": [
                {
                    "field": problem.field,
                    "value": _json_safe(problem.value),
                    "limit": problem.limit,
                    "fix": problem.fix,
                }
                for problem in self.problems
            ],
            "not_checked": self.not_checked,
            "warnings": self.warnings,
        }


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``check``."""
    check = subparsers.add_parser(
        "check",
        help="check a request, or the tuning operators of a DAG file",
        description=(
            "Check a CreateHyperParameterTuningJob request (JSON) or all tuning operators of a DAG file, as "
            "the operator does before its first call: the service model and the documented rules. Nothing is "
            "sent. Templates are rendered with the defaults of the DAG's parameters; what needs more is "
            "listed as not checked. Exit codes: 0 no problem, 1 problems, 2 the file cannot be read."
        ),
    )
    check.add_argument("file", type=Path, help="request.json or dag.py")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Check a file; return the exit code.

    :raises AmtFieldError: the file cannot be read.
    """
    path: Path = arguments.file
    readers: dict[str, Callable[[Path], list[Findings]]] = {".json": check_json, ".py": check_dag_file}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise AmtFieldError("file", str(path), "a .json or .py file", "give a request or a DAG file")
    if not path.is_file():
        raise AmtFieldError("file", str(path), "a file that exists", "check the path")
    # Airflow, and the DAG file itself, may print.
    with contextlib.redirect_stdout(sys.stderr):
        found = reader(path)
    if arguments.json:
        ok = not any(one.problems for one in found)
        report = {"version": REPORT_VERSION, "file": str(path), "ok": ok}
        print(json.dumps({**report, "checked": [one.to_dict() for one in found]}, indent=2))
    else:
        _print(path, found)
    return 1 if any(one.problems for one in found) else 0


def check_json(path: Path) -> list[Findings]:
    """Check a request in a JSON file.

    :raises AmtFieldError: it is no JSON.
    """
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AmtFieldError("file", str(path), f"a file with valid JSON ({error})", "correct it") from None
    from airflow_amt.operators.tuning import AmtTuningJobOperator

    operator = AmtTuningJobOperator(task_id="check", config=config)
    return [_check(operator, str(path), "check")]


def check_dag_file(path: Path) -> list[Findings]:
    """Check all tuning operators of a DAG file, mapped ones for each value that is known here.

    :raises AmtFieldError: Airflow cannot import it.
    """
    from airflow_amt import _compat

    dags, errors = _compat.import_dags(str(path.absolute()))
    if errors:
        raise AmtFieldError(
            "file", str(path), f"a file that Airflow can import ({_last_line(errors)})", "correct it"
        )
    return [
        _check(operator, where, dag_id)
        for dag_id, dag in dags.items()
        for operator, where in _tuning_operators(dag)
    ]


def _last_line(errors: Mapping[str, str]) -> str:
    text = " ".join(errors.values()).strip()
    # An error of ours has lines of its own, one a field; what is before it is a traceback.
    _, found, ours = text.rpartition("AmtRequestError: ")
    return ours if found else text.splitlines()[-1]


def _tuning_operators(dag: Any) -> Iterator[tuple[AmtTuningJobOperator, str]]:
    from airflow_amt.operators.tuning import AmtTuningJobOperator

    for task in dag.tasks:
        where = f"{dag.dag_id}.{task.task_id}"
        if isinstance(task, AmtTuningJobOperator):
            yield task, where
        elif task.is_mapped and issubclass(task.operator_class, AmtTuningJobOperator):
            for number, values in enumerate(islice(_mapped_values(task), _MOST_MAPPED)):
                yield task.unmap(values), f"{where}[{number}]"


def _mapped_values(task: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each mapped task instance; templates stand for what another task gives."""
    given = task._get_specified_expand_input().value
    if isinstance(given, Mapping):
        keys = list(given)
        values = [_listed(given[key], key) for key in keys]
        for combination in product(*values):
            yield _known(dict(zip(keys, combination, strict=True)))
    elif isinstance(given, Sequence):
        for one in given:
            yield _known(dict(one) if isinstance(one, Mapping) else {})
    else:  # all of the arguments are another task's result
        yield {} if "config" in task.partial_kwargs else {"config": "{{ expand_kwargs }}"}


def _listed(value: Any, key: str) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(value) if isinstance(value, (list, tuple)) else ["{{ expand(" + key + ") }}"]


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what Airflow itself would refuse to be a template: arguments of any operator."""
    from airflow_amt.operators.tuning import AmtTuningJobOperator

    ours = inspect.signature(AmtTuningJobOperator.__init__).parameters
    return {key: value for key, value in values.items() if key in ours or not is_template(value)}


def _check(operator: AmtTuningJobOperator, where: str, dag_id: str) -> Findings:
    from airflow_amt.tuning import Owner

    _render(operator)
    arguments = {name: getattr(operator, name) for name in operator.template_fields}
    request: dict[str, Any] = {}
    owner = Owner(dag_id=dag_id, run_id="check", task_id=operator.task_id, map_index=-1)
    problems: Sequence[AmtFieldError] = ()
    try:
        request = operator._checked(owner, read_policies=False).request
    except AmtRequestError as error:
        problems = error.problems
        request, _ = operator._request(owner, [])
    documented = {problem.field for problem in check_documented_rules(request)}
    found = [
        problem
        for problem in problems
        if (
            decided([problem], request)
            if problem.field in documented
            else not templated_fields(problem.value)
        )
    ]
    not_checked = {
        place.removeprefix("config."): _at(arguments, place) for place in templated_fields(arguments)
    }
    if isinstance(operator.policies, str) and operator.policies.strip().startswith(_KEPT):
        not_checked["policies"] = operator.policies
    warnings = []
    if request and is_endless(request) and not _may_be_limited(not_checked):
        warnings.append(_ENDLESS)
    return Findings(where=where, problems=found, not_checked=not_checked, warnings=warnings)


def _may_be_limited(not_checked: Mapping[str, str]) -> bool:
    """Whether a template may render to a limit, or to what makes AMT set one."""
    parts = ("criteria", "config", "HyperParameterTuningJobConfig.ResourceLimits")
    whole = ("HyperParameterTuningJobConfig", "HyperParameterTuningJobConfig.Strategy", "Autotune")
    return any(
        place in whole or any(place == part or place.startswith((f"{part}.", f"{part}[")) for part in parts)
        for place in not_checked
        if not place.endswith("MaxParallelTrainingJobs")
    )


def _render(operator: AmtTuningJobOperator) -> None:
    """Render what needs the DAG's parameters only, with their defaults; make text of other tasks' results."""
    dag = operator.get_dag()
    environment = None if dag is None else dag.get_template_env()
    declared: Any = operator.params
    params = {key: declared.get_param(key).value for key in declared}
    for name in operator.template_fields:
        setattr(operator, name, _rendered(getattr(operator, name), environment, params))


def _rendered(value: Any, environment: Any, params: Mapping[str, Any]) -> Any:
    to_request = getattr(value, "to_request", None)
    if callable(to_request) and not hasattr(value, "merge_into"):
        value = to_request()
    if isinstance(value, Mapping):
        return {
            _rendered(key, environment, params): _rendered(item, environment, params)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_rendered(item, environment, params) for item in value]
    if hasattr(value, "resolve") and hasattr(value, "iter_references"):  # an XComArg: its text is a template
        return str(value)
    return _from_params(value, environment, params) if is_template(value) else value


def _from_params(text: str, environment: Any, params: Mapping[str, Any]) -> Any:
    """Render one template; one that needs more than the parameters, or is no template, stays as it is."""
    from jinja2 import TemplateError, meta

    if environment is None:
        return text
    try:
        if meta.find_undeclared_variables(environment.parse(text)) - {"params"}:
            return text
        return environment.from_string(text).render({"params": params})
    except TemplateError:
        return text


def _at(arguments: Mapping[str, Any], place: str) -> str:
    value: Any = arguments
    for key in place.replace("[", ".[").split("."):
        if isinstance(value, Mapping):
            value = value.get(key, key)
        elif isinstance(value, list) and key.startswith("["):
            value = value[int(key.strip("[]"))]
    return str(value)


def _json_safe(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _print(path: Path, found: Sequence[Findings]) -> None:
    if not found:
        print(f"{shown(path)}: no AmtTuningJobOperator found")
    for one in found:
        count = len(one.problems)
        verdict = (
            "no problem" if not count else "1 problem" if count == 1 else f"{amount(one.problems)} problems"
        )
        print(f"{shown(one.where)}: {verdict}{numbered(one.problems)}")
        for warning in one.warnings:
            print(f"  warning: {warning}.")
        for place, text in one.not_checked.items():
            why = "templated" if is_template(text) else "kept in Airflow"
            print(f"  not checked, {why}: {shown(place)}: {shown(text)}")
