"""How many calls a second the embedded AMT answers, beside moto's server, with 1,000 tuning jobs stored.

``python -m benchmarks.requests [--jobs 1000] [--seconds 4] [--rounds 3] [--connections 4] [--json]``

Both servers run in processes of their own; moto (``moto[server,sagemaker]``) comes into an environment that
this makes. All tuning jobs are created by calls. On ours each really trains one training job; moto's are born
Completed. The same raw keep-alive connections (``benchmarks.load``) ask one server and then the other, round
by round; a figure is the median of the rounds. ``server_cpu_us`` is the server's own CPU time per call, which
a busy machine disturbs less than the rates.

``while_updated``: four tuning jobs train meanwhile, two training jobs of one second each at a time. moto has
nothing that changes; its figure there is that of a server at rest. Where moto answers 100 summaries whatever
``MaxResults`` says, it is asked the same all the same. ListTrainingJobsForHyperParameterTuningJob, which moto
lacks, is measured alone: ten tuning jobs with 100 training jobs each, on one page. Aim: ``ratio`` at least 5.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil

from airflow_amt.local import running
from benchmarks import stored
from benchmarks.load import Load, http_request, run
from benchmarks.record import save

DESCRIBE = "DescribeHyperParameterTuningJob"
LIST = "ListHyperParameterTuningJobs"
LIST_TRAINING = "ListTrainingJobsForHyperParameterTuningJob"


@dataclass(frozen=True)
class Server:
    """A server to measure."""

    name: str
    endpoint: str
    pid: int
    key: str = "any"
    secret: str = "any"

    def request(self, operation: str, params: dict[str, Any]) -> bytes:
        """Return a call of this server as the bytes that go over the wire."""
        return http_request(self.endpoint, operation, params, self.key, self.secret)


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[tuple[Server, str]]:
    """Install moto, run its server, and give it and its version."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    programs = folder / "bin"
    subprocess.run([str(programs / "pip"), "install", "--quiet", "moto[server,sagemaker]"], check=True)
    version = subprocess.run(
        [str(programs / "python"), "-c", "from importlib.metadata import version; print(version('moto'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [str(programs / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_for_port(process, port)
            yield Server("moto", f"http://127.0.0.1:{port}", process.pid), version
        finally:
            process.terminate()


def _wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("moto's server did not start") from None
            time.sleep(0.1)


def client_of(server: Server) -> Any:
    """Return a boto3 client, for what is not measured."""
    return boto3.client(
        "sagemaker",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
    )


def calls(server: Server, names: list[str]) -> dict[str, list[bytes]]:
    """Return the requests of each measurement."""
    chosen = random.Random(1).choices(names, k=4 * len(names))
    return {
        "describe": [server.request(DESCRIBE, {"HyperParameterTuningJobName": name}) for name in chosen],
        "list_default_page": [server.request(LIST, {})],
        "list_100": [server.request(LIST, {"MaxResults": 100})],
        "list_100_newest_first": [
            server.request(
                LIST,
                {"MaxResults": 100, "SortBy": "CreationTime", "SortOrder": "Descending"},
            )
        ],
    }


def measure(server: Server, requests: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    """Put one load on one server."""
    process = psutil.Process(server.pid)
    run(server.endpoint, requests, seconds=0.3, connections=options.connections)
    before = process.cpu_times()
    load: Load = run(server.endpoint, requests, seconds=options.seconds, connections=options.connections)
    after = process.cpu_times()
    cpu = (after.user + after.system) - (before.user + before.system)
    return {
        "per_second": round(load.rate, 1),
        "p50_ms": round(load.percentile_ms(0.5), 3),
        "p99_ms": round(load.percentile_ms(0.99), 3),
        "server_cpu_us": round(1e6 * cpu / load.requests, 1),
        "answer_bytes": load.bytes // load.requests,
    }


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def side_by_side(ours: Server, peer: Server, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure both servers in turn."""
    of_ours, of_peer = calls(ours, names), calls(peer, names)
    rounds: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {name: [] for name in of_ours}
    for _ in range(options.rounds):
        for name in of_ours:
            rounds[name].append(
                (measure(ours, of_ours[name], options), measure(peer, of_peer[name], options))
            )
    figures: dict[str, Any] = {}
    for name, pairs in rounds.items():
        our_median = median([pair[0] for pair in pairs])
        peer_median = median([pair[1] for pair in pairs])
        figures[name] = {
            "ours": our_median,
            "moto": peer_median,
            "ratio": round(our_median["per_second"] / peer_median["per_second"], 2),
            "cpu_ratio": round(peer_median["server_cpu_us"] / our_median["server_cpu_us"], 2),
        }
    return figures


def run_all(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """Fill both servers and measure; return the figures and moto's version."""
    names = stored.names(options.jobs)
    many = [f"many-{number}" for number in range(10)]
    moving = [f"moving-{number}" for number in range(4)]
    with (
        moto(folder / "moto") as (peer, moto_version),
        running(folder / "state", images=stored.images(folder)) as amt,
    ):
        signed_with = amt.credentials
        ours = Server("ours", amt.endpoint, amt.pid, signed_with.access_key_id, signed_with.secret_access_key)
        for server in (peer, ours):
            begin = time.monotonic()
            stored.store(client_of(server), [stored.tuning_job(name, stored.INSTANT) for name in names])
            sys.stderr.write(f"{server.name}: stored in {time.monotonic() - begin:.0f} s\n")
        at_rest = side_by_side(ours, peer, names, options)
        client = client_of(ours)
        stored.store(
            client,
            [stored.tuning_job(name, stored.INSTANT, training_jobs=100, parallel=4) for name in many],
        )
        alone = [
            ours.request(LIST_TRAINING, {"HyperParameterTuningJobName": name, "MaxResults": 100})
            for name in many
        ]
        training = median([measure(ours, alone, options) for _ in range(options.rounds)])
        for name in moving:
            client.create_hyper_parameter_tuning_job(
                **stored.tuning_job(name, stored.SECOND, training_jobs=10_000, parallel=2)
            )
        # Those that train are described as well.
        while_updated = side_by_side(ours, peer, names, options)
        training_moving = median([measure(ours, alone, options) for _ in range(options.rounds)])
        updates = sum(
            sum(one["TrainingJobStatusCounters"].values())
            for one in client.list_hyper_parameter_tuning_jobs(NameContains="moving")[
                "HyperParameterTuningJobSummaries"
            ]
        )
        if updates < 2 * len(moving):
            raise RuntimeError(f"the tuning jobs hardly trained: {updates} training jobs")
    return {
        "at_rest": at_rest,
        "while_updated": while_updated,
        "list_training_jobs_100": {"at_rest": training, "while_updated": training_moving},
    }, moto_version


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="airflow-amt-benchmark-") as folder:
        measured, moto_version = run_all(options, Path(folder))
    figures = {
        "tuning_jobs": options.jobs,
        "connections": options.connections,
        "rounds": options.rounds,
        "load_average_before": round(load_before, 1),
        "peer": {"name": "moto_server", "version": moto_version},
        **measured,
    }
    command = (
        f"python -m benchmarks.requests --jobs {options.jobs} --seconds {options.seconds:g} "
        f"--rounds {options.rounds} --connections {options.connections}"
    )
    packages = ["airflow-provider-amt", "botocore", "uvicorn", "httptools", "SQLAlchemy"]
    save("requests", command, packages, figures)
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
