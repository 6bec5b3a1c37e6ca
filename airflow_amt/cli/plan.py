"""``airflow-amt plan``: what a tuning job can consume at most, before it is created, and whether it may."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.text import amount, numbered, shown, shown_lines

#: Version of what ``--json`` prints.
REPORT_VERSION = 1

#: Exit codes.
OK, REFUSED, BAD_INPUT = 0, 1, 2

#: Stand for what the operator finds out by itself: the name of the tuning job, and the account of a role.
_ANY_NAME, _ANY_ACCOUNT = "plan", "arn:aws:iam::000000000000:role/"
#: What the operator's config may have beside the request, as the Amazon provider's.
_NOT_SENT = "S3Operations"
_LIMITS = ("max_cost", "max_compute_seconds", "max_billable_seconds")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``plan``."""
    plan = subparsers.add_parser(
        "plan",
        help="say what a tuning job can cost at most, and refuse it above a limit",
        description=(
            "Read a CreateHyperParameterTuningJob request (JSON) and say what the tuning job can consume at "
            "most, where each bound comes from, and what is likely to end it. Nothing is sent. Exit codes: 0 "
            "fine, 1 a limit is exceeded, 2 the request, the prices or an option cannot be used."
        ),
    )
    plan.add_argument("request", metavar="REQUEST.json", help="the request; - reads standard input")
    plan.add_argument("--prices", metavar="FILE", help="price table (see airflow-amt prices)")
    plan.add_argument(
        "--expected-training-time",
        type=float,
        metavar="SECONDS",
        help="how long one training job is expected to take",
    )
    plan.add_argument("--max-cost", type=float, metavar="X", help="most money, in the price table's currency")
    plan.add_argument("--max-compute-seconds", type=float, metavar="X", help="most instance-seconds")
    plan.add_argument("--max-billable-seconds", type=float, metavar="X", help="most billed instance-seconds")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Plan, check the limits, and tell; return the exit code.

    :raises AmtFieldError: a file cannot be read.
    """
    from airflow_amt.tuning.costs import PriceTable
    from airflow_amt.tuning.planning import check_plan, plan

    request = read_request(arguments.request)
    problems = request_problems(request)
    if problems:
        return _bad_input(arguments, problems)
    if arguments.max_cost is not None and arguments.prices is None:
        raise AmtFieldError(
            "--max-cost", arguments.max_cost, "it needs the prices", "give a price table with --prices"
        )
    try:
        prices = None
        if arguments.prices is not None:
            prices = PriceTable.parse(read_json(arguments.prices, "--prices"), path=arguments.prices)
        with _named_as_options():
            made = plan(request, prices=prices, expected_training_seconds=arguments.expected_training_time)
            exceeded = check_plan(
                made,
                max_compute_seconds=arguments.max_compute_seconds,
                max_billable_seconds=arguments.max_billable_seconds,
                max_cost=arguments.max_cost,
            )
    except AmtRequestError as error:
        return _bad_input(arguments, error.problems)
    if arguments.json:
        _print_json(not exceeded, exceeded, made.to_dict())
    else:
        print(shown_lines(made, 100_000))
    print_problems(f"{arguments.request}: refused", exceeded)
    return REFUSED if exceeded else OK


def read_json(path: str, field: str) -> Any:
    """Read a JSON file; ``-`` is standard input.

    :param field: the argument, for errors.
    :raises AmtFieldError: it cannot be read, or is no JSON.
    """
    try:
        text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return json.loads(text)
    except OSError as error:
        raise AmtFieldError(
            field, path, f"a file that can be read ({error.strerror})", "check the path"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AmtFieldError(field, path, f"valid JSON ({error})", "correct it") from None


def read_request(path: str) -> dict[str, Any]:
    """Read a request, its scalars in the types of the API.

    :raises AmtFieldError: it cannot be read, or is no JSON object.
    """
    from airflow_amt.service_model import coerce

    given = read_json(path, "REQUEST.json")
    if not isinstance(given, dict):
        raise AmtFieldError("REQUEST.json", path, "a JSON object", "give CreateHyperParameterTuningJob's")
    given.pop(_NOT_SENT, None)
    return coerce("CreateHyperParameterTuningJob", given)


def request_problems(request: Mapping[str, Any]) -> list[AmtFieldError]:
    """List what AWS would refuse; a missing name and roles by name are not, as the operator sees to them."""
    from airflow_amt.service_model import check_create_request
    from airflow_amt.tuning.request import training_job_definitions

    checked = {"HyperParameterTuningJobName": _ANY_NAME, **deepcopy(dict(request))}
    for _, definition in training_job_definitions(checked):
        role = definition.get("RoleArn")
        if isinstance(definition, dict) and isinstance(role, str) and role and not {"/", ":"} & set(role):
            definition["RoleArn"] = f"{_ANY_ACCOUNT}{role}"
    return check_create_request(checked)


def print_problems(where: str, problems: Sequence[AmtFieldError]) -> None:
    """Print problems, numbered, to standard error."""
    if not problems:
        return
    told = f"{shown(where)}: {amount(problems)} problem{'s' if len(problems) > 1 else ''}"
    print(f"airflow-amt: {told}{numbered(problems)}", file=sys.stderr)


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Let errors name the command line's options in place of the arguments of Python."""
    options = {
        "expected_training_seconds": "--expected-training-time",
        **{name: f"--{name.replace('_', '-')}" for name in _LIMITS},
    }
    try:
        yield
    except AmtRequestError as error:
        raise AmtRequestError(
            AmtFieldError(options.get(one.field, one.field), one.value, one.limit, one.fix)
            for one in error.problems
        ) from None


def _bad_input(arguments: argparse.Namespace, problems: Sequence[AmtFieldError]) -> int:
    if arguments.json:
        _print_json(False, problems, None)
    print_problems(arguments.request, problems)
    return BAD_INPUT


def _print_json(ok: bool, problems: Sequence[AmtFieldError], made: dict[str, Any] | None) -> None:
    from airflow_amt.cli.check import Findings

    listed = Findings(where="", problems=list(problems)).to_dict()["problems"]
    print(json.dumps({"version": REPORT_VERSION, "ok": ok, "problems": listed, "plan": made}, indent=2))
