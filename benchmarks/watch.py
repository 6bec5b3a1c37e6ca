"""What it costs to watch many tuning jobs: our triggers, with the Amazon provider's.

``python -m benchmarks.watch --jobs N [--connections C] [--mix end|objective] [--limit CALLS] [--interval 30]
[--steady SECONDS] [--sides ours,peer] [--others N] [--delay SECONDS] [--json]``

The peer is ``SageMakerTrigger(job_type="tuning")``, in an environment of its own with the older boto that its
deferrable mode needs; it is made once, below the user's cache folder. In turn each side runs in a fresh
interpreter against a fresh ``benchmarks.replay_server``: N triggers, spread over C connections to C accounts,
start; a steady window of two intervals; all jobs end, evenly spread over one interval; three more intervals
to detect it, five under ``--limit`` (calls per second of each account). With ``--mix objective`` half of ours
wait for a best objective. The peer cannot, so there all of its triggers wait for the end.

``memory_per_trigger_kb`` is resident memory in the steady window beyond that after a first trigger, by N.
CPU is that of the whole client process, with what the measuring itself takes
(``measuring_cpu_s_per_minute``); ``ratio.cpu`` leaves that out on both sides. What
stalls hold of a full garbage collection is ``longest_collection_ms``. A percentile of the latency is
null where so many ends were not detected at all. ``ratio`` is the peer's figure over ours, null where one of
them is missing.

``--matrix`` measures all cells that ``results/watch.json`` does not have yet, and writes each at once; the
peer up to 1,000 jobs. ``--plot`` draws ``docs/images/watch.png`` of it (group ``benchmark``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import FOLDER, machine
from tests.environments import environments

ROOT = Path(__file__).parent.parent
RESULTS = FOLDER / "watch.json"
PICTURE = ROOT / "docs" / "images" / "watch.png"

SIDES = ("ours", "peer")

#: With more the peer's start takes minutes, and its memory gigabytes.
PEER_MOST_JOBS = 1000

_CLIENT = Path(__file__).parent / "watch_client.py"
_LONG_INTERVAL = 30.0
_SHORT_INTERVAL = 10.0
_LIMIT = 10.0
_PATIENCE = 3.0
_PATIENCE_UNDER_LIMIT = 5.0
_START_LIMIT_SECONDS = 120.0
_MARGIN_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured together.

    :param jobs: tuning jobs, and triggers.
    :param connections: connections that they are spread over.
    :param mix: ``end`` or ``objective``.
    :param limit: calls per second of each account; ``None`` for no limit.
    :param interval: seconds between two polls, and between two changes of a job's counters.
    :param steady: seconds of the steady window.
    :param others: finished jobs of other people in each account.
    :param delay: seconds that each answer takes.
    """

    jobs: int
    connections: int = 1
    mix: str = "end"
    limit: float | None = None
    interval: float = _LONG_INTERVAL
    steady: float = 2 * _LONG_INTERVAL
    others: int = 0
    delay: float = 0.0

    @property
    def key(self) -> str:
        """Its name among the results."""
        limit = "no limit" if self.limit is None else f"limit {self.limit:g}"
        more = (f", {self.others} others" if self.others else "") + (
            f", delay {self.delay:g}" if self.delay else ""
        )
        return (
            f"{self.jobs} jobs, {self.connections} connections, {self.mix}, {limit}, "
            f"every {self.interval:g} s{more}"
        )

    @property
    def command(self) -> str:
        """What measures it alone."""
        limit = "" if self.limit is None else f" --limit {self.limit:g}"
        more = (f" --others {self.others}" if self.others else "") + (
            f" --delay {self.delay:g}" if self.delay else ""
        )
        return (
            f"python -m benchmarks.watch --jobs {self.jobs} --connections {self.connections} "
            f"--mix {self.mix}{limit} --interval {self.interval:g} --steady {self.steady:g}{more}"
        )

    @property
    def patience(self) -> float:
        """Intervals after the last end within which it counts as detected."""
        return _PATIENCE if self.limit is None else _PATIENCE_UNDER_LIMIT


