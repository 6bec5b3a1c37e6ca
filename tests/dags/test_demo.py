"""``airflow-amt demo``, as a user runs it: a process, its output, its exit code, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.dags

TIMEOUT_SECONDS = 600


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "airflow_amt.cli.main", "demo", "--home", str(home), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A marker that its own processes inherit, by which they are found again.
        env={**os.environ, "AIRFLOW_AMT_TEST_MARKER": str(home)},
    )


def left_of(home: Path) -> list[str]:
    """Processes that the demo started and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            # Training processes get no variables of the demo's, but paths in its home.
            if any(str(home) in value for value in process.environ().values()):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone, or somebody else's
    return found


@pytest.mark.parametrize(
    ("criterion", "reason", "limit", "at_least"),
    [
        ("max-training-jobs", "max_training_jobs", 8, 8),
        ("target", "target_reached", 0.993, 0.993),
        pytest.param("not-improving", "not_improving", 3, 3, marks=pytest.mark.long),
        pytest.param("max-runtime", "max_runtime", 120, 120, marks=pytest.mark.long),
        pytest.param("converged", "converged", "Enabled", None, marks=pytest.mark.long),
    ],
)
def test_each_criterion_ends_the_tuning_job_and_says_so(
    tmp_path: Path, criterion: str, reason: str, limit: Any, at_least: float | None
) -> None:
    demo = start(tmp_path / "home", "--criterion", criterion, "--json")
    output, errors = demo.communicate(timeout=TIMEOUT_SECONDS)
    assert demo.returncode == 0, errors
    outcome = json.loads(output.splitlines()[-1])
    assert outcome["reason"] == reason
    assert outcome["certain"] is True
    assert outcome["status"] == "Completed"
    assert outcome["evidence"]["limit"] == limit
    if at_least is None:
        assert outcome["evidence"]["observed"] == outcome["convergence_detected_at"]
    else:
        assert outcome["evidence"]["observed"] >= at_least
    best = outcome["best_training_job"]
    assert set(best["hyperparameters"]) == {"C", "gamma"}
    assert 0 < best["objective"] <= 1
    assert "the same." in errors
    assert "training jobs" in errors
    assert left_of(tmp_path / "home") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_job_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    home = tmp_path / "home"
    # 40 results at least: time enough to interrupt it.
    demo = start(home, "--criterion", "converged")
    try:
        assert demo.stdout is not None
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for line in demo.stdout:
            if "2 running" in line:
                break
            assert time.monotonic() < deadline
        else:
            pytest.fail("the demo ended before two training jobs ran")
        while not any("trainers/digits.py" in command for command in left_of(home)):
            assert time.monotonic() < deadline  # between two training jobs there is none for a moment
            time.sleep(0.05)
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=120)
    finally:
        if demo.poll() is None:  # a failed test must leave no process either
            demo.terminate()
            demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "no process is left" in output
    assert left_of(home) == []


def test_a_used_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    demo = start(tmp_path)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "is not empty" in output
    assert (tmp_path / "mine.txt").read_text() == "keep me"
