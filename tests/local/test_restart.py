"""A server that is started on the folder of an earlier one goes on where that one was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_amt.local import RunningServer, ServerDidNotStartError
from airflow_amt.local.launcher import running, start
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local


def serve(folder: Path, **options: Any) -> RunningServer:
    return start(folder, images=IMAGES, options=("--stop-grace", "0.3"), **options)


def test_ended_tuning_jobs_are_kept_as_they_were(tmp_path: Path) -> None:
    first = serve(tmp_path)
    with client_of(first) as client:
        request = create_request(sequence="0.1 0.2", most=2, tags={"team": "blue"})
        before = run_to_end(client, request)
        name = before["HyperParameterTuningJobName"]
        jobs_before = training_jobs(client, name)
    assert first.stop() == 0

    second = serve(tmp_path)
    with client_of(second) as client:
        after = describe(client, name)
        jobs_after = training_jobs(client, name)
        tags = client.list_tags(ResourceArn=after["HyperParameterTuningJobArn"])["Tags"]
    assert second.stop() == 0

    del before["ResponseMetadata"], after["ResponseMetadata"]
    assert after == before
    assert jobs_after == jobs_before
    assert tags == [{"Key": "team", "Value": "blue"}]


def test_after_a_kill_running_training_jobs_failed_and_the_tuning_job_goes_on(tmp_path: Path) -> None:
    first = serve(tmp_path)
    with client_of(first) as client:
        name = unique("killed")
        request = create_request(name, sequence="0.1 0.2 hang hang 0.3", most=6, parallel=2)
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(
            lambda: (
                describe(client, name)["TrainingJobStatusCounters"]
                == {
                    "Completed": 2,
                    "InProgress": 2,
                    "RetryableError": 0,
                    "NonRetryableError": 0,
                    "Stopped": 0,
                }
            ),
            "two results and two running training jobs",
        )
        wait_until(lambda: len(training_processes(name)) == 2, "their processes")
        before = describe(client, name)
        left = training_processes(name)
    first.kill()
    assert len(left) == 2
    assert all(process.is_running() for process in left)

    second = serve(tmp_path)
    with client_of(second) as client:
        wait_until(lambda: not any(process.is_running() for process in left), "the end of the old processes")
        description = wait_for_end(client, name)
        jobs = training_jobs(client, name)
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["CreationTime"] == before["CreationTime"]
    assert description["HyperParameterTuningEndTime"] > before["LastModifiedTime"]
    assert [job["TrainingJobStatus"] for job in jobs] == [
        "Completed",
        "Completed",
        "Failed",
        "Failed",
        "Completed",
        "Completed",
    ]
    assert jobs[2]["FailureReason"].startswith("InternalServerError: ")
    assert description["TrainingJobStatusCounters"]["RetryableError"] == 2
    assert description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.3
    # The seed goes on: no combination twice.
    assert len({job["TunedHyperParameters"]["x"] for job in jobs}) == 6


def test_after_an_orderly_end_the_tuning_job_goes_on_too(tmp_path: Path) -> None:
    first = serve(tmp_path)
    with client_of(first) as client:
        name = unique("orderly")
        client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang 0.4", most=2))
        wait_until(lambda: training_processes(name), "the training process")
    assert first.stop() == 0
    assert training_processes(name) == []

    second = serve(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
        jobs = training_jobs(client, name)
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert [job["TrainingJobStatus"] for job in jobs] == ["Failed", "Completed"]
    assert "embedded AMT was stopped" in jobs[0]["FailureReason"]


def test_a_stop_that_a_kill_interrupted_is_finished(tmp_path: Path) -> None:
    # A long grace time, so that the stop is still under way when the server is killed.
    first = start(tmp_path, images=IMAGES, options=("--stop-grace", "60"))
    with client_of(first) as client:
        name = unique("stopping")
        client.create_hyper_parameter_tuning_job(**create_request(name, image="stubborn:1", most=9))
        wait_until(lambda: len(training_processes(name)) >= 4, "the stubborn processes")
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        assert describe(client, name)["HyperParameterTuningJobStatus"] == "Stopping"
    first.kill()
    assert len(training_processes(name)) >= 4

    second = serve(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
        (job,) = training_jobs(client, name)
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Stopped"
    assert job["TrainingJobStatus"] == "Stopped"
    assert training_processes(name) == []


def test_bayesian_search_goes_on_with_what_it_knew(tmp_path: Path) -> None:
    ranges = {"CategoricalParameterRanges": [{"Name": "kind", "Values": list("abcdef")}]}
    first = serve(tmp_path)
    with client_of(first) as client:
        name = unique("bayes")
        request = create_request(
            name, sequence="0.1 0.2 0.3 hang 0.4", strategy="Bayesian", most=50, ranges=ranges
        )
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(lambda: describe(client, name)["TrainingJobStatusCounters"]["Completed"] == 3, "3 results")
        # The fourth hangs: the first server has to launch it, or the second one would.
        wait_until(lambda: len(training_jobs(client, name)) == 4, "the fourth training job")
    first.kill()

    second = serve(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
        tried = [job["TunedHyperParameters"]["kind"] for job in training_jobs(client, name)]
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert sorted(tried) == list("abcdef")


def test_failures_of_the_server_itself_are_not_counted_as_attempts(tmp_path: Path) -> None:
    """Two interrupted and four failed training jobs are not five attempts; the last one succeeds."""
    first = serve(tmp_path)
    with client_of(first) as client:
        name = unique("attempts")
        request = create_request(name, sequence="hang hang fail none fail fail 0.5", most=7, parallel=2)
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(
            lambda: describe(client, name)["TrainingJobStatusCounters"]["InProgress"] == 2,
            "two running training jobs",
        )
    first.kill()

    second = serve(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["RetryableError"] == 2
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 1, "Pending": 0, "Failed": 6}


def test_a_lost_image_mapping_fails_the_training_jobs_with_a_reason(tmp_path: Path) -> None:
    first = serve(tmp_path)
    with client_of(first) as client:
        name = unique("mapping")
        client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang", most=9))
        wait_until(lambda: training_processes(name), "the training process")
    first.kill()

    second = start(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
        reasons = [job["FailureReason"] for job in training_jobs(client, name)]
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert "--image" in reasons[-1]


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = serve(tmp_path)
    try:
        with pytest.raises(ServerDidNotStartError, match="no other server uses") as refusal:
            serve(tmp_path)
        assert refusal.value.exit_code == 2
        assert str(first.pid) in refusal.value.log
        assert first.is_running
    finally:
        assert first.stop() == 0


def test_a_time_limit_that_passes_while_no_server_runs_launches_nothing_more(tmp_path: Path) -> None:
    first = serve(tmp_path)
    with client_of(first) as client:
        name = unique("late")
        request = create_request(name, sequence="0.1 0.2 hang", most=50, runtime=1_000_000)
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(lambda: describe(client, name)["TrainingJobStatusCounters"]["Completed"] == 2, "2 results")
        created = describe(client, name)["CreationTime"]
    first.kill()
    # As if it had been killed between two training jobs, and away for longer than the tuning job may take.
    passed = round((created.timestamp() + 1_000_001) * 1000)
    with closing(sqlite3.connect(tmp_path / "amt.sqlite3")) as database, database:
        database.execute("DELETE FROM training_jobs WHERE ended_ms IS NULL")
        database.execute("INSERT OR REPLACE INTO meta VALUES ('last_seen_ms', ?)", (str(passed),))

    second = serve(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
        jobs = training_jobs(client, name)
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed", "Completed"]


def test_the_clock_never_goes_back(tmp_path: Path) -> None:
    """The first server's clock runs far ahead of real time; the second one's starts from there."""
    first = serve(tmp_path, clock_rate=5000.0)
    with client_of(first) as client:
        ended = run_to_end(client, create_request(sequence="0.1", seconds="0.2", most=2))
    first.kill()

    second = serve(tmp_path)
    with client_of(second) as client:
        later = run_to_end(client, create_request(sequence="0.1", most=1))
    assert second.stop() == 0

    assert later["CreationTime"] > ended["HyperParameterTuningEndTime"]


#: Leaves a process behind that has no environment, session, folder or files by which it could be found.
FORSAKING = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        os.closerange(0, 1000)
        os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
    os._exit(0)
os.wait()
print("left", flush=True)
time.sleep(600)
"""


