"""Trainers and folders that do what they should not: each has a decided answer."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_amt.cli.main import main
from airflow_amt.local import running
from tests.local.support import (
    client_of,
    create_request,
    run_to_end,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

OPTIONS = ("--log-limit", "4", "--stop-grace", "0.5")
#: What training scripts do, by image.
SCRIPTS = {
    # A background child holds the log open, and writes to it later.
    "background": "(sleep 2; echo objective=0.9; sleep 620) & echo objective=0.5",
    # The same in a session of its own, which the end of the group does not reach.
    "session": "setsid sh -c 'sleep 2; echo objective=0.9; sleep 621' & sleep 0.2; echo objective=0.5",
    "frozen": "echo objective=0.5; kill -STOP $$; echo objective=0.9",
    "endless": "echo objective=0.5; exec tr '\\0' x </dev/zero",
    "homeless": 'echo objective=0.5; rm -rf "$(dirname "$SM_MODEL_DIR")"',
    "unlogged": 'rm "$(dirname "$SM_MODEL_DIR")/log"; echo objective=0.5; exec yes no log at all',
    "silent": "exec sleep 622",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server for these scripts, with a low limit for logs."""
    folder = tmp_path_factory.mktemp("scripts")
    images = {}
    for name, text in SCRIPTS.items():
        (folder / f"{name}.sh").write_text(text + "\n")
        images[f"{name}:1"] = f"sh {folder / name}.sh"
    state = tmp_path_factory.mktemp("state")
    with running(state, clock_rate=20.0, images=images, options=OPTIONS) as server:
        with client_of(server) as client:
            yield client
        assert "Traceback" not in server.log, server.log


def train(client: Any, image: str, **options: Any) -> dict[str, Any]:
    """Run one training job to its end and return its summary."""
    description = run_to_end(client, create_request(image=f"{image}:1", most=1, **options))
    (job,) = training_jobs(client, description["HyperParameterTuningJobName"])
    return job


@pytest.mark.local
@pytest.mark.parametrize("image", ["background", "session"])
def test_a_child_that_outlives_its_trainer_is_killed_and_its_words_do_not_count(
    client: Any, image: str
) -> None:
    job = train(client, image)

    assert job["TrainingJobStatus"] == "Completed"
    assert job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.5
    # Waiting for the child would have taken two seconds of ours, which are 40 on this clock.
    assert (job["TrainingEndTime"] - job["TrainingStartTime"]).total_seconds() < 38
    wait_until(lambda: not training_processes(job["TrainingJobName"]), "the end of the child", 10)


@pytest.mark.local
def test_a_trainer_that_is_frozen_ends_by_its_time_limit_or_by_a_stop(client: Any) -> None:
    """SIGTERM does not wake it; SIGKILL after the grace time does not need to."""
    job = train(client, "frozen", training_seconds=20)
    assert job["TrainingJobStatus"] == "Stopped"
    assert job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.5

    name = unique("frozen")
    client.create_hyper_parameter_tuning_job(**create_request(name, image="frozen:1", most=9))
    wait_until(
        lambda: [one for one in training_processes(name) if one.status() == "stopped"], "the frozen process"
    )
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    description = wait_for_end(client, name)
    assert description["HyperParameterTuningJobStatus"] == "Stopped"
    assert training_processes(name) == []


@pytest.mark.local
def test_a_log_without_a_newline_is_limited_too(client: Any) -> None:
    job = train(client, "endless")

    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"] == "ClientError: its log grew beyond 4 MiB"
    assert training_processes(job["TrainingJobName"]) == []


@pytest.mark.local
def test_a_trainer_that_deletes_its_folder_fails(client: Any) -> None:
    job = train(client, "homeless")

    assert job["TrainingJobStatus"] == "Failed"
    # Whichever is noticed first: that the log is gone, or that there is no model to keep.
    assert re.match(r"ClientError: .*(log was deleted|No such file or directory)", job["FailureReason"])


@pytest.mark.local
def test_a_trainer_that_deletes_its_log_cannot_write_without_a_limit(client: Any) -> None:
    job = train(client, "unlogged")

    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"] == "ClientError: its log was deleted while it ran"
    assert training_processes(job["TrainingJobName"]) == []


@pytest.mark.local
def test_a_frozen_training_process_that_somebody_kills(client: Any) -> None:
    name = unique("outsider")
    client.create_hyper_parameter_tuning_job(**create_request(name, image="silent:1", most=1))
    (process,) = wait_until(lambda: training_processes(name), "the training process")
    process.send_signal(signal.SIGSTOP)
    process.kill()

    wait_for_end(client, name)
    (job,) = training_jobs(client, name)
    assert job["FailureReason"].endswith("exit code: 137 (ended by SIGKILL)")


# --- children that hide ----------------------------------------------------------------------------

