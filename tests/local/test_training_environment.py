"""What training processes see of the server's environment: nothing but what they are to see."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import pipes, running
from airflow_amt.local.channels import Channel
from airflow_amt.local.launcher import ServerDidNotStartError, start
from airflow_amt.local.processes import MARKER
from airflow_amt.local.storage import BucketStorage, storage_of
from airflow_amt.local.training_environment import base_environment, check_pass_env
from tests.local.support import client_of, create_request, run_to_end, training_jobs, unique

SECRETS = {
    "SECRET_TOKEN": "s3cr3t",
    "AWS_ACCESS_KEY_ID": "AKIAREAL",
    "AWS_SECRET_ACCESS_KEY": "real-secret",
    "AWS_SESSION_TOKEN": "real-session",
    "AWS_PROFILE": "production",
    "AWS_ENDPOINT_URL_S3": "https://s3.example.com",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
}


def base(server: Mapping[str, str], *names: str, endpoint: str = "http://127.0.0.1:4566") -> dict[str, str]:
    return base_environment(
        server, names, endpoint=endpoint, access_key_id="AKIDOWN", secret_access_key="own"
    )


AWS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
    "AWS_ACCESS_KEY_ID": "AKIDOWN",
    "AWS_SECRET_ACCESS_KEY": "own",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def test_path_and_locale_alone_are_the_servers() -> None:
    locale = {"LANG": "C.UTF-8", "LANGUAGE": "de:en", "LC_ALL": "C", "LC_TIME": "de_DE"}
    server = {**SECRETS, **locale, "PATH": "/bin", "HOME": "/root", "PYTHONPATH": "/x", "LANGUAGES": "x"}

    assert base(server) == {**AWS, **locale, "PATH": "/bin"}
    assert base({}) == {**AWS, "PATH": os.defpath}


def test_named_variables_are_passed_whatever_they_are(caplog: pytest.LogCaptureFixture) -> None:
    found = base(SECRETS, "SECRET_TOKEN", "AWS_ACCESS_KEY_ID", "ABSENT")

    assert found["SECRET_TOKEN"] == "s3cr3t"
    assert found["AWS_ACCESS_KEY_ID"] == "AKIAREAL"
    assert found["AWS_SECRET_ACCESS_KEY"] == "own"
    assert "ABSENT" not in found
    assert "not set: ABSENT" in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "reachable"),
    [
        ("http://0.0.0.0:80", "http://127.0.0.1:80"),
        ("http://[::]:80", "http://[::1]:80"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://10.0.0.7:80", "http://10.0.0.7:80"),
    ],
)
def test_the_endpoint_is_one_that_can_be_reached(endpoint: str, reachable: str) -> None:
    assert base({}, endpoint=endpoint)["AWS_ENDPOINT_URL"] == reachable


@pytest.mark.parametrize("name", ["", "A=B", "A B", "1A", "A-B", "A\0", "Ä", "A\n"])
def test_names_that_no_variable_can_have(name: str) -> None:
    with pytest.raises(AmtFieldError) as refusal:
        check_pass_env(["FINE", name])
    assert refusal.value.field == "pass-env"
    assert refusal.value.value == name


def variables_of(folder: Path) -> dict[str, str]:
    """Return the variables that the only training job wrote to its log."""
    (log,) = folder.glob("training-jobs/*/*/log")
    return dict(line.split("=", 1) for line in log.read_text().splitlines() if "=" in line)


@pytest.fixture(params=["fresh", "piped"])
def extra(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a request has besides, so that its process is started in another way."""
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data"}}
    channel = {"ChannelName": "train", "InputMode": "Pipe", "DataSource": source}
    return {"InputDataConfig": [channel]} if request.param == "piped" else {}


@pytest.mark.local
def test_a_training_process_sees_nothing_of_the_server(tmp_path: Path, extra: dict[str, Any]) -> None:
    environment = {**os.environ, **SECRETS, "GIVEN": "on", "LC_TIME": "C"}
    (tmp_path / "s3" / "data").mkdir(parents=True)
    (tmp_path / "s3" / "data" / "x").write_text("1")
    options = ("--s3-root", str(tmp_path / "s3"))
    images = {"env:1": "sh -c 'env; echo objective=0.5'"}
    with (
        running(
            tmp_path, images=images, options=options, environment=environment, pass_env=("GIVEN",)
        ) as server,
        client_of(server) as client,
    ):
        request = create_request(unique("clean"), image="env:1", most=1, Environment={"OWN": "1"}, **extra)
        run_to_end(client, request)
        (training,) = training_jobs(client, request["HyperParameterTuningJobName"])
        endpoint = server.endpoint
    assert training["TrainingJobStatus"] == "Completed"
    found = variables_of(tmp_path)
    shells_own = {"OLDPWD", "PWD", "SHLVL", "_"}
    optional = {"LANG", "LANGUAGE", *(name for name in environment if name.startswith("LC_"))}
    assert {name for name in found if not name.startswith(("SM_", "AWS_"))} - shells_own - optional == {
        *("GIVEN", "OWN", "HOME", "PATH", "PYTHONUNBUFFERED", MARKER),
        *("TRAINING_JOB_NAME", "TRAINING_JOB_ARN", "objective"),
    }
    assert not set(SECRETS.values()) & set(found.values())
    assert found["GIVEN"] == "on"
    assert found["OWN"] == "1"
    assert found["LC_TIME"] == "C"
    assert found["AWS_ENDPOINT_URL"] == endpoint
    assert found["AWS_REGION"] == "us-east-1"
    assert Path(found["HOME"]).is_dir()
    assert Path(found["HOME"]).parent.name == training["TrainingJobName"]
    assert {name for name in found if name.startswith("AWS_")} == {*AWS, "AWS_REGION", "AWS_DEFAULT_REGION"}


@pytest.mark.local
def test_the_command_line_refuses_what_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStartError, match="pass-env"):
        start(tmp_path, pass_env=("A=B",))


def test_credentials_of_an_s3_server_are_handed_on_out_of_the_trainers_sight(tmp_path: Path) -> None:
    storage = BucketStorage.from_environment("http://127.0.0.1:9", SECRETS)
    (tmp_path / "input" / "config").mkdir(parents=True)
    channel = Channel(name="train", mode="Pipe", uri="s3://data", data_type="S3Prefix")
    command = pipes.wrapped(["sh", "-c", "env; ls input/config"], [channel], storage, tmp_path)
    plan = Path(command[-4])

    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    again = storage_of(json.loads(plan.read_text())["storage"])
    assert again.description() == storage.description()
    assert again.description()["session_token"] == "real-session"
    storage.close()
    again.close()
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "real" not in done.stdout
    assert not plan.exists()
