"""What importing the operators adds to the parsing of a DAG file, beside the Amazon provider's operator.

``python -m benchmarks.parse [--repeats 15] [--json]``

A DAG file imports ``DAG`` from ``airflow.sdk`` anyhow; what an operator's module costs on top is what each
parse of each file that uses it pays. Each measurement is a process of its own, which first imports ``DAG``
and then the modules measured; bytecode is cached, as it is after the first parse. Figures are medians in
milliseconds, of wall clock and of the process's CPU time: on a busy machine the second is the steadier one.
Ours are all public operators and sensors together; the peer is one class, ``SageMakerTuningOperator``.
``with_hook`` also imports
``AwsBaseHook``, which nothing but a running task needs. Aim: at most 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from airflow_amt.get_provider_info import get_provider_info
from benchmarks.record import save

AIM_MS = 50.0

_PROGRAM = """
import json, time
def clocks():
    return time.perf_counter() * 1000, time.process_time() * 1000
start = clocks()
from airflow.sdk import DAG
between = clocks()
{statement}
end = clocks()
print(json.dumps({{
    "dag": [after - before for before, after in zip(start, between)],
    "extra": [after - before for before, after in zip(between, end)],
}}))
"""


def modules() -> list[str]:
    """Return the modules of all public operators and sensors."""
    info = get_provider_info()
    return [
        module
        for kind in ("operators", "sensors")
        for part in info[kind]
        for module in part["python-modules"]
    ]


def statements() -> dict[str, str]:
    """Return what is imported beyond ``DAG``."""
    ours = f"import {', '.join(modules())}"
    return {
        "ours": ours,
        "amazon": "from airflow.providers.amazon.aws.operators.sagemaker import SageMakerTuningOperator",
        "with_hook": f"{ours}\nimport airflow_amt.hooks.tuning",
    }


def measure_once(statement: str, home: str) -> dict[str, list[float]]:
    """Import in a new process; return wall clock and CPU time in milliseconds."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(statement=statement)],
        env={**os.environ, "AIRFLOW_HOME": home},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(repeats: int) -> dict[str, Any]:
    """Measure all in turn, so that a busy minute hits each alike."""
    wanted = statements()
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory(prefix="airflow-amt-benchmark-") as home:
        for statement in wanted.values():  # writes the bytecode and the new home's configuration
            measure_once(statement, home)
        for _ in range(repeats):
            for name, statement in wanted.items():
                found[name].append(measure_once(statement, home))
    everything = [one["dag"] for measured in found.values() for one in measured]
    return {
        "dag_alone_ms": _medians(everything),
        "extra_ms": {name: _medians([one["extra"] for one in measured]) for name, measured in found.items()},
    }


def _medians(pairs: list[list[float]]) -> dict[str, float]:
    wall, cpu = zip(*pairs, strict=True)
    return {"wall": round(statistics.median(wall), 1), "cpu": round(statistics.median(cpu), 1)}


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parse", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    figures = {
        "repeats": options.repeats,
        "modules": modules(),
        "aim_ms": AIM_MS,
        **measure(options.repeats),
    }
    packages = ["airflow-provider-amt", "apache-airflow", "apache-airflow-providers-amazon", "botocore"]
    save("parse", f"python -m benchmarks.parse --repeats {options.repeats}", packages, figures)
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
