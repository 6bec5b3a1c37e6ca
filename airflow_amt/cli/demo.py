"""``airflow-amt demo``: a real tuning job in a real DAG on this machine, with no AWS account.

It starts the embedded AMT, gives Airflow a throw-away home, runs the quick-start DAG through Airflow, shows
the tuning job's progress as AMT reports it, and ends with the outcome that the DAG's task left in XCom. All
five completion criteria are always set; ``--criterion`` chooses limits such that one of them fires first.
The operators and the domain never see that choice: they get five limits, as any DAG author would set them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

import airflow_amt
from airflow_amt.exceptions import AmtError
from airflow_amt.text import MOST_MESSAGE, MOST_REASON, shown, shown_lines
from airflow_amt.tuning import (
    CompletionReason,
    TrainingJobResult,
    TuningProgress,
)

DAG_ID = "amt_quick_start"
DAG_FILE = "amt_quick_start.py"
TASK_ID = "tune"

_POLL_SECONDS = 0.5
_AIRFLOW_TIMEOUT_SECONDS = 900
_END_GRACE_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Limits under which one criterion fires before the other four.

    :param reason: the criterion that shall fire.
    :param params: parameters of the DAG run.
    :param clock_rate: AMT seconds per real second, so that two minutes of runtime can be shown in seconds.
    """

    reason: CompletionReason
    params: Mapping[str, Any] = field(default_factory=dict)
    clock_rate: float = 1.0


#: Far enough that they do not fire first: no classifier here is right about all digits but one in ten
#: thousand, and convergence needs more results than the other scenarios run training jobs.
_FAR: Mapping[str, Any] = {
    "max_training_jobs": 120,
    "max_training_jobs_not_improving": 100,
    "max_runtime_seconds": 86_400,
    "target_accuracy": 0.9999,
    "complete_on_convergence": True,
}

