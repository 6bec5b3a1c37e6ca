"""Who may call the embedded AMT: web pages, other names, other users, other machines; and its state folder.

Servers that ask no caller for a signature (``--allow-any-caller``) are attacked too: there, nothing but the
checks of host and origin stands between a web page and a command.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, running, state_folder
from airflow_amt.local.credentials import of_state_folder
from tests.local.raw_http import Request, exchange
from tests.local.support import IMAGES
from tests.system.browser import chromium

pytestmark = pytest.mark.local

ANY_CALLER = ("--with-aws", "--allow-any-caller")


def training_job(name: str) -> dict[str, Any]:
    """A request that runs a command of the attacker's choice, if it is let through."""
    return {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::000000000000:role/training",
        "AlgorithmSpecification": {"TrainingImage": "play:1", "TrainingInputMode": "File"},
        "OutputDataConfig": {"S3OutputPath": "s3://models/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "HyperParameters": {"sequence": "0.5"},
    }


CREATE = {"X-Amz-Target": "SageMaker.CreateTrainingJob", "Content-Type": "application/x-amz-json-1.1"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("guarded"), images=IMAGES, options=("--with-aws",)) as server:
        yield server
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("unguarded"), images=IMAGES, options=ANY_CALLER) as server:
        yield server
        assert "Traceback" not in server.log, server.log


@pytest.fixture(params=["guarded", "unguarded"])
def server(request: pytest.FixtureRequest, guarded: RunningServer, unguarded: RunningServer) -> RunningServer:
    return guarded if request.param == "guarded" else unguarded