def matrix() -> Iterator[tuple[Cell, tuple[str, ...]]]:
    """Return the cells of the matrix, with the sides of each: about 75 minutes in all."""
    for mix in ("end", "objective"):
        for jobs in (10, 100, 1000, 10_000):
            sides = SIDES if mix == "end" and jobs <= PEER_MOST_JOBS else ("ours",)
            yield Cell(jobs=jobs, mix=mix), sides
            # Fewer never meet it: 10 jobs make a call a second at most.
            if jobs == 1000 or (mix == "end" and jobs > 10):
                interval = _LONG_INTERVAL if jobs >= 1000 else _SHORT_INTERVAL
                yield Cell(jobs=jobs, mix=mix, limit=_LIMIT, interval=interval, steady=2 * interval), sides
    short = Cell(jobs=1, interval=_SHORT_INTERVAL, steady=2 * _SHORT_INTERVAL)
    for connections in (10, 50):
        for jobs in (10, 100, 1000, 10_000):
            if connections > jobs:
                continue
            cell = replace(short, jobs=jobs, connections=connections)
            sides = SIDES if jobs <= PEER_MOST_JOBS else ("ours",)
            yield cell, sides
            if jobs >= 1000:
                yield replace(cell, mix="objective"), ("ours",)
            if jobs == 1000 or (jobs > 1000 and connections == 10):
                yield replace(cell, limit=_LIMIT), sides


def peer_python() -> Path:
    """Return the interpreter of the peer's environment, which is made if it is not there."""
    wanted = {
        "python": platform.python_version(),
        "apache-airflow-core": version("apache-airflow-core"),
        "apache-airflow-providers-amazon": version("apache-airflow-providers-amazon"),
    }
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "airflow-amt-benchmarks" / "-".join(["watch-peer", *wanted.values()])
    complete = folder / "complete"
    if not complete.exists():
        # What a run before left half made.
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.write("making the peer's environment\n")
        # The same Airflow and provider as ours: the client libraries alone are others.
        environments(folder)(
            f"apache-airflow-core=={wanted['apache-airflow-core']}",
            f"apache-airflow-providers-amazon[aiobotocore]=={wanted['apache-airflow-providers-amazon']}",
            "psutil",
        )
        complete.touch()
    return folder / "0" / "bin" / "python"


