"""``airflow-amt local serve``: the embedded AMT in the foreground."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import shlex
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
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="name or address by which clients may call the server, beside those of loopback and --host; "
        "may be given more than once",
    )
    serve.add_argument(
        "--allow-any-caller",
        action="store_const",
        const=True,
        help="ask no caller for a signature: every user and program of this machine can then run commands "
        "as you; on loopback only",
    )
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
        "--root",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder that training jobs may get code (sagemaker_submit_directory) and data (file://) from, "
        "beside the one that stands for S3; may be given more than once (default: the working directory)",
    )
    serve.add_argument(
        "--link-channels",
        action="store_const",
        const=True,
        help="give training jobs links to the files of their channels, not copies; read-only by agreement: "
        "what a script writes there is written to your file",
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
    _register_credentials(commands)


def _register_credentials(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    credentials = commands.add_parser(
        "credentials",
        help="print what clients sign their calls with",
        description=(
            "Print the access key and secret of a state folder, and the address of the server that runs on "
            'it. They are made on first use and stay the same. eval "$(airflow-amt local credentials)" sets '
            "a shell up."
        ),
    )
    credentials.add_argument(
        "--config", type=Path, metavar="FILE", help="the configuration file of the server, for its state-dir"
    )
    credentials.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="the server's state folder (default: airflow-amt in $XDG_STATE_HOME or ~/.local/state)",
    )
    credentials.add_argument(
        "--format",
        choices=("exports", "profile", "connection"),
        default="exports",
        help="exports: shell variables; profile: a profile for ~/.aws/config; connection: Airflow's "
        "connection aws_default as a shell variable (default: exports)",
    )
    credentials.add_argument(
        "--endpoint-url", metavar="URL", help="address of the server (default: of the one that runs)"
    )
    credentials.add_argument(
        "--region", default="us-east-1", help="AWS region that clients use (default: us-east-1)"
    )
    credentials.set_defaults(run=run_credentials)


def run_credentials(arguments: argparse.Namespace) -> int:
    """Print the credentials of a state folder.

    :raises AmtFieldError: the folder or what it keeps cannot be used.
    """
    _check_installed("local credentials", EXTRA_MODULES, "local")
    from airflow_amt.local import config, credentials, state_folder

    settings = config.settle({"state_dir": arguments.state_dir}, arguments.config, Path.cwd())
    state_dir = _state_dir(settings.options["state_dir"])
    if not state_dir.exists():
        raise AmtFieldError(
            "state-dir",
            str(state_dir),
            "the state folder of a server; this one does not exist",
            "check the spelling, or start the server first: airflow-amt local serve",
        )
    try:
        state_folder.prepare(state_dir)
        found = credentials.of_state_folder(state_dir)
        endpoint = arguments.endpoint_url or state_folder.endpoint_of_running(state_dir)
    except OSError as error:
        raise AmtFieldError(
            "state-dir",
            str(state_dir),
            f"a folder that can be read and written ({error.strerror})",
            "choose the --state-dir of the server",
        ) from None
    if endpoint is None:
        # Clients that know keys and no address call AWS itself.
        raise AmtFieldError(
            "endpoint-url",
            None,
            f"the address of the server, which does not run on {state_dir} now",
            "start it, or name its address: --endpoint-url http://127.0.0.1:4566",
        )
    print(credentials.FORMATS[arguments.format](found, endpoint, arguments.region))
    return 0


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
    from airflow_amt.local.launcher import READY
    from airflow_amt.local.log_lines import LineFormatter
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
    if not re.fullmatch(r"[0-9]{12}", arguments.account):
        raise AmtFieldError("account", arguments.account, "12 digits", "leave it out")
    fork_server = [name.strip() for option in arguments.fork_server for name in option.split(",")]
    check_modules(fork_server)
    check_pass_env(arguments.pass_env)
    state_dir = _state_dir(arguments.state_dir)
    s3_root = (arguments.s3_root or state_dir / "s3").absolute()
    if s3_root.resolve() == state_dir.resolve():
        raise AmtFieldError(
            "s3-root",
            str(s3_root),
            "a folder other than the state folder",
            "leave it out",
        )
    if arguments.allow_any_caller and not is_loopback(arguments.host):
        raise AmtFieldError(
            "allow-any-caller",
            True,
            f"with a --host of loopback only; {arguments.host} can be reached from other machines",
            "leave it out: 'airflow-amt local credentials' prints what clients need",
        )
    for name in arguments.allowed_host:
        _check_host_name(name)
        if arguments.allow_any_caller:
            raise AmtFieldError(
                "allowed-host",
                name,
                "a name by which others reach the server, who then have to sign",
                "leave out --allow-any-caller or --allowed-host",
            )
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=arguments.allowed_host,
        any_caller=arguments.allow_any_caller,
        clock_rate=checked_rate(arguments.clock_rate),
        engine=EngineOptions(
            state_dir=state_dir,
            s3_root=s3_root,
            storage=_bucket_storage(arguments),
            roots=_roots(arguments.root),
            link_channels=arguments.link_channels,
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[handler])
    if not is_loopback(arguments.host):
        logging.getLogger(__name__).warning(
            "Listening on %s: other machines reach this server. Calls are signed, but nothing is encrypted",
            arguments.host,
        )
    if arguments.allow_any_caller:
        logging.getLogger(__name__).warning(
            "No caller is asked for a signature: every user and program of this machine can run commands "
            "as this user"
        )

    def announce(endpoint: str) -> None:
        print(f"{READY}{endpoint}", flush=True)
        if not arguments.allow_any_caller:
            # Standard output has one line, for programs.
            print(f'credentials for clients: eval "$({_credentials_command(state_dir)})"', file=sys.stderr)

    serve(options, announce)
    _leave_hanging_threads()
    return 0


def _credentials_command(state_dir: Path) -> str:
    command = ["airflow-amt", "local", "credentials"]
    if state_dir != _state_dir(None):
        command += ["--state-dir", str(state_dir)]
    return shlex.join(command)


def _check_host_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", name) or re.search(r"^[^:]*:\d*$", name):
        raise AmtFieldError(
            "allowed-host",
            name,
            "the name or address of a host, without scheme, port and path",
            "as in --allowed-host amt.example.internal",
        )


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


def _roots(given: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders that callers may reach: those given, or the working directory unless it is ``/``."""
    for root in given:
        if not root.is_dir():
            raise AmtFieldError("root", str(root), "a folder that exists", "create it, or name another one")
    if given:
        return tuple(root.absolute() for root in given)
    here = Path.cwd()
    return () if here == here.parent else (here,)


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


def _state_dir(given: Path | None) -> Path:
    if given is not None:
        if not str(given).isprintable():
            raise AmtFieldError(
                "state-dir", str(given), "a path without control characters", "choose another path"
            )
        return given.absolute()
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return (Path(base) / "airflow-amt").absolute()