def sleeping(seconds: str) -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline", "status"])
        if one.info["cmdline"] == ["sleep", seconds] and one.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="processes carry a tag on Linux only")
@pytest.mark.parametrize("fork_server", [False, True])
def test_a_restart_ends_what_has_shed_all_but_its_tag(tmp_path: Path, fork_server: bool) -> None:
    (tmp_path / "train.py").write_text(FORSAKING)
    state, seconds = tmp_path / "state", f"31536000.{os.getpid()}{int(fork_server)}"
    # sh, so that the hyperparameters are no arguments.
    wrapper = tmp_path / "train.sh"
    wrapper.write_text(f"exec {sys.executable} {tmp_path / 'train.py'} {seconds}\n")
    script = f"{sys.executable} {tmp_path / 'train.py'} {seconds}" if fork_server else f"sh {wrapper}"
    options = ("--fork-server", "json") if fork_server else ()
    first = start(state, images={"forsaking:1": script}, options=options)
    bystander = subprocess.Popen(["sleep", f"{seconds}1"])
    try:
        with client_of(first) as client:
            client.create_hyper_parameter_tuning_job(
                **create_request(unique("forsaking"), image="forsaking:1", most=1)
            )
            wait_until(lambda: sleeping(seconds), "the process that is left behind")
        first.kill()
        (left,) = sleeping(seconds)
        wait_until(lambda: not left.environ(), "the exec")
        # Nobody adopts it any more who would know it.
        wait_until(lambda: left.ppid() not in (0, first.pid), "its adoption by another process")

        with running(state):
            wait_until(lambda: not sleeping(seconds), "the end of what was left behind")
            assert bystander.poll() is None
    finally:
        for process in sleeping(seconds):
            process.kill()
        bystander.kill()
        bystander.wait()
