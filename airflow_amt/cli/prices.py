"""``airflow-amt prices``: make the price table of a region from AWS's price list."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtAwsError, AmtFieldError, AmtRequestError

#: Exit codes.
OK, AWS_ERROR, BAD_INPUT = 0, 1, 2


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``prices``."""
    prices = subparsers.add_parser(
        "prices",
        help="make a price table from AWS's price list",
        description=(
            "Ask AWS's Pricing API (pricing:GetProducts) what an hour of training costs on demand in a "
            "region, and write a price table for plans and budgets. Only the list price: no savings plan, no "
            "volume discount, no tax. Exit codes: 0 written, 1 AWS refused or did not answer, 2 an option "
            "cannot be used, or an instance type has no price."
        ),
    )
    prices.add_argument("--region", required=True, metavar="NAME", help="AWS region of the training jobs")
    prices.add_argument(
        "--instance-type",
        action="append",
        default=[],
        metavar="TYPE",
        help="only this one, as ml.m5.xlarge; may be given more than once (default: all of the region)",
    )
    prices.add_argument(
        "--request", metavar="REQUEST.json", help="only what this request may run on; - reads standard input"
    )
    prices.add_argument(
        "--spot-discount",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share that managed spot training is expected to save, as 0.6; goes into the table (default: 0)",
    )
    prices.add_argument("--output", metavar="FILE", help="where to write it (default: standard output)")
    prices.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration")
    prices.add_argument("--endpoint-url", metavar="URL", help="another endpoint of the Pricing API")
    prices.set_defaults(run=run_prices)


def run_prices(arguments: argparse.Namespace) -> int:
    """Ask, make the table, and write it; return the exit code.

    :raises AmtFieldError: an option cannot be used.
    """
    from airflow_amt.cli.plan import print_problems
    from airflow_amt.hooks.pricing import AwsPriceList
    from airflow_amt.tuning.price_list import price_table

    if not 0 <= arguments.spot_discount < 1:
        raise AmtFieldError(
            "--spot-discount", arguments.spot_discount, "a share from 0 to below 1", "give 0.6 for 60 % off"
        )
    wanted = _wanted(arguments)
    try:
        source = AwsPriceList(
            arguments.region, profile=arguments.profile, endpoint_url=arguments.endpoint_url
        )
        made = price_table(
            source.products(),
            region=arguments.region,
            instance_types=wanted,
            spot_discount=arguments.spot_discount,
        )
    except AmtRequestError as error:
        print_problems("prices", error.problems)
        return BAD_INPUT
    except AmtAwsError as error:
        print(f"airflow-amt: {error}", file=sys.stderr)
        return AWS_ERROR
    for kind, prices in made.ambiguous.items():
        listed = ", ".join(f"{price:g}" for price in prices)
        print(
            f"airflow-amt: {kind} has several prices ({listed}); the highest is taken",
            file=sys.stderr,
        )
    published = f", published {made.published}" if made.published else ""
    _write(
        {
            **made.prices.to_dict(),
            "source": f"AWS price list, training on demand in {arguments.region}{published}",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        arguments.output,
    )
    return OK


def _wanted(arguments: argparse.Namespace) -> list[str]:
    from airflow_amt.cli.plan import read_request
    from airflow_amt.tuning.planning import instance_types

    wanted = list(arguments.instance_type)
    if arguments.request is not None:
        of_request = instance_types(read_request(arguments.request))
        if not of_request:
            raise AmtFieldError(
                "--request", arguments.request, "a request with instance types", "see airflow-amt check"
            )
        wanted += of_request
    return wanted


def _write(table: dict[str, Any], output: str | None) -> None:
    """Write the table, a file all at once: a task may be reading the old one."""
    text = json.dumps(table, indent=2) + "\n"
    if output is None:
        print(text, end="")
        return
    path = Path(output)
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            # Readable as any new file would be.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise AmtFieldError(
            "--output", output, f"a file that can be written ({error.strerror})", "check the path"
        ) from None
    count = len(table["per_hour"])
    print(f"{count} price{'s' if count > 1 else ''} written to {output}", file=sys.stderr)
