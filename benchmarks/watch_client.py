"""The client of ``benchmarks.watch``: one cell on one side, in an interpreter of its own.

``python -P watch_client.py --side ours|peer --port PORT --jobs N ...`` prints one JSON object, its only line
of output. ``-P``, because modules beside this one bear the names of libraries. On the peer's side nothing of
this project is imported.

Triggers are made and run as Airflow's triggerer does it, each as a task of one event loop. What Airflow
itself adds to each is the same for both sides and left out: a greenlet, a log file, and asking the supervisor
for the connection, which is an environment variable here.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

#: Makes a trigger: of a job, of a connection, with an interval, and whether it waits for an objective.
Maker = Callable[[str, str, float, bool], Any]

PACKAGES = (
    "airflow-provider-amt",
    "apache-airflow-core",
    "apache-airflow-providers-amazon",
    "boto3",
    "botocore",
    "aiobotocore",
    "psutil",
)

# The same as in replay_server.py, which is not imported: it may lie on no path here.
_SPARE = "spare"
_TARGET = 0.9

_SAMPLE_SECONDS = 0.01
# While CPU is measured: a hundred looks a second would cost more than our triggers do.
_RARE_SAMPLE_SECONDS = 0.1
_LOOK_SECONDS = 0.2
_WARM_UP_SECONDS = 60.0
_SEED = 20


class Control:
    """Steers the server, by a connection for each call: none is open while sockets are counted.

    :param port: the server's port.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, do: str, **more: Any) -> Any:
        """Make a control call and return its answer."""
        body = json.dumps({"do": do, **more}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        writer.write(
            b"POST /control HTTP/1.1\r\nHost: server\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        answer = await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return json.loads(answer.partition(b"\r\n\r\n")[2])


class Stalls:
    """Notes for how long the event loop kept somebody waiting who only wanted to sleep for 10 ms."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.every = _SAMPLE_SECONDS

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            every = self.every
            before = time.perf_counter()
            await asyncio.sleep(every)
            self.longest = max(self.longest, time.perf_counter() - before - every)

    def take(self) -> float:
        """Return the longest since it was last asked, in ms."""
        longest, self.longest = self.longest, 0.0
        return round(1000 * longest, 1)


class Collections:
    """Notes how long Python's garbage collections took, each of which holds the event loop up."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._begun = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            self.longest = max(self.longest, time.perf_counter() - self._begun)


class Watching:
    """The triggers of a cell, and when each fired."""

    def __init__(self, jobs: int) -> None:
        self.fired_at: list[float | None] = [None] * jobs
        self.said: list[str] = [""] * jobs
        self.left = jobs
        self.over = asyncio.Event()

    async def run(self, index: int, trigger: Any) -> None:
        """Run one trigger to its end, whatever that is."""
        said = "no event"
        try:
            async for event in trigger.run():
                if said == "no event":
                    self.fired_at[index] = time.time()
                    said = outcome(event.payload)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a failure is a figure here
            said = f"raised {type(error).__name__}"
        if self.fired_at[index] is None:
            self.fired_at[index] = time.time()
        self.said[index] = said
        self.left -= 1
        if not self.left:
            self.over.set()


def outcome(payload: Any) -> str:
    """Return what an event says of its job, for either side."""
    if "event" in payload:
        if payload["event"] == "error":
            return f"error {(payload.get('error') or {}).get('code')}"
        return str(payload["event"])
    return "ended" if payload["status"] == "success" else str(payload["status"])


def waits_for_objective(index: int, accounts: int) -> bool:
    """Whether a job is of the half that reaches an objective, as the server has it."""
    return (index % accounts + index // accounts) % 2 == 1


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def sockets(port: int) -> int:
    """Return how many connections to the server are open."""
    return sum(
        bool(one.raddr) and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
        for one in psutil.Process().net_connections(kind="tcp")
    )


def ours() -> Maker:
    """Import our triggers and return what makes them."""
    from airflow_amt.triggers.progress import AmtTuningProgressTrigger
    from airflow_amt.triggers.tuning import AmtTuningJobTrigger

    def make(job: str, connection: str, interval: float, objective: bool) -> Any:
        if objective:
            return AmtTuningProgressTrigger(
                tuning_job_name=job,
                condition={"type": "target_reached", "value": _TARGET},
                check_interval=interval,
                aws_conn_id=connection,
            )
        return AmtTuningJobTrigger(tuning_job_name=job, check_interval=interval, aws_conn_id=connection)

    return make


def peer() -> Maker:
    """Import the Amazon provider's trigger and return what makes it."""
    from airflow.providers.amazon.aws.triggers.sagemaker import SageMakerTrigger

    def make(job: str, connection: str, interval: float, objective: bool) -> Any:
        if objective:
            raise ValueError("it cannot wait for an objective")
        return SageMakerTrigger(
            job_name=job,
            job_type="tuning",
            waiter_delay=int(interval),
            waiter_max_attempts=1_000_000,
            aws_conn_id=connection,
        )

    return make


def set_environment(port: int, connections: int, home: Path) -> None:
    """Tell Airflow its home and its connections, one for each account."""
    os.environ["AIRFLOW_HOME"] = str(home)
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    # As a triggerer's own process has it: the metadata database is not for triggers.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "client"
    for number in range(connections):
        os.environ[f"AIRFLOW_CONN_WATCHED_{number:04d}"] = json.dumps(
            {
                "conn_type": "aws",
                "login": f"ACCOUNT{number:04d}",
                "password": "any-secret",
                "extra": {
                    "region_name": "us-east-1",
                    "service_config": {"sagemaker": {"endpoint_url": f"http://127.0.0.1:{port}"}},
                },
            }
        )


def connection_id(number: int) -> str:
    """Return the id of an account's connection."""
    return f"watched_{number:04d}"


def per_minute(count: float, seconds: float) -> float:
    """Return a rate."""
    return round(60 * count / seconds, 1)


def latencies(moments: Sequence[float], watching: Watching, right: Sequence[str]) -> dict[str, Any]:
    """Return how long after its moment each trigger fired, those that never did being the slowest."""
    delays: list[float] = []
    wrong: Counter[str] = Counter()
    for moment, fired_at, said, expected in zip(
        moments, watching.fired_at, watching.said, right, strict=True
    ):
        if fired_at is None:
            continue
        if said != expected:
            wrong[said] += 1
        elif fired_at < moment:
            wrong["too early"] += 1
        else:
            delays.append(fired_at - moment)
    delays.sort()

    def percentile(share: float) -> float | None:
        place = min(len(moments) - 1, int(share * len(moments)))
        return round(delays[place], 2) if place < len(delays) else None

    return {
        "detected": len(delays),
        "not_detected": sum(fired_at is None for fired_at in watching.fired_at),
        "wrong": dict(wrong),
        "latency_s": {
            "p50": percentile(0.5),
            "p90": percentile(0.9),
            "p99": percentile(0.99),
            "max": percentile(1.0),
        },
        "latency_of_detected_s": {
            "p50": round(delays[len(delays) // 2], 2) if delays else None,
            "max": round(delays[-1], 2) if delays else None,
        },
    }


async def warm_up(make: Maker) -> None:
    """Run one trigger to its event: what the first one alone imports and loads is nobody's."""
    watching = Watching(1)
    trigger = make(_SPARE, connection_id(0), 1.0, False)
    await asyncio.wait_for(watching.run(0, trigger), timeout=_WARM_UP_SECONDS)
    if watching.said != ["ended"]:
        raise RuntimeError(f"the first trigger says {watching.said[0]!r}")
    await asyncio.sleep(1.0)


async def idle_cpu() -> float:
    """Return the CPU time a minute of the measuring itself."""
    before, begun = time.process_time(), time.perf_counter()
    await asyncio.sleep(2.0)
    return round(60 * (time.process_time() - before) / (time.perf_counter() - begun), 2)


async def measure(options: argparse.Namespace, make: Maker) -> dict[str, Any]:
    """Measure one cell."""
    control = Control(options.port)
    accounts = options.connections
    await control(
        "configure",
        accounts=accounts,
        jobs=options.jobs,
        interval=options.interval,
        others=options.others,
        spare_ends_in=1.5,
    )
    stalls = Stalls()
    looking = asyncio.create_task(stalls.run())
    await warm_up(make)
    # Created anew, as the warm-up took seconds.
    await control(
        "configure", accounts=accounts, jobs=options.jobs, interval=options.interval, others=options.others
    )
    gc.collect()
    collections = Collections()
    stalls.every = _RARE_SAMPLE_SECONDS
    figures: dict[str, Any] = {"measuring_cpu_s_per_minute": await idle_cpu()}
    stalls.every = _SAMPLE_SECONDS
    before = resident()
    own_tasks, own_threads = len(asyncio.all_tasks()), threading.active_count()

    # Start.
    objectives = [
        options.mix == "objective" and waits_for_objective(index, accounts) for index in range(options.jobs)
    ]
    watching = Watching(options.jobs)
    await control("reset")
    stalls.take()
    begun, begun_at = time.perf_counter(), time.time()
    tasks: list[asyncio.Task[None]] = []
    for index, objective in enumerate(objectives):
        # Twice for each, as the triggerer does.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        trigger = make(
            f"tuning-{index // accounts:05d}", connection_id(index % accounts), options.interval, objective
        )
        tasks.append(asyncio.create_task(watching.run(index, trigger)))
    figures["created_s"] = round(time.perf_counter() - begun, 3)
    while True:
        seen = await control("seen")
        if not seen["unseen"] or time.perf_counter() - begun > options.start_limit:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    statistic = await control("statistics")
    figures["until_all_run_s"] = None if seen["unseen"] else round(seen["last_seen_at"] - begun_at, 2)
    figures["running"] = options.jobs - seen["unseen"]
    figures["stall_at_start_ms"] = stalls.take()
    figures["start"] = _calls(statistic)

    # Steady state.
    stalls.every = _RARE_SAMPLE_SECONDS
    await control("reset")
    cpu, begun = time.process_time(), time.perf_counter()
    memory: list[int] = []
    while (left := begun + options.steady - time.perf_counter()) > 0:
        await asyncio.sleep(min(1.0, left))
        memory.append(resident())
    window = time.perf_counter() - begun
    figures["cpu_s_per_minute"] = round(60 * (time.process_time() - cpu) / window, 2)
    stalls.every = _SAMPLE_SECONDS
    statistic = await control("statistics")
    figures["calls_per_minute"] = per_minute(statistic["calls"], statistic["seconds"])
    figures["throttled_per_minute"] = per_minute(statistic["throttled"], statistic["seconds"])
    figures["steady"] = _calls(statistic)
    steady_memory = statistics.median(memory[len(memory) // 2 :])
    figures["memory_per_trigger_kb"] = round((steady_memory - before) / options.jobs / 1000, 2)
    figures["resident_before_mb"] = round(before / 1e6, 1)
    figures["resident_mb"] = round(steady_memory / 1e6, 1)
    figures["sockets"] = sockets(options.port)
    figures["threads"] = threading.active_count() - own_threads
    figures["fired_before_any_end"] = options.jobs - watching.left

    # Ends.
    await control("reset")
    begin = time.time() + 0.5
    await control(
        "plan", begin=begin, over=options.interval, seed=_SEED, objectives=options.mix == "objective"
    )
    last = begin + options.interval + options.patience * options.interval
    with suppress(TimeoutError):
        await asyncio.wait_for(watching.over.wait(), timeout=last - time.time())
    statistic = await control("statistics")
    figures["ends"] = _calls(statistic)
    figures["stall_later_ms"] = stalls.take()
    figures["longest_collection_ms"] = round(1000 * collections.longest, 1)
    moments = (await control("moments"))["moments"]
    expected = ["condition" if objective else "ended" for objective in objectives]
    figures |= latencies(moments, watching, expected)
    figures["time_limit_s"] = options.patience * options.interval

    # What stays when nobody watches any more.
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    del tasks
    await asyncio.sleep(2.0)
    figures["left_behind"] = {
        "tasks": len(asyncio.all_tasks()) - own_tasks,
        "threads": threading.active_count() - own_threads,
        "sockets": sockets(options.port),
    }
    looking.cancel()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_mb"] = round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)
    return figures


def _calls(statistic: dict[str, Any]) -> dict[str, Any]:
    kept = ("seconds", "calls", "operations", "throttled", "refused", "busiest_second")
    busiest = max(statistic["accounts"])
    return {
        **{name: statistic[name] for name in kept},
        "seconds": round(statistic["seconds"], 1),
        "busiest_account": busiest,
    }


def versions() -> dict[str, str]:
    """Return the versions of what is installed here of all that matters."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure one cell and print its figures."""
    parser = argparse.ArgumentParser(prog="watch_client.py", description=__doc__)
    parser.add_argument("--side", choices=["ours", "peer"], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--mix", choices=["end", "objective"], default="end")
    parser.add_argument("--interval", type=float, default=30.0)
    parser.add_argument("--steady", type=float, default=60.0)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--start-limit", type=float, default=120.0, help="seconds")
    parser.add_argument("--patience", type=float, default=3.0, help="intervals after the last end")
    options = parser.parse_args(arguments)
    # What libraries print must not come between: standard output carries the figures alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="airflow-amt-watch-") as home:
        set_environment(options.port, options.connections, Path(home))
        warnings.simplefilter("ignore")
        make = ours() if options.side == "ours" else peer()
        figures = asyncio.run(measure(options, make))
    answer.write(json.dumps({"versions": versions(), **figures}) + "\n")
    answer.flush()
    # Threads of a library that still wait for an answer must not keep the figures back.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
