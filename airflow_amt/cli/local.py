"""``airflow-amt local serve``: the embedded AMT in the foreground."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_amt.exceptions import AmtFieldError

if TYPE_CHECKING:
    from airflow_amt.local.storage import Storage

EXTRA_MODULES = ("sqlalchemy", "starlette", "uvicorn", "psutil", "regex")
AWS_MODULES = ("moto", "flask", "flask_cors", "a2wsgi")


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
    # No defaults here: what is not given may be in the configuration file.
    serve.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with any of these options (without the dashes) and a table [images]; the command "
        "line comes first",
    )
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port; 0 takes any free one (default)")
    serve.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="folder that keeps everything (default: airflow-amt in $XDG_STATE_HOME or ~/.local/state)",
    )
    serve.add_argument(
        "--clock-rate",
        type=float,
        metavar="R",
        help="AMT seconds per real second: 60 makes an hour pass in a minute (default: 1)",
    )
    serve.add_argument(
        "--image",
        action="append",
        metavar="URI=COMMAND",
        help="command that stands for a training image; may be given more than once",
    )
    serve.add_argument(
        "--s3-root",
        type=Path,
        metavar="DIR",
        help="folder that stands for S3: s3://bucket/key is DIR/bucket/key (default: s3 in the state folder)",
    )
    serve.add_argument(
        "--s3-endpoint",
        metavar="URL",
        help="S3 server that s3:// addresses are read from and written to, instead of a folder (default: "
        "AWS_ENDPOINT_URL_S3 if it is set and --s3-root is not given)",
    )
    serve.add_argument(
        "--with-aws",
        action="store_const",
        const=True,
        help="serve S3, STS, IAM and CloudWatch Logs too, as the SageMaker SDKs need them (extra local-aws)",
    )
    serve.add_argument(
        "--stop-grace",
        type=float,
        metavar="S",
        help="most real seconds between SIGTERM and SIGKILL of a training process (default: 10; "
        "never more than AMT's 120 s by its own clock)",
    )
    serve.add_argument(
        "--log-limit",
        type=int,
        metavar="MIB",
        help="a training job whose log grows beyond this is failed (default: 256)",
    )
    serve.add_argument(
        "--fork-server",
        action="append",
        metavar="MODULE[,MODULE...]",
        help="import these modules once, and fork Python training scripts from a process that has them, "
        "instead of starting each afresh (Linux; may be given more than once)",
    )
    serve.add_argument(
        "--pass-env",
        action="append",
        metavar="NAME",
        help="environment variable of the server that training processes get too (default: PATH and the "
        "locale only; may be given more than once)",
    )
    serve.add_argument(
        "--account",
        metavar="ID",
        help="12-digit AWS account id to show in ARNs (default: 000000000000)",
    )
    serve.add_argument(
        "--faults",
        metavar="FILE_OR_JSON",
        help="what is to go wrong on purpose, for tests: throttling, latency, errors, dropped connections, "
        "stale reads, failing training jobs (default: nothing)",
    )
    serve.add_argument(
        "--request-log",
        type=Path,
        metavar="FILE",
        help="append a line of JSON for each call: time, operation, tuning job, status, error, faults "
        "(default: nowhere)",
    )
    serve.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="of standard error (default: info)",
    )
    serve.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until told to end.

    :raises AmtFieldError: an option cannot be used.
    """
    _check_installed("local serve", EXTRA_MODULES, "local")
    from airflow_amt.local import config, images
    from airflow_amt.local.clock import checked_rate
    from airflow_amt.local.engine import EngineOptions
    from airflow_amt.local.faults import FaultInjector, Faults
    from airflow_amt.local.fork_server import check_modules
    from airflow_amt.local.server import ServerOptions, is_loopback, serve
    from airflow_amt.local.training_environment import check_pass_env

    settings = config.settle(vars(arguments), arguments.config, Path.cwd())
    until_stdin_closes = arguments.until_stdin_closes
    arguments = argparse.Namespace(**settings.options)
    if arguments.with_aws:
        _check_installed("with-aws", AWS_MODULES, "local-aws")
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
    check_pass_env(arguments.pass_env)
    state_dir = (arguments.state_dir or _default_state_dir()).absolute()
    if state_dir.exists() and not state_dir.is_dir():
        raise AmtFieldError("state-dir", str(state_dir), "a folder", "choose another path")
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        clock_rate=checked_rate(arguments.clock_rate),
        engine=EngineOptions(
            state_dir=state_dir,
            s3_root=(arguments.s3_root or state_dir / "s3").absolute(),
            storage=_bucket_storage(arguments),
            images={**images.bundled_commands(), **settings.images},
            account=arguments.account,
            stop_grace=arguments.stop_grace,
            log_limit=arguments.log_limit * 1024 * 1024,
            fork_server=tuple(fork_server),
            faults=FaultInjector(Faults.from_text(settings.faults) if settings.faults else None),
        ),
        with_aws=arguments.with_aws,
        pass_env=tuple(arguments.pass_env),
        request_log=arguments.request_log,
        until_stdin_closes=until_stdin_closes,
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
    _leave_hanging_threads()
    return 0


def _leave_hanging_threads() -> None:
    """End the process now if a thread hangs, as in a download that never comes; Python would wait for it."""
    from airflow_amt.local.engine import CONCLUDE_THREAD, PREPARE_THREAD

    for thread in threading.enumerate():
        if thread.name.startswith((PREPARE_THREAD, CONCLUDE_THREAD)):
            thread.join(1)
            if thread.is_alive():
                logging.getLogger(__name__).warning("Not waiting for %s, which hangs", thread.name)
                logging.shutdown()
                os._exit(0)


def _bucket_storage(arguments: argparse.Namespace) -> Storage | None:
    """Return the S3 server that was asked for; ``None`` if ``s3://`` is a folder."""
    from airflow_amt.local.storage import BucketStorage

    if arguments.s3_endpoint is not None:
        for option, given in (("--s3-root", arguments.s3_root), ("--with-aws", arguments.with_aws)):
            if given:
                raise AmtFieldError(
                    "s3-endpoint",
                    arguments.s3_endpoint,
                    f"s3:// is either an S3 server or, with {option}, a folder",
                    f"leave out {option} or --s3-endpoint",
                )
        return BucketStorage.from_environment(arguments.s3_endpoint, os.environ)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3")
    # With --with-aws the variable is likely to be there for the clients of this very server.
    if not endpoint or arguments.s3_root is not None or arguments.with_aws:
        return None
    return BucketStorage.from_environment(endpoint, os.environ)


def _check_installed(what: str, modules: Sequence[str], extra: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise AmtFieldError(
            what,
            ", ".join(missing),
            "the embedded AMT needs these packages",
            f"install the extra: pip install 'airflow-provider-amt[{extra}]'",
        )


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "airflow-amt"
