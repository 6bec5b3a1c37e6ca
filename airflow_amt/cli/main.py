"""Entry point of ``airflow-amt``: finds the subcommand and says what is wrong in words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from airflow_amt import __version__
from airflow_amt.exceptions import AmtFieldError

#: Modules with a ``register(subparsers)`` that adds a subcommand and sets its ``run(arguments) -> int``.
SUBCOMMANDS = (
    "airflow_amt.cli.local",
    "airflow_amt.cli.demo",
    "airflow_amt.cli.check",
    "airflow_amt.cli.reap",
    "airflow_amt.cli.plan",
    "airflow_amt.cli.prices",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="airflow-amt", description="Automatic model tuning of Amazon SageMaker, from Apache Airflow."
    )
    parser.add_argument("--version", action="version", version=f"airflow-amt {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        import_module(module).register(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (2 for options that cannot be used)."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except AmtFieldError as error:
        print(f"airflow-amt: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
