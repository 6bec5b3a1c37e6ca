"""``airflow-amt local serve`` as a user types it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import running
from airflow_amt.local.server import is_loopback, listen
from tests.local.support import IMAGES, client_of, create_request, training_processes, unique, wait_until

ROOT = Path(__file__).parents[2]


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "airflow_amt.cli.main", "local", "serve", *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.local
def test_exactly_one_line_on_standard_output_and_exit_code_0_after_ctrl_c(tmp_path: Path) -> None:
    process = serve("--state-dir", str(tmp_path / "new" / "state"))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("embedded AMT ready: http://127.0.0.1:")

    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)

    assert rest == ""
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.local
def test_a_server_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    """The parent is killed while a training job runs: the pipe to the server closes."""
    name = unique("orphan")
    code = (
        "import sys, time, pathlib\n"
        "from airflow_amt.local.launcher import start\n"
        "from tests.local.support import IMAGES, create_request\n"
        "server = start(pathlib.Path(sys.argv[1]), images=IMAGES)\n"
        "request = create_request(sys.argv[2], sequence='hang')\n"
        "server.client().create_hyper_parameter_tuning_job(**request)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: training_processes(name), "the training process")
        parent.kill()

    wait_until(lambda: not Path(f"/proc/{pid}").exists() and not training_processes(name), "the end", 15)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--clock-rate", "0"], "clock-rate"),
        (["--clock-rate", "nan"], "clock-rate"),
        (["--port", "70000"], "port"),
        (["--stop-grace", "-1"], "stop-grace"),
        (["--account", "12"], "account"),
        (["--log-limit", "0"], "log-limit"),
        (["--image", "image"], "IMAGE_URI=COMMAND"),
        (["--image", "image=no-such-program-here"], "no-such-program-here"),
        (["--image", "image=sh no-such-script.py"], "no-such-script.py"),
        (["--host", "192.0.2.1"], "host"),
        (["--state-dir", "{file}"], "state-dir"),
    ],
)
def test_options_that_cannot_be_used(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused at once, in one line with field, value, limit and fix, and exit code 2."""
    file = tmp_path / "file"
    file.write_text("")
    defaults = [] if "--state-dir" in options else ["--state-dir", str(tmp_path / "state")]

    exit_code = main(["local", "serve", *defaults, *(option.format(file=file) for option in options)])

    captured = capsys.readouterr()
    assert exit_code == 2
    assert captured.out == ""
    (line,) = captured.err.strip().split("\n")
    assert named in line
    assert "Fix: " in line


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["local", "serve", "--speed", "9"])
    assert ended.value.code == 2
    assert "--speed" in capsys.readouterr().err


def test_what_is_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("example.org")


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AmtFieldError, match="choose another port"):
            listen("127.0.0.1", port)


@pytest.mark.local
def test_a_host_that_others_can_reach_is_warned_about(tmp_path: Path) -> None:
    with running(tmp_path, options=("--host", "0.0.0.0")) as server:
        assert "other machines reach this server" in server.log
        assert server.client().list_training_jobs()["TrainingJobSummaries"] == []


@pytest.mark.local
def test_account_and_s3_root(tmp_path: Path) -> None:
    options = ("--account", "123456789012", "--s3-root", str(tmp_path / "storage"))
    with running(tmp_path / "state", images=IMAGES, options=options) as server, client_of(server) as client:
        name = unique("account")
        arn = client.create_hyper_parameter_tuning_job(**create_request(name, most=1))
        assert ":123456789012:" in arn["HyperParameterTuningJobArn"]
        folder = tmp_path / "storage" / "models" / "out"
        wait_until(lambda: list(folder.glob("*/output/model.tar.gz")), "the model")