def send(
    server: RunningServer, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Send a request with these headers and no others; return status, and headers and body of the answer."""
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        given = {
            "Host": urlsplit(server.endpoint).netloc,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, f"{answer.headers}{answer.read().decode(errors='replace')}"


def jobs(server: RunningServer) -> list[str]:
    """Return the names of all training jobs."""
    target = {"X-Amz-Target": "SageMaker.ListTrainingJobs"}
    status, answer = send(server, "POST", "/", b"{}", server.signed("POST", "/", b"{}", target))
    assert status == 200, answer
    found = json.loads(answer[answer.index("{") :])
    return [one["TrainingJobName"] for one in found["TrainingJobSummaries"]]


def test_what_is_too_large_is_refused_alike_whoever_may_call(server: RunningServer) -> None:
    large = Request(headers=CREATE, body=b" " * (4 * 1024 * 1024 + 1))
    status, content = exchange(server, large, 60)
    assert (status, json.loads(content)["__type"]) == (413, "RequestEntityTooLarge")


# --- web pages -------------------------------------------------------------------------------------

#: What a page tries; each answers with what it got, and nothing may have been carried out.
FETCH = """
const text = body => fetch('ENDPOINT/', {method: 'POST', MODE headers: HEADERS, body: JSON.stringify(body)})
  .then(r => r.text()).catch(e => 'refused: ' + e);
text(JOB).then(t => { document.title = 'done'; });
"""
FORM = """
const form = document.createElement('form');
form.action = 'ENDPOINT/pages'; form.method = 'POST'; form.enctype = 'multipart/form-data';
for (const [name, value] of Object.entries({key: 'x.html', 'Content-Type': 'text/html',
    success_action_redirect: 'ENDPOINT/pages/x.html', file: STORED})) {
  const field = document.createElement('input'); field.name = name; field.value = value; form.append(field);
}
document.body.append(form); form.submit();
"""
IMAGE = """
const image = new Image();
image.onload = image.onerror = () => { document.title = 'done'; };
image.src = 'ENDPOINT/pages';
"""


@contextlib.contextmanager
def page(script: str, headers: Mapping[str, str]) -> Iterator[str]:
    """Serve a web page of another origin; give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<html><body><script>{script}</script></body></html>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    pages = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=pages.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{pages.server_port}/"
    finally:
        pages.shutdown()
        pages.server_close()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("public", [False, True], ids=["local-page", "public-page"])
@pytest.mark.parametrize(
    "attack", ["fetch", "fetch-no-cors", "fetch-without-target", "form", "image"], ids=str
)
def test_a_web_page_gets_nothing_done(
    server: RunningServer, browser: Any, tmp_path: Path, attack: str, public: bool
) -> None:
    (server.state_dir / "s3" / "pages").mkdir(exist_ok=True, parents=True)
    job = json.dumps(training_job("from-a-page"))
    mode = "mode: 'no-cors'," if attack == "fetch-no-cors" else ""
    headers = "{}" if attack in ("fetch-no-cors", "fetch-without-target") else json.dumps(CREATE)
    fetch = FETCH.replace("MODE", mode).replace("HEADERS", headers).replace("JOB", job)
    # What the upload holds is a page of the server's own origin, which the redirect shows.
    stored = json.dumps(f"<script>{fetch.replace('ENDPOINT', '')}</script>").replace("</", "<\\/")
    script = {"form": FORM.replace("STORED", stored), "image": IMAGE}.get(attack, fetch)
    csp = {"Content-Security-Policy": "treat-as-public-address"} if public else {}
    with page(script.replace("ENDPOINT", server.endpoint), csp) as address:
        tab = browser.new_page()
        answers: list[tuple[str, int]] = []
        tab.on("response", lambda answer: answers.append((answer.url, answer.status)))
        tab.goto(address)
        if attack == "form":
            tab.wait_for_url(f"{server.endpoint}/**", wait_until="commit")
            tab.wait_for_load_state("networkidle")
        else:
            tab.wait_for_function("document.title == 'done'")
        tab.close()
    assert [status for url, status in answers if url.startswith(server.endpoint) and status != 403] == []
    assert jobs(server) == []
    assert list((server.state_dir / "s3" / "pages").iterdir()) == []


def test_a_stored_page_has_no_way_back(unguarded: RunningServer, browser: Any) -> None:
    """A presigned address shows a page that somebody has stored: no script of it runs."""
    script = FETCH.replace("ENDPOINT", "").replace("MODE", "").replace("HEADERS", json.dumps(CREATE))
    script = script.replace("JOB", json.dumps(training_job("from-a-stored-page")))
    own = unguarded.credentials
    s3 = boto3.session.Session().client(
        "s3",
        endpoint_url=unguarded.endpoint,
        region_name="us-east-1",
        aws_access_key_id=own.access_key_id,
        aws_secret_access_key=own.secret_access_key,
    )
    with contextlib.closing(s3):
        s3.create_bucket(Bucket="stored")
        body = f"<html><title>stored</title><script>{script}</script></html>".encode()
        s3.put_object(Bucket="stored", Key="page.html", Body=body, ContentType="text/html")
        address = s3.generate_presigned_url("get_object", Params={"Bucket": "stored", "Key": "page.html"})
    tab = browser.new_page()
    answer = tab.goto(address)
    tab.wait_for_load_state("networkidle")
    assert (answer.status, tab.title()) == (200, "stored")
    assert answer.headers["content-security-policy"] == "sandbox"
    tab.close()
    assert jobs(unguarded) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("OPTIONS", "/"), ("GET", "/_amt/faults"), ("PUT", "/pages/x"), ("GET", "/")],
)
def test_requests_of_pages_are_refused(
    server: RunningServer, method: str, path: str, headers: dict[str, str]
) -> None:
    body = json.dumps(training_job("from-an-origin")).encode() if method == "POST" else b""
    signed = server.signed(method, path, body, CREATE if method == "POST" else {})
    status, answer = send(server, method, path, body, {**signed, **headers})
    assert status == 403, answer
    assert "access-control" not in answer.lower()
    assert jobs(server) == []