@contextlib.contextmanager
def server(cell: Cell) -> Iterator[int]:
    """Run a server and give its port."""
    options = [] if cell.limit is None else ["--limit", str(cell.limit)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.replay_server", *options, "--delay", str(cell.delay)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            yield int(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()


def client_environment(side: str, home: str) -> dict[str, str]:
    """Return the environment variables of a client.

    Settings of AWS, Airflow and Python that this shell happens to have are left out, but for those of ours.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "AIRFLOW_", "PYTHON")) or name.startswith("AIRFLOW__AMT__")
    }
    return {
        **kept,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": home,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **({"PYTHONPATH": str(ROOT)} if side == "ours" else {}),
    }


def measure(cell: Cell, side: str) -> dict[str, Any]:
    """Measure one side of a cell; ``{"failed": why}`` if its client does not come to an end."""
    python = sys.executable if side == "ours" else str(peer_python())
    start_limit = max(_START_LIMIT_SECONDS, 4 * cell.interval)
    mix = cell.mix if side == "ours" else "end"
    options = {
        "--side": side,
        "--jobs": cell.jobs,
        "--connections": cell.connections,
        "--mix": mix,
        "--interval": cell.interval,
        "--steady": cell.steady,
        "--others": cell.others,
        "--start-limit": start_limit,
        "--patience": cell.patience,
    }
    longest = start_limit + cell.steady + (1 + cell.patience) * cell.interval + _MARGIN_SECONDS
    with server(cell) as port, tempfile.TemporaryDirectory(prefix="airflow-amt-benchmark-") as home:
        log = Path(home, "log")
        with log.open("wb") as errors:
            command = [python, "-P", str(_CLIENT), "--port", str(port)]
            for name, value in options.items():
                command += [name, str(value)]
            try:
                done = subprocess.run(
                    command,
                    check=False,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=client_environment(side, home),
                    cwd=home,
                    timeout=longest,
                )
            except subprocess.TimeoutExpired:
                return {"failed": f"not over after {longest:.0f} s"}
        if done.returncode or not done.stdout.strip():
            tail = log.read_bytes()[-2000:].decode(errors="replace")
            sys.stderr.write(tail)
            last = tail.strip().splitlines()[-1:] or ["nothing"]
            return {"failed": f"exit code {done.returncode}: {last[0]}"}
        figures: dict[str, Any] = json.loads(done.stdout)
        if mix != cell.mix:
            figures["mix"] = mix
        return figures


def without_measuring(figures: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return figures with the CPU time that the watching alone takes."""
    found = dict(figures or {})
    if "cpu_s_per_minute" in found:
        found["watching_cpu_s_per_minute"] = round(
            found["cpu_s_per_minute"] - found["measuring_cpu_s_per_minute"], 2
        )
    return found


def ratios(ours: Mapping[str, Any] | None, peer: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Return the peer's figures over ours."""
    ours, peer = without_measuring(ours), without_measuring(peer)

    def ratio(*path: str) -> float | None:
        values: list[Any] = []
        for side in (peer, ours):
            value: Any = side
            for name in path:
                value = (value or {}).get(name)
            values.append(value)
        of_peer, of_ours = values
        if of_peer is None or not of_ours or of_ours < 0:
            return None
        return float(f"{of_peer / of_ours:.3g}")

    return {
        "calls": ratio("calls_per_minute"),
        "memory": ratio("memory_per_trigger_kb"),
        "cpu": ratio("watching_cpu_s_per_minute"),
        "start": ratio("until_all_run_s"),
        "stall": ratio("stall_at_start_ms"),
        "latency_p50": ratio("latency_s", "p50"),
        "latency_p99": ratio("latency_s", "p99"),
    }


def revision() -> str:
    """Return the revision of the code that is measured."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "airflow_amt"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def processor() -> str:
    """Return the name of the processor, as far as this system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def is_measured(cell: Mapping[str, Any], side: str) -> bool:
    """Whether a stored cell has the figures of a side."""
    return bool(cell.get(side)) and "failed" not in cell[side]


def measure_cell(
    cell: Cell, sides: tuple[str, ...], known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measure both sides of a cell in turn, but for those that are known."""
    known = known or {}
    if "peer" in sides and not known.get("peer"):
        peer_python()
    found: dict[str, dict[str, Any] | None] = {"ours": None, "peer": None}
    for side in sides:
        if is_measured(known, side):
            found[side] = known[side]
            continue
        sys.stderr.write(f"{cell.key}: {side}\n")
        load, begun = os.getloadavg(), time.monotonic()
        found[side] = {
            **measure(cell, side),
            "took_s": round(time.monotonic() - begun),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision(),
            "load_average_before": [round(one, 2) for one in load],
        }
    return {
        **asdict(cell),
        "command": cell.command + f" --sides {','.join(sides)}",
        "machine": {**machine(), "processor": processor()},
        **found,
        "ratio": ratios(found["ours"], found["peer"]),
    }


_ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("calls per minute", ("calls_per_minute",)),
    ("throttled per minute", ("throttled_per_minute",)),
    ("memory per trigger, kB", ("memory_per_trigger_kb",)),
    ("resident, MB", ("resident_mb",)),
    ("CPU s per minute", ("cpu_s_per_minute",)),
    ("  of it measuring", ("measuring_cpu_s_per_minute",)),
    ("until all run, s", ("until_all_run_s",)),
    ("longest stall at start, ms", ("stall_at_start_ms",)),
    ("longest stall later, ms", ("stall_later_ms",)),
    ("longest collection, ms", ("longest_collection_ms",)),
    ("detected", ("detected",)),
    ("not detected", ("not_detected",)),
    ("fired something else", ("wrong",)),
    ("latency p50, s", ("latency_s", "p50")),
    ("latency p90, s", ("latency_s", "p90")),
    ("latency p99, s", ("latency_s", "p99")),
    ("latency max, s", ("latency_s", "max")),
    ("sockets to the server", ("sockets",)),
    ("threads more", ("threads",)),
    ("left: tasks", ("left_behind", "tasks")),
    ("left: threads", ("left_behind", "threads")),
    ("left: sockets", ("left_behind", "sockets")),
)


def table(result: Mapping[str, Any]) -> str:
    """Return a cell's figures for people."""
    lines = [f"{'':28}{'ours':>14}{'peer':>14}"]
    for title, path in _ROWS:
        shown: list[str] = []
        for side in SIDES:
            value: Any = result[side]
            for name in path:
                value = (value or {}).get(name)
            if isinstance(value, dict):
                value = ", ".join(f"{count} {what}" for what, count in value.items()) or 0
            shown.append("-" if value is None else f"{value}")
        lines.append(f"{title:28}{shown[0]:>14}{shown[1]:>14}")
    for side in SIDES:
        if "failed" in (result[side] or {}):
            lines.append(f"{side}: {result[side]['failed']}")
    ratio = ", ".join(f"{name} {value:g}" for name, value in result["ratio"].items() if value is not None)
    return "\n".join([*lines, f"peer over ours: {ratio or '-'}"])


def stored() -> dict[str, Any]:
    """Return the results so far."""
    if not RESULTS.exists():
        return {"command": "python -m benchmarks.watch --matrix", "cells": {}}
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def run_matrix() -> None:
    """Measure what is not measured yet."""
    # What the aims are about comes first.
    for cell, sides in sorted(matrix(), key=lambda one: (one[0].connections, one[0].jobs < 1000)):
        results = stored()
        before = results["cells"].get(cell.key)
        if before and all(is_measured(before, side) for side in sides):
            continue
        result = measure_cell(cell, sides, before)
        same = results["cells"].get(replace(cell, mix="end").key)
        if "peer" not in sides and same and same["peer"]:
            # It waits for the end in either mix.
            result["peer_of"] = replace(cell, mix="end").key
            result["ratio"] = ratios(result["ours"], same["peer"])
        sys.stdout.write(f"\n{cell.key}\n{table(result)}\n")
        sys.stdout.flush()
        results["cells"][cell.key] = result
        # Whole or not at all: an interrupted run goes on from here.
        half = RESULTS.with_suffix(".new")
        half.write_text(json.dumps(results, indent=1) + "\n")
        half.replace(RESULTS)


def plot() -> None:
    """Draw how cost grows with the number of jobs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    cells = [cell for cell in stored()["cells"].values() if cell["connections"] == 1]
    figures = (
        ("calls per minute", ("calls_per_minute",)),
        ("memory of all triggers, MB", ("resident_mb",)),
        ("CPU seconds per minute", ("cpu_s_per_minute",)),
        ("latency p99, s", ("latency_s", "p99")),
    )
    lines = (
        ("Amazon provider", "peer", "end", None, "tab:red", "o-"),
        ("Amazon provider, 10 calls/s", "peer", "end", _LIMIT, "tab:red", "x--"),
        ("ours", "ours", "end", None, "tab:blue", "o-"),
        ("ours, 10 calls/s", "ours", "end", _LIMIT, "tab:blue", "x--"),
        ("ours, half for an objective", "ours", "objective", None, "tab:green", "o-"),
    )
    canvas, axes = pyplot.subplots(2, 2, figsize=(10, 8), layout="constrained")
    for axis, (title, path) in zip(axes.flat, figures, strict=True):
        for label, side, mix, limit, colour, style in lines:
            points: list[tuple[int, float]] = []
            for cell in cells:
                value: Any = cell[side]
                for name in path:
                    value = (value or {}).get(name)
                if cell["mix"] == mix and cell["limit"] == limit and value is not None:
                    if path == ("resident_mb",):
                        value -= cell[side]["resident_before_mb"]
                    if cell["interval"] == _LONG_INTERVAL and value > 0:
                        points.append((cell["jobs"], value))
            if points:
                points.sort()
                axis.plot(*zip(*points, strict=True), style, color=colour, label=label)
        axis.set(xscale="log", yscale="log", title=title, xlabel="tuning jobs")
        axis.grid(alpha=0.3)
    canvas.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    canvas.suptitle("Watching tuning jobs of one connection, an interval of 30 s")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(PICTURE, dpi=110)
    sys.stderr.write(f"written to {PICTURE.relative_to(ROOT)}\n")


def main(arguments: list[str] | None = None) -> int:
    """Measure a cell or the matrix, or draw what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--mix", choices=["end", "objective"], default="end")
    parser.add_argument("--limit", type=float, help="calls per second of each account")
    parser.add_argument("--interval", type=float, default=_LONG_INTERVAL)
    parser.add_argument("--steady", type=float, help="seconds; two intervals by default")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--others", type=int, default=0, help="finished jobs of other people in each account")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each answer takes")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    parser.add_argument("--matrix", action="store_true", help="measure all cells that are not stored yet")
    parser.add_argument("--plot", action="store_true", help="draw the stored cells")
    options = parser.parse_args(arguments)
    sides = tuple(options.sides.split(","))
    if not set(sides) <= set(SIDES):
        parser.error(f"--sides are of {','.join(SIDES)}")
    if not 1 <= options.connections <= options.jobs:
        parser.error("--connections are 1 to as many as --jobs")
    if options.matrix:
        run_matrix()
    if options.plot:
        plot()
    if options.matrix or options.plot:
        return 0
    cell = Cell(
        jobs=options.jobs,
        connections=options.connections,
        mix=options.mix,
        limit=options.limit,
        interval=options.interval,
        steady=2 * options.interval if options.steady is None else options.steady,
        others=options.others,
        delay=options.delay,
    )
    result = measure_cell(cell, sides)
    sys.stdout.write(table(result) + "\n")
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