SCENARIOS: Mapping[str, Scenario] = {
    "max-training-jobs": Scenario(
        reason=CompletionReason.MAX_TRAINING_JOBS, params={**_FAR, "max_training_jobs": 8}
    ),
    "not-improving": Scenario(
        reason=CompletionReason.NOT_IMPROVING, params={**_FAR, "max_training_jobs_not_improving": 3}
    ),
    "max-runtime": Scenario(
        reason=CompletionReason.MAX_RUNTIME,
        # 15 real seconds, one after the other: too few training jobs for convergence, whatever the machine.
        params={**_FAR, "max_runtime_seconds": 120, "max_parallel_training_jobs": 1},
        clock_rate=8.0,
    ),
    "target": Scenario(reason=CompletionReason.TARGET_REACHED, params={**_FAR, "target_accuracy": 0.993}),
    "converged": Scenario(reason=CompletionReason.CONVERGED, params=_FAR),
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``demo`` command."""
    parser = subparsers.add_parser(
        "demo",
        help="run a real tuning DAG on the embedded AMT and read why it ended",
        description=(
            "Runs the quick-start DAG through Airflow against the embedded AMT, with all five completion "
            "criteria set. Exits with 0 only if the tuning ended by the criterion that was asked for, and "
            "the reason computed anew from the training jobs agrees."
        ),
    )
    parser.add_argument(
        "--criterion",
        choices=list(SCENARIOS),
        default="target",
        help="which of the five criteria shall fire first (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the outcome as JSON, as the last line of standard output"
    )
    parser.add_argument(
        "--home",
        type=Path,
        help="keep Airflow's home, logs, models and the embedded AMT's state in this new or empty folder",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code: 0 as asked, 1 otherwise, 130 if interrupted."""
    console = Console(stderr=options.json, highlight=False)
    missing = [name for name in ("sklearn", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        console.print(
            f"The demo needs {' and '.join(missing)}. Fix: pip install 'airflow-provider-amt[local]'."
        )
        return 1
    try:
        with _interruptible(), _home(options.home) as home:
            return _run_in(home, SCENARIOS[options.criterion], options, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the tuning job was stopped, and no process is left.", soft_wrap=True)
        return 130
    except AmtError as error:
        console.print(shown_lines(error), markup=False, soft_wrap=True)
        return 1


def _run_in(home: Path, scenario: Scenario, options: argparse.Namespace, console: Console) -> int:
    from airflow_amt.local import running

    console.rule("airflow-amt demo")
    with running(state_dir=home / "amt", clock_rate=scenario.clock_rate) as amt:
        console.print(f"Embedded AMT at {amt.endpoint}, its clock at {scenario.clock_rate:g}x.")
        environment = _airflow_environment(home, amt.connection())
        log = home / "airflow.log"
        with console.status("Airflow prepares its metadata database (about 10 seconds) …"):
            _airflow(["-m", "airflow", "db", "migrate"], environment, log, console)
        result = home / "outcome.json"
        client = amt.client()
        arguments = [
            *("-m", "airflow_amt.cli.dag_run"),
            *("--dag-file", str(_dag_folder() / DAG_FILE)),
            *("--dag-id", DAG_ID),
            *("--conf", json.dumps(dict(scenario.params))),
            *("--task-id", TASK_ID),
            *("--xcom-key", "outcome"),
            *("--output", str(result)),
        ]
        console.print(f"Airflow runs the DAG {DAG_ID} …")
        with _started(arguments, environment, log) as airflow:
            try:
                _show_progress(client, airflow, console)
            except KeyboardInterrupt:
                _stop_all(client)
                raise
        if not result.exists():
            _show_log(log, console)
            console.print("Airflow ended without an outcome; its log is above.")
            return 1
        saved = json.loads(result.read_text())
        outcome = saved["value"]
        if outcome is None:
            _show_log(log, console)
            console.print(f"The task {TASK_ID} ended as {saved['task_state']} and left no outcome.")
            return 1
        _show_outcome(outcome, console)
        recomputed = _recomputed_reasons(client, outcome["tuning_job_name"])
        good = _judge(scenario, saved, outcome, recomputed, console)
    if options.home:
        console.print(
            f"Kept in {home}: airflow.log, the models in amt/, Airflow's metadata database.", soft_wrap=True
        )
    if options.json:
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()
    return 0 if good else 1


def _judge(
    scenario: Scenario,
    saved: Mapping[str, Any],
    outcome: Mapping[str, Any],
    recomputed: list[str],
    console: Console,
) -> bool:
    """Say whether the tuning ended as it was asked to, told by AMT's own records and not by the operator."""
    agrees = outcome["reason"] in recomputed
    console.print(
        f"Computed anew from Describe and the {outcome['training_job_counters']['Completed']} completed "
        f"training jobs: {', '.join(recomputed) or 'no criterion is met'}"
        + (" - the same." if agrees else f" - not {outcome['reason']}!"),
        soft_wrap=True,  # one line for who reads it from a file
    )
    as_asked = outcome["reason"] == scenario.reason.value and saved["dag_run_state"] == "success"
    if not as_asked:
        console.print(
            f"Expected {scenario.reason.value} and a successful DAG run, got {outcome['reason']} and "
            f"{saved['dag_run_state']}."
        )
    return agrees and as_asked


def _recomputed_reasons(client: Any, name: str) -> list[str]:
    """Replay the five criteria over the training jobs that AMT lists."""
    description = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=name
    )
    jobs = [
        TrainingJobResult.from_summary(summary) for page in pages for summary in page["TrainingJobSummaries"]
    ]
    report = TuningProgress.from_describe(description).replay(jobs)
    return [] if report is None else [fired.reason.value for fired in report.first]


# --- the processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the demo, once: the clean-up that follows is not to be interrupted.

    Both are set here, because a shell that starts a command in the background makes it ignore SIGINT.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _home(wanted: Path | None) -> Iterator[Path]:
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="airflow-amt-demo-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    home = wanted.expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    if any(home.iterdir()):
        raise AmtError(f"--home: {home} is not empty. Fix: name a new or an empty folder.")
    yield home


def _dag_folder() -> Path:
    """Find the example DAGs: in the wheel they are part of the package, in a checkout they lie beside it."""
    package = Path(airflow_amt.__file__).parent
    for folder in (package / "example_dags", package.parent / "example_dags"):
        if (folder / DAG_FILE).is_file():
            return folder
    raise AmtError(f"The example DAG {DAG_FILE} is not installed. Fix: reinstall airflow-provider-amt.")


def _airflow_environment(home: Path, connection: str) -> dict[str, str]:
    """Give Airflow a home of its own, and a connection that leads to the embedded AMT."""
    # Settings of an Airflow or AWS that this machine may have must not reach the demo.
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AIRFLOW_", "AWS_")) and key.lower() not in ("http_proxy", "https_proxy")
    }
    environment |= {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(_dag_folder()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_AWS_DEFAULT": connection,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONUNBUFFERED": "1",
    }
    return environment


@contextlib.contextmanager
def _started(
    arguments: list[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start Python in a session of its own, and leave nothing of it behind."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            [sys.executable, *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group, gently first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):  # the next signal is stronger
                process.wait(_END_GRACE_SECONDS)


def _airflow(arguments: list[str], environment: Mapping[str, str], log: Path, console: Console) -> None:
    with _started(arguments, environment, log) as process:
        code = process.wait(_AIRFLOW_TIMEOUT_SECONDS)
    if code != 0:
        _show_log(log, console)
        raise AmtError(f"airflow {' '.join(arguments[2:])} failed with exit code {code}; its log is above.")


def _stop_all(client: Any) -> None:
    """Stop what still tunes, as a person would who has changed their mind."""
    for summary in client.list_hyper_parameter_tuning_jobs(StatusEquals="InProgress")[
        "HyperParameterTuningJobSummaries"
    ]:
        client.stop_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=summary["HyperParameterTuningJobName"]
        )


# --- what people see ---------------------------------------------------------------------------------


def _show_progress(client: Any, airflow: subprocess.Popen[bytes], console: Console) -> None:
    """Show the tuning job as AMT reports it until Airflow is done."""
    deadline = time.monotonic() + _AIRFLOW_TIMEOUT_SECONDS
    shown: tuple[Any, ...] | None = None
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while airflow.poll() is None:
            if time.monotonic() > deadline:
                raise AmtError(f"Airflow did not finish within {_AIRFLOW_TIMEOUT_SECONDS} s.")
            progress = _current(client)
            if progress is None:
                live.update(Spinner("dots", "Airflow parses the DAG and starts its first task …"))
            else:
                if console.is_terminal:
                    live.update(_progress_panel(progress))
                elif progress.change_key() != shown:
                    console.print(progress.log_line(), markup=False, soft_wrap=True)
                shown = progress.change_key()
            time.sleep(_POLL_SECONDS)


def _current(client: Any) -> TuningProgress | None:
    summaries = client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"]
    if not summaries:
        return None
    return TuningProgress.from_describe(
        client.describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=summaries[0]["HyperParameterTuningJobName"]
        )
    )


def _progress_panel(progress: TuningProgress) -> Panel:
    criteria = progress.criteria
    bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))

    def bar(label: str, count: float, limit: float | None, unit: str = "") -> None:
        text = f"{count:g}{unit}" if limit is None else f"{count:g} of {limit:g}{unit}"
        bars.add_task(label, total=limit or 1, completed=round(min(count, limit or 1)), text=text)

    bar("training jobs ended", progress.training_jobs.ended, criteria.max_training_jobs)
    bar(
        "in a row not improving",
        progress.not_improving_count or 0,
        criteria.max_training_jobs_not_improving,
    )
    runtime = progress.runtime.total_seconds() if progress.runtime else 0
    bar("runtime", runtime, criteria.max_runtime_seconds, " s")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("status", _cell(progress.status))
    facts.add_row("running", str(progress.training_jobs.in_progress))
    best = "none yet" if progress.best_objective is None else f"{progress.best_objective:.4f}"
    facts.add_row(
        _cell(f"best {progress.objective_metric}"), f"{best} (target {criteria.target_objective_value})"
    )
    facts.add_row("converged", "yes" if progress.convergence_detected_at else "not yet")
    return Panel(Group(facts, bars), title=_cell(f"tuning job {progress.name}"))


def _show_outcome(outcome: Mapping[str, Any], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    evidence = outcome["evidence"]
    best = outcome["best_training_job"]
    reason, explanation = _cell(outcome["reason"]), _cell(f" - {outcome['explanation']}")
    reason.stylize("bold green")
    table.add_row("ended by", reason + explanation)
    limit_name = str(evidence.get("field")).rpartition(".")[2]
    table.add_row(
        "evidence", f"{limit_name}: limit {evidence.get('limit')}, observed {evidence.get('observed')}"
    )
    if best is not None:
        table.add_row("best training job", _cell(best["name"]))
        table.add_row(_cell(outcome["objective_metric"]), f"{best['objective']:.4f}")
        for name, value in sorted(best["hyperparameters"].items()):
            table.add_row(_cell(f"  {name}"), _cell(value))
    counters = ", ".join(f"{key} {count}" for key, count in outcome["training_job_counters"].items() if count)
    table.add_row("training jobs", counters)
    table.add_row("runtime", f"{outcome['runtime_seconds']:g} s on AMT's clock")
    if outcome["training_seconds"] is not None:
        table.add_row("training time", f"{outcome['training_seconds']:.1f} s in all training jobs")
    if outcome["estimated_max_compute_seconds"] is not None:
        table.add_row(
            "estimated compute", f"at most {outcome['estimated_max_compute_seconds']} instance-seconds"
        )
    console.print(Panel(table, title=_cell(f"outcome of {outcome['tuning_job_name']}")))


def _cell(text: Any) -> Text:
    """Return foreign text for a table: not a str, in which brackets are markup."""
    return Text(shown(text, MOST_REASON))


def _show_log(log: Path, console: Console, lines: int = 60) -> None:
    if log.exists():
        for line in log.read_text(errors="replace").splitlines()[-lines:]:
            console.print(shown(line, MOST_MESSAGE), markup=False)