def test_the_origin_of_the_server_itself_is_none_of_these(server: RunningServer) -> None:
    headers = server.signed("POST", "/", b"{}", {"X-Amz-Target": "SageMaker.ListTrainingJobs"})
    headers |= {"Origin": server.endpoint, "Sec-Fetch-Site": "same-origin"}
    assert send(server, "POST", "/", b"{}", headers)[0] == 200


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("127.0.0.1:PORT", True),
        ("127.0.0.1", True),
        ("127.9.9.9:PORT", True),
        ("[::1]:PORT", True),
        ("localhost:PORT", True),
        ("LOCALHOST.", True),
        ("bucket.localhost:PORT", True),
        ("evil.example:PORT", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example:PORT", False),
        ("localhost.evil.example", False),
        ("evillocalhost", False),
        ("10.0.0.1:PORT", False),
        ("0.0.0.0:PORT", False),
        ("[::ffff:10.0.0.1]", False),
        ("2130706433", False),
        ("127.0.0.1:PORT@evil.example", False),
        ("localhost:x", False),
        ("127.0.0.1, evil.example", False),
        ("", False),
        (":", False),
    ],
)
def test_only_names_of_the_server_are_served(unguarded: RunningServer, host: str, served: bool) -> None:
    headers = {"Host": host.replace("PORT", str(urlsplit(unguarded.endpoint).port))}
    for method, path in (("POST", "/"), ("GET", "/_amt/faults"), ("GET", "/pages?list-type=2")):
        target = {"X-Amz-Target": "SageMaker.ListTrainingJobs"} if method == "POST" else {}
        status, answer = send(unguarded, method, path, b"{}" if target else b"", {**headers, **target})
        assert (status != 403) == served, answer
        if not served:
            assert "--allowed-host" in answer


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Host: 127.0.0.1\r\nHost: evil.example\r\n",
        b"Host: evil.example\r\nHost: amt.localhost\r\n",
        b"Host: evil.example, amt.localhost\r\n",
        b"Host: amt.localhost\r\nHost: amt.localhost:1\r\n",
    ],
    ids=["none", "two", "two, the last one right", "one that names two", "two right ones"],
)
def test_a_request_with_no_host_or_two_is_refused(unguarded: RunningServer, head: bytes) -> None:
    parts = urlsplit(unguarded.endpoint)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(b"GET /_amt/faults HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n")
        status = connection.makefile("rb").readline().split()[1]
    assert status in (b"400", b"403")


def test_further_names_can_be_allowed(tmp_path: Path) -> None:
    with running(tmp_path, options=("--allowed-host", "amt.example.")) as server:
        assert "is not signed" in send(server, "GET", "/_amt/faults", headers={"Host": "AMT.example:9"})[1]
        assert "none of this server's" in send(server, "GET", "/", headers={"Host": "other.example"})[1]
    assert main(["local", "serve", "--allow-any-caller", "--allowed-host", "amt.example"]) == 2


@pytest.mark.parametrize("targets", ["x|{}", "|{}", "{}|x", "{}|{}"])
def test_of_two_targets_none_is_carried_out(server: RunningServer, targets: str) -> None:
    """What others read of two may be the other one."""
    operation = "SageMaker.ListTrainingJobs"
    request = AWSRequest(
        "POST",
        server.endpoint,
        {"X-Amz-Target": targets.replace("|", ",").format(operation, operation)},
        b"{}",
    )
    own = server.credentials
    SigV4Auth(Credentials(own.access_key_id, own.secret_access_key), "logs", "us-east-1").add_auth(request)
    parts = urlsplit(server.endpoint)
    lines = [f"{name}: {value}" for name, value in request.headers.items() if name != "X-Amz-Target"]
    lines += [f"X-Amz-Target: {one.format(operation)}" for one in targets.split("|")]
    head = "\r\n".join(
        ["POST / HTTP/1.1", f"Host: {parts.netloc}", "Content-Length: 2", "Connection: close", *lines]
    )
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(f"{head}\r\n\r\n{{}}".encode())
        answer = connection.makefile("rb").read()
    assert answer.split()[1] == b"403", answer
    assert b"there are two x-amz-target headers" in answer