#: Starts a child outside the session, without the marker, and goes on once it is what it wants to be.
HIDE = (
    "setsid env -i sleep 623 & until grep -q sleep /proc/$!/comm; do sleep 0.01; done\necho objective=0.5\n"
)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is in a folder: those of its training jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.local
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_a_child_without_a_marker_ends_with_its_training_job_or_with_the_server(tmp_path: Path) -> None:
    (tmp_path / "hide.sh").write_text(HIDE)
    (tmp_path / "stay.sh").write_text(f"{HIDE}exec sleep 624\n")
    images = {f"{name}:1": f"sh {tmp_path / name}.sh" for name in ("hide", "stay")}
    state = tmp_path / "state"
    with running(state, clock_rate=20.0, images=images, options=OPTIONS) as server, client_of(server) as one:
        job = train(one, "hide")
        assert job["TrainingJobStatus"] == "Completed"
        wait_until(lambda: not processes_in(state), "the end of the child", 10)

        one.create_hyper_parameter_tuning_job(**create_request(image="stay:1", most=1))
        wait_until(
            lambda: (
                {tuple(process.cmdline()) for process in processes_in(state)}
                == {("sleep", "623"), ("sleep", "624")}
            ),
            "the child and its trainer",
        )
    assert processes_in(state) == []
    assert "Traceback" not in server.log, server.log


@pytest.mark.local
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_a_child_that_goes_on_writing_leaves_no_copies_of_channels(tmp_path: Path) -> None:
    state = tmp_path / "state"
    channels = []
    for name in ("a", "b", "c"):
        folder = state / "s3" / "data" / name
        folder.mkdir(parents=True)
        for number in range(500):
            (folder / f"row-{number}").touch()
        channels.append(
            {
                "ChannelName": name,
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://data/{name}"}},
            }
        )
    write = 'i=0; while :; do echo x >"$0/new-$i"; i=$((i+1)); done 2>/dev/null'
    (tmp_path / "write.sh").write_text(
        'for channel in "$SM_CHANNEL_A" "$SM_CHANNEL_B"; do\n'
        f"  setsid sh -c '{write}' \"$channel\" &\n"
        "done\nsleep 0.2\necho objective=0.5\n"
    )
    state.chmod(0o700)
    images = {"write:1": f"sh {tmp_path / 'write.sh'}"}
    with running(state, clock_rate=20.0, images=images, options=OPTIONS) as server, client_of(server) as one:
        assert train(one, "write", InputDataConfig=channels)["TrainingJobStatus"] == "Completed"
        left = list(state.glob("training-jobs/*/*/input/data/*"))
    assert left == []


@pytest.mark.local
def test_children_that_the_server_had_before_it_was_the_server_are_none_of_its_business(
    tmp_path: Path,
) -> None:
    """As of a shell that starts something in the background and then becomes the server."""
    serve = f"{sys.executable} -m airflow_amt.cli.main local serve --state-dir {tmp_path / 'state'} --port 0"
    with subprocess.Popen(
        ["sh", "-c", f"sleep 625 >&2 & echo $!; exec {serve}"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        bystander = psutil.Process(int(server.stdout.readline()))
        try:
            assert "http://" in server.stdout.readline()
            server.terminate()
            assert server.wait(60) == 0
            assert bystander.is_running()
            assert bystander.status() != psutil.STATUS_ZOMBIE
        finally:
            server.kill()
            bystander.kill()


@pytest.mark.local
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ('mkfifo "$SM_OUTPUT_DIR/failure" "$SM_MODEL_DIR/pipe"', "Completed"),
        ('rm -r "$SM_MODEL_DIR" "$SM_OUTPUT_DIR"; : >"$SM_OUTPUT_DIR"; exit 3', "Failed"),
        ('rm -r "$SM_MODEL_DIR" "$SM_OUTPUT_DIR"', "Completed"),
    ],
)
def test_folders_and_files_that_are_none(tmp_path: Path, script: str, status: str) -> None:
    (tmp_path / "odd.sh").write_text(f"echo objective=0.5\n{script}\n")
    images = {"odd:1": f"sh {tmp_path / 'odd.sh'}"}
    with (
        running(tmp_path / "state", clock_rate=20.0, images=images, options=OPTIONS) as server,
        client_of(server) as one,
    ):
        job = train(one, "odd")
    assert job["TrainingJobStatus"] == status
    if status == "Failed":
        assert job["FailureReason"] == "AlgorithmError: objective=0.5, exit code: 3"


# --- state folders that cannot be used -------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], state_dir: str) -> str:
    """Start a server on a folder that it has to refuse; return what it says."""
    assert main(["local", "serve", "--state-dir", state_dir]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().split("\n")
    assert "state-dir" in line
    assert "Fix: " in line
    return line


def test_a_state_folder_that_is_a_file_or_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in refused(capsys, str(file))
    assert os.strerror(errno.ENOTDIR) in refused(capsys, str(file / "state"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that nobody can write, root included")
def test_a_state_folder_where_nobody_can_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert os.strerror(errno.ENOENT) in refused(capsys, "/proc/airflow-amt")
    refused(capsys, "/proc")


@pytest.mark.parametrize("taken", ["lock", "amt.sqlite3"])
def test_a_state_folder_with_a_folder_in_place_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], taken: str
) -> None:
    (tmp_path / taken).mkdir()
    refused(capsys, str(tmp_path))


def test_a_state_folder_with_something_else_for_a_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "amt.sqlite3").write_bytes(b"not a database at all, but long enough to be read as one" * 100)
    assert "not a database" in refused(capsys, str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system in a name space of its own")
def test_a_state_folder_on_a_disk_that_is_full(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    fill = f"mount -t tmpfs -o size=64k tmpfs {full} && {{ cat /dev/zero >{full}/zeros 2>/dev/null; true; }}"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, fill], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a file system in a name space of their own")
    serve = f"{fill} && exec {sys.executable} -m airflow_amt.cli.main local serve --state-dir {full}/state"
    done = subprocess.run(
        [*unshare, serve],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().split("\n")
    assert os.strerror(errno.ENOSPC) in line
