"""Where the settings of a server come from: the command line, a file, defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local.config import DEFAULTS, settle
from airflow_amt.local.launcher import start
from tests.local.support import client_of, create_request, run_to_end

FILE = """
port = 4570
clock-rate = 60
stop_grace = 0.5
state-dir = "state"
with-aws = false
fork-server = ["json", "csv"]
pass-env = ["TOKEN"]
log-level = "debug"

[images]
"my-image:latest" = "sh train.sh"
"other:1" = "sh train.sh --fast"

[faults]
seed = 3
rules = []
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "train.sh").write_text("echo objective=0.7\n")
    path = tmp_path / "amt.toml"
    path.write_text(FILE)
    return path


def test_without_anything_the_defaults_count(tmp_path: Path) -> None:
    settings = settle({}, None, tmp_path)

    assert dict(settings.options) == dict(DEFAULTS)
    assert (settings.images, settings.faults) == ({}, None)


def test_a_file_and_what_is_relative_to_it(file: Path, tmp_path: Path) -> None:
    settings = settle({}, file, tmp_path / "elsewhere")

    assert settings.options["port"] == 4570
    assert settings.options["clock_rate"] == 60
    assert settings.options["stop_grace"] == 0.5
    assert settings.options["state_dir"] == tmp_path / "state"
    assert settings.options["fork_server"] == ["json", "csv"]
    assert settings.options["pass_env"] == ["TOKEN"]
    assert settings.options["log_level"] == "debug"
    assert settings.options["host"] == DEFAULTS["host"]
    assert settings.images["my-image:latest"][1:] == [str(tmp_path / "train.sh")]
    assert settings.images["other:1"][2:] == ["--fast"]
    assert settings.faults == '{"seed": 3, "rules": []}'


def test_the_command_line_comes_first(file: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "port": 0,
        "clock_rate": None,
        "image": ["other:1=sh -c true"],
        "faults": "{}",
        "fork_server": ["re"],
    }
    settings = settle(given, file, tmp_path)

    assert settings.options["port"] == 0
    assert settings.options["clock_rate"] == 60
    assert settings.options["fork_server"] == ["re"]
    assert settings.images["other:1"][1:] == ["-c", "true"]
    assert "my-image:latest" in settings.images
    assert settings.faults == "{}"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("port = 'x'", "port"),
        ("port = true", "port"),
        ("clock-rate = '60'", "clock-rate"),
        ("with-aws = 1", "with-aws"),
        ("fork-server = 'json'", "fork-server"),
        ("host = 7", "host"),
        ("log-level = 'loud'", "log-level"),
        ("speed = 9", "speed"),
        ("images = 'x'", "images"),
        ("[images]\n'a:1' = ['sh']", "a:1"),
        ("[images]\n'a:1' = 'no-such-program-here'", "no-such-program-here"),
        ("[images]\n'a:1' = 'sh missing.sh'", "missing.sh"),
        ("port = ", "TOML"),
    ],
)
def test_what_a_file_cannot_have(content: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "amt.toml"
    file.write_text(content)
    with pytest.raises(AmtFieldError, match=named) as refusal:
        settle({}, file, tmp_path)
    assert "Fix: " in str(refusal.value)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local", "serve", "--config", str(tmp_path / "missing.toml")]) == 2
    assert "missing.toml" in capsys.readouterr().err


@pytest.mark.local
def test_a_server_with_a_file_trains(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text("echo objective=0.7\n")
    file = tmp_path / "amt.toml"
    file.write_text("[images]\n'mine:1' = 'sh train.sh'\n")
    server = start(tmp_path / "state", options=("--config", str(file)))
    try:
        with client_of(server) as client:
            description = run_to_end(client, create_request(image="mine:1", most=1))
    finally:
        assert server.stop() == 0
    assert description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"][
        "Value"
    ] == pytest.approx(0.7)


@pytest.mark.local
def test_the_fixtures_that_are_shipped(tmp_path: Path) -> None:
    """A test suite of a user's own, in a process of its own, as plugins are named in a top conftest only."""
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        'pytest_plugins = ["airflow_amt.local.testing"]\n\n\n'
        '@pytest.fixture(scope="session")\n'
        "def embedded_amt_options():\n"
        '    return {"images": {"mine:1": "sh -c \'echo objective=0.3\'"}}\n'
    )
    (tmp_path / "test_mine.py").write_text(
        "from tests.local.support import create_request, run_to_end\n\n\n"
        "def test_retraining(embedded_amt, sagemaker_client):\n"
        '    done = run_to_end(sagemaker_client, create_request(image="mine:1", most=2))\n'
        '    assert done["TrainingJobStatusCounters"]["Completed"] == 2\n'
        "    assert embedded_amt.is_running\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in run.stdout, run.stdout + run.stderr