# --- other users -----------------------------------------------------------------------------------


def curl(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        ["curl", "--silent", "--max-time", "30", "--write-out", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "MissingAuthenticationTokenException"),
        (("--header", "Authorization: Bearer x"), "IncompleteSignature"),
        (("--aws-sigv4", "aws:amz:us-east-1:sagemaker", "--user", "any:any"), "UnrecognizedClientException"),
        (("--aws-sigv4", "aws:amz:us-east-1:sagemaker", "--user", "KEY:any"), "InvalidSignatureException"),
        (("--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "KEY:SECRET"), "InvalidSignatureException"),
    ],
    ids=["unsigned", "bearer", "other-key", "other-secret", "other-service"],
)
def test_another_user_of_the_machine_is_refused(
    guarded: RunningServer, arguments: tuple[str, ...], code: str
) -> None:
    status, body = curl(*with_credentials(guarded, arguments), *create_by_curl(guarded, "by-another"))
    assert status == 403
    answer = json.loads(body)
    assert answer["__type"] == code
    assert jobs(guarded) == []


def with_credentials(server: RunningServer, arguments: tuple[str, ...]) -> list[str]:
    own = server.credentials
    return [
        one.replace("KEY", own.access_key_id).replace("SECRET", own.secret_access_key) for one in arguments
    ]


def create_by_curl(server: RunningServer, name: str) -> list[str]:
    target = [part for pair in CREATE.items() for part in ("--header", ": ".join(pair))]
    return [*target, "--data", json.dumps(training_job(name)), f"{server.endpoint}/"]


def test_the_user_of_the_server_is_served_also_by_curl(tmp_path: Path) -> None:
    signed = ("--aws-sigv4", "aws:amz:us-east-1:sagemaker", "--user", "KEY:SECRET")
    with running(tmp_path, images=IMAGES) as server:
        status, body = curl(*with_credentials(server, signed), *create_by_curl(server, "by-curl"))
        assert (status, jobs(server)) == (200, ["by-curl"]), body


@pytest.mark.parametrize("service", ["sagemaker", "s3", "sts", "iam", "logs"])
def test_every_service_asks_for_the_signature(guarded: RunningServer, service: str) -> None:
    client = boto3.session.Session().client(
        service,
        endpoint_url=guarded.endpoint,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}),
    )
    call = {
        "sagemaker": "list_training_jobs",
        "s3": "list_buckets",
        "sts": "get_caller_identity",
        "iam": "list_users",
        "logs": "describe_log_groups",
    }[service]
    with contextlib.closing(client), pytest.raises(ClientError) as refused:
        getattr(client, call)()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert refused.value.response["Error"]["Code"] in ("UnrecognizedClientException", "InvalidAccessKeyId")
    assert "airflow-amt local credentials" in str(refused.value)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_amt/faults"),
        ("PUT", "/_amt/faults"),
        ("GET", "/bucket?list-type=2"),
        ("GET", "/bucket/key"),
        ("PUT", "/bucket/key"),
        ("DELETE", "/bucket"),
        ("POST", "/bucket"),
        ("GET", "/moto-api/data.json"),
        ("POST", "/moto-api/reset"),
    ],
)
def test_every_path_asks_for_the_signature(guarded: RunningServer, method: str, path: str) -> None:
    assert send(guarded, method, path, b"{}" if method in ("PUT", "POST") else b"")[0] == 403


