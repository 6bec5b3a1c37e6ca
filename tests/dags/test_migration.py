"""The Amazon provider's own operator, unmodified, and ours: one request, one answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest

from airflow_amt.local import RunningServer, running
from tests.dags.conftest import REGION, DagTest
from tests.dags.test_flows import states, xcom
from tests.local.support import IMAGES, create_request

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]


@pytest.fixture
def bucket(amt: RunningServer) -> Path:
    """The folder that stands for ``s3://churn-data`` in the embedded AMT, with one file to train on."""
    folder = amt.state_dir / "s3" / "churn-data"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "train" / "rows.csv").write_text("1,2\n")
    return folder


def head_server(root: Path) -> ThreadingHTTPServer:
    """An S3 of two operations, HeadBucket and HeadObject, over the folders below ``root``."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = (root / self.path.lstrip("/").partition("?")[0]).exists()
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Stay quiet."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def small_s3(bucket: Path) -> Iterator[str]:
    with head_server(bucket.parent) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def moto_s3(tmp_path: Path) -> Iterator[str]:
    """moto's server, in an environment of its own: it pins packages that others here need newer."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", "moto[s3,server]"], check=True)
    log = (tmp_path / "moto.log").open("w+")
    process = subprocess.Popen(
        [programs / "moto_server", "-H", "127.0.0.1", "-p", "0"],
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while "Running on http://127.0.0.1:" not in (text := (tmp_path / "moto.log").read_text()):
            assert time.monotonic() < deadline, text
            assert process.poll() is None, text
            time.sleep(0.1)
        endpoint = text.partition("Running on ")[2].split()[0]
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="churn-data")
        client.put_object(Bucket="churn-data", Key="train/rows.csv", Body=b"1,2\n")
        client.close()
        yield endpoint
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.mark.parametrize(
    "s3", ["small_s3", pytest.param("moto_s3", marks=pytest.mark.foreign)], ids=["small", "moto"]
)
def test_migrating_is_a_change_of_import_and_class(
    s3: str,
    bucket: Path,
    amt: RunningServer,
    dag_test: DagTest,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = request.getfixturevalue(s3)
    services = {"sagemaker": {"endpoint_url": amt.endpoint}, "s3": {"endpoint_url": endpoint}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", amt.connection(REGION, service_config=services))
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://churn-data/train/rows.csv"}},
    }
    tuning = create_request(sequence="0.1 0.7 0.3", most=3, InputDataConfig=[channel])
    run = dag_test("migrate", {"request": tuning, "prefix": s3.replace("_", "-")})
    assert states(run) == {"theirs": "success", "ours": "success"}
    theirs, ours = xcom(run, "theirs")["Tuning"], xcom(run, "ours")
    assert theirs["HyperParameterTuningJobStatus"] == ours["status"] == "Completed"
    best = theirs["BestTrainingJob"]
    assert best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.7
    assert ours["best_training_job"]["objective"] == 0.7
    assert ours["best_training_job"]["hyperparameters"] == best["TunedHyperParameters"]
    assert ours["reason"] == "max_training_jobs"


def test_the_amazon_provider_alone_finds_all_it_needs_at_one_endpoint(
    tmp_path: Path, dag_test: DagTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operator looks at the input data in S3 first; its sensor watches."""
    with running(tmp_path, clock_rate=200, images=IMAGES, options=("--with-aws",)) as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.connection(REGION))
        s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.credentials.access_key_id,
            aws_secret_access_key=server.credentials.secret_access_key,
        )
        s3.create_bucket(Bucket="churn-data")
        s3.put_object(Bucket="churn-data", Key="train/rows.csv", Body=b"1,2\n")
        source = {"S3DataType": "S3Prefix", "S3Uri": "s3://churn-data/train/rows.csv"}
        channel = {"ChannelName": "train", "DataSource": {"S3DataSource": source}}
        tuning = create_request(
            sequence="0.1 0.7",
            most=2,
            InputDataConfig=[channel],
            OutputDataConfig={"S3OutputPath": "s3://churn-data/out"},
        )
        run = dag_test("theirs_alone", {"request": tuning, "prefix": "alone"})
        assert states(run) == {"start": "success", "watch": "success"}
        listed = s3.list_objects_v2(Bucket="churn-data", Prefix="out/")["Contents"]
        assert len(listed) == 2
        assert all(one["Key"].endswith("/output/model.tar.gz") for one in listed)
        s3.close()
