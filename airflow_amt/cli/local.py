"""``airflow-amt local serve``: the embedded AMT in the foreground."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
from pathlib import Path

from airflow_amt.exceptions import AmtFieldError

EXTRA_MODULES = ("sqlalchemy", "starlette", "uvicorn", "psutil")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``local``."""
    local = subparsers.add_parser(
        "local", help="the embedded AMT: tunes on this machine, without an AWS account"
    )
    commands = local.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve SageMaker's tuning API on this machine",
        description=(
            "Serve SageMaker's tuning API on this machine: boto3, the AWS command line and Airflow's "
            "connections reach it by its endpoint. Prints one line with the endpoint when it is ready. "
            "Ctrl-C or SIGTERM ends it and every training process; the state folder keeps the tuning jobs, "
            "and a server that is started on it again goes on with them."
        ),
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=0, help="port; 0 takes any free one (default)")
    serve.add_argument(
        "--state-dir",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder that keeps everything (default: airflow-amt in $XDG_STATE_HOME or ~/.local/state)",
    )
    serve.add_argument(
        "--clock-rate",
        type=float,
        default=1.0,
        metavar="R",
        help="AMT seconds per real second: 60 makes an hour pass in a minute (default: 1)",
    )
    serve.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="URI=COMMAND",
        help="command that stands for a training image; may be given more than once",
    )
    serve.add_argument(
        "--s3-root",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder that stands for S3: s3://bucket/key is DIR/bucket/key (default: s3 in the state folder)",
    )
    serve.add_argument(
        "--stop-grace",
        type=float,
        default=10.0,
        metavar="S",
        help="most real seconds between SIGTERM and SIGKILL of a training process (default: %(default)s; "
        "never more than AMT's 120 s by its own clock)",
    )
    serve.add_argument(
        "--log-limit",
        type=int,
        default=256,
        metavar="MIB",
        help="a training job whose log grows beyond this is failed (default: %(default)s)",
    )
    serve.add_argument(
        "--fork-server",
        action="append",
        default=[],
        metavar="MODULE[,MODULE...]",
        help="import these modules once, and fork Python training scripts from a process that has them, "
        "instead of starting each afresh (Linux; may be given more than once)",
    )
    serve.add_argument(
        "--account",
        default="000000000000",
        metavar="ID",
        help="12-digit AWS account id to show in ARNs (default: %(default)s)",
    )
    serve.add_argument(
        "--faults",
        metavar="FILE_OR_JSON",
        help="what is to go wrong on purpose, for tests: throttling, latency, errors, dropped connections, "
        "stale reads, failing training jobs (default: nothing)",
    )
    serve.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="of standard error"
    )
    serve.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until told to end.

    :raises AmtFieldError: an option cannot be used.
    """
    _check_installed()
    from airflow_amt.local import images
    from airflow_amt.local.clock import checked_rate
    from airflow_amt.local.engine import EngineOptions
    from airflow_amt.local.faults import FaultInjector, Faults
    from airflow_amt.local.fork_server import check_modules
    from airflow_amt.local.server import ServerOptions, is_loopback, serve

    if not 0 <= arguments.port <= 65_535:
        raise AmtFieldError("port", arguments.port, "0 to 65535", "use 0 for any free port")
    if not math.isfinite(arguments.stop_grace) or arguments.stop_grace < 0:
        raise AmtFieldError(
            "stop-grace", arguments.stop_grace, "real seconds, 0 or more", "use 10, or 0 to kill at once"
        )
    if not 1 <= arguments.log_limit <= 1_048_576:
        raise AmtFieldError("log-limit", arguments.log_limit, "1 to 1048576 MiB", "leave it out")
    if not re.fullmatch(r"\d{12}", arguments.account):
        raise AmtFieldError("account", arguments.account, "12 digits", "leave it out")
    fork_server = [name.strip() for option in arguments.fork_server for name in option.split(",")]
    check_modules(fork_server)
    state_dir = (arguments.state_dir or _default_state_dir()).absolute()
    if state_dir.exists() and not state_dir.is_dir():
        raise AmtFieldError("state-dir", str(state_dir), "a folder", "choose another path")
    mapped = images.parse_mappings(arguments.image, Path.cwd())
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        clock_rate=checked_rate(arguments.clock_rate),
        engine=EngineOptions(
            state_dir=state_dir,
            s3_root=(arguments.s3_root or state_dir / "s3").absolute(),
            images={**images.bundled_commands(), **mapped},
            account=arguments.account,
            stop_grace=arguments.stop_grace,
            log_limit=arguments.log_limit * 1024 * 1024,
            fork_server=tuple(fork_server),
            faults=FaultInjector(Faults.from_text(arguments.faults) if arguments.faults else None),
        ),
        until_stdin_closes=arguments.until_stdin_closes,
    )
    logging.basicConfig(
        level=arguments.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if not is_loopback(arguments.host):
        logging.getLogger(__name__).warning(
            "Listening on %s: whoever reaches this address can run training scripts as this user; "
            "signatures are not checked",
            arguments.host,
        )
    serve(options, lambda endpoint: print(f"embedded AMT ready: {endpoint}", flush=True))
    return 0


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in EXTRA_MODULES if find_spec(name) is None]
    if missing:
        raise AmtFieldError(
            "local serve",
            ", ".join(missing),
            "the embedded AMT needs these packages",
            "install the extra: pip install 'airflow-provider-amt[local]'",
        )


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "airflow-amt"