def test_keys_that_the_servers_own_sts_and_iam_give_out_are_good(guarded: RunningServer) -> None:
    def client(service: str, key: Mapping[str, str] | None = None) -> Any:
        own = guarded.credentials
        return boto3.session.Session().client(
            service,
            endpoint_url=guarded.endpoint,
            region_name="us-east-1",
            aws_access_key_id=own.access_key_id if key is None else key["AccessKeyId"],
            aws_secret_access_key=own.secret_access_key if key is None else key["SecretAccessKey"],
            aws_session_token=None if key is None else key.get("SessionToken"),
        )

    role = client("sts").assume_role(RoleArn="arn:aws:iam::000000000000:role/r", RoleSessionName="session")
    assert client("sagemaker", role["Credentials"]).list_training_jobs()["TrainingJobSummaries"] == []
    client("iam").create_user(UserName="somebody")
    made = client("iam").create_access_key(UserName="somebody")["AccessKey"]
    assert client("sagemaker", made).list_training_jobs()["TrainingJobSummaries"] == []
    client("iam").delete_access_key(UserName="somebody", AccessKeyId=made["AccessKeyId"])
    with pytest.raises(ClientError, match="UnrecognizedClient"):
        client("sagemaker", made).list_training_jobs()


def test_refusals_do_not_fill_the_log(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for _ in range(200):
            assert send(server, "GET", f"/{'x' * 5000}")[0] == 403
        assert len(server.log) < 20_000


def test_credentials_survive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        kept = first.credentials
        client = first.client()
    with running(tmp_path, options=("--port", str(urlsplit(first.endpoint).port))) as second:
        assert second.credentials == kept
        assert client.list_training_jobs()["TrainingJobSummaries"] == []
        client.close()
    with running(tmp_path / "other") as other:
        assert other.credentials != kept


def test_credentials_are_printed_as_what_clients_take(tmp_path: Path) -> None:
    """Each form is given to a client that knows nothing else."""
    code = "import boto3; print(boto3.client('sagemaker').list_training_jobs()['TrainingJobSummaries'])"
    command = [sys.executable, "-m", "airflow_amt.cli.main", "local", "credentials", "--state-dir"]
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    with running(tmp_path / "state") as server:

        def printed(form: str) -> str:
            return subprocess.run(
                [*command, str(server.state_dir), "--format", form],
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        def listed(**variables: str) -> str:
            return subprocess.run(
                [sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True
            ).stdout.strip()

        exports = f'{printed("exports")}\nexec {sys.executable} -c "{code}"'
        done = subprocess.run(["sh", "-c", exports], env=clean, capture_output=True, text=True)
        assert done.stdout.strip() == "[]", done.stderr
        (tmp_path / "config").write_text(printed("profile"))
        assert listed(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_PROFILE="airflow-amt") == "[]"
        connection = printed("connection").strip().removeprefix("export AIRFLOW_CONN_AWS_DEFAULT=").strip("'")
        assert json.loads(connection)["login"] == server.credentials.access_key_id
        assert server.connection() == connection
        assert "credentials for clients: eval" in server.log
        assert server.credentials.secret_access_key not in server.log
    ended = subprocess.run([*command, str(tmp_path / "state")], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, ""), "keys without an address would lead to AWS"
    assert "--endpoint-url" in ended.stderr
    given = [*command, str(tmp_path / "state"), "--endpoint-url", "http://127.0.0.1:9"]
    assert (
        "AWS_ENDPOINT_URL=http://127.0.0.1:9" in subprocess.run(given, capture_output=True, text=True).stdout
    )
    missing = subprocess.run([*command, str(tmp_path / "misspelt")], capture_output=True, text=True)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    assert not (tmp_path / "misspelt").exists()


# --- other machines --------------------------------------------------------------------------------


def test_a_server_for_other_machines_asks_for_the_signature(tmp_path: Path) -> None:
    with running(tmp_path, images=IMAGES, options=("--host", "0.0.0.0")) as server:
        assert send(server, "POST", "/", b"{}", {"X-Amz-Target": "SageMaker.ListTrainingJobs"})[0] == 403
        assert jobs(server) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_any_caller_and_other_machines_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    options = ["--state-dir", str(tmp_path / "state"), "--host", host, "--allow-any-caller"]
    assert main(["local", "serve", *options]) == 2
    error = capsys.readouterr().err
    assert "allow-any-caller" in error
    assert "airflow-amt local credentials" in error


def test_any_caller_is_told_what_it_means(unguarded: RunningServer) -> None:
    assert "every user and program of this machine can run commands as this user" in unguarded.log
    assert send(unguarded, "POST", "/", b"{}", {"X-Amz-Target": "SageMaker.ListTrainingJobs"})[0] == 200


# --- the state folder ------------------------------------------------------------------------------


def test_a_state_folder_is_its_users_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with running(tmp_path / "deep" / "state") as server:
            assert stat.S_IMODE(server.state_dir.stat().st_mode) == 0o700
            assert stat.S_IMODE((server.state_dir / "credentials").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_state_folder_that_others_can_replace_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(AmtFieldError, match=f"has mode {mode:04o}"):
        state_folder.prepare(tmp_path / "below" / "state")
    tmp_path.chmod(mode | stat.S_ISVTX)
    state_folder.prepare(tmp_path / "below" / "state")


def test_a_folder_with_other_things_is_not_closed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    tmp_path.chmod(0o755)
    with pytest.raises(AmtFieldError, match="holds other things"):
        state_folder.prepare(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("how", ["mode", "link", "pipe"])
def test_credentials_that_others_may_have_planted_are_refused(tmp_path: Path, how: str) -> None:
    of_state_folder(tmp_path)
    path = tmp_path / "credentials"
    if how == "mode":
        path.chmod(0o644)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere") if how == "link" else os.mkfifo(path, 0o600)
    with pytest.raises(AmtFieldError, match="delete it"):
        of_state_folder(tmp_path)


def test_reading_is_taken_from_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state_folder.prepare(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_state_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(AmtFieldError, match="chmod 700"):
        state_folder.prepare(state)
    assert list(state.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65_534, 65_534)
    with pytest.raises(AmtFieldError, match="user 65534 owns this one"):
        state_folder.prepare(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[default]\n", "[default]\naws_access_key_id=\naws_secret_access_key=x", "\0"]
)
def test_a_damaged_credentials_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "credentials").write_text(content)
    (tmp_path / "credentials").chmod(0o600)
    with pytest.raises(AmtFieldError, match="delete it"):
        of_state_folder(tmp_path)


def test_two_processes_make_the_same_credentials(tmp_path: Path) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(of_state_folder(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["credentials"]


# --- the wire --------------------------------------------------------------------------------------


def test_trailers_change_nothing_that_was_signed(guarded: RunningServer) -> None:
    """Headers after a chunked body come when the signature has been checked."""
    body_hash = hashlib.sha256(b"{}").hexdigest()
    headers = guarded.signed("POST", "/", b"{}", {"X-Amz-Content-SHA256": body_hash})
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name != "Content-Length")
    parts = urlsplit(guarded.endpoint)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(
            f"POST / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
            f"{head}\r\n2\r\n{{}}\r\n0\r\nX-Amz-Target: SageMaker.ListTrainingJobs\r\n\r\n".encode()
        )
        answer = connection.makefile("rb").read()
    assert b"TrainingJobSummaries" not in answer


def test_trailers_without_an_end_are_refused(unguarded: RunningServer) -> None:
    parts = urlsplit(unguarded.endpoint)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(
            f"POST / HTTP/1.1\r\nHost: {parts.netloc}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".encode()
        )
        trailers = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(2000))
        with pytest.raises(ConnectionError):
            connection.sendall(trailers)
    assert unguarded.is_running


@pytest.mark.parametrize("head", [b"GET /" + b"x" * 100, b"GET / HTTP/1.1\r\nX: "], ids=["line", "header"])
def test_a_head_without_an_end_is_refused(unguarded: RunningServer, head: bytes) -> None:
    parts = urlsplit(unguarded.endpoint)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
            for _ in range(64):
                connection.sendall(b"x" * 65_536)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100).split()[1] in (b"400", b"431")
    assert jobs(unguarded) == []
