"""Start the embedded AMT in a process of its own and stop it again."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_amt.exceptions import AmtError, AmtFieldError
from airflow_amt.local import credentials, state_folder
from airflow_amt.local.credentials import Credentials

if TYPE_CHECKING:
    from airflow_amt.local.faults import Faults

READY = "embedded AMT ready: "
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
#: Runs the command line of this very package, which need not be installed (a source tree in a test).
_MAIN = (
    f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); "
    "from airflow_amt.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


class ServerDidNotStartError(AmtError):
    """The embedded AMT ended, or said nothing, instead of getting ready.

    :param exit_code: its exit code, ``None`` if it was still running.
    :param log: the end of what it wrote to standard error.
    """

    def __init__(self, exit_code: int | None, log: str) -> None:
        super().__init__(exit_code, log)
        self.exit_code = exit_code
        self.log = log

    def __str__(self) -> str:
        how = "did not get ready in time" if self.exit_code is None else f"ended with {self.exit_code}"
        return f"The embedded AMT {how}. The end of its log:\n{self.log}"


class RunningServer:
    """An embedded AMT in a process of its own.

    :param process: the server.
    :param endpoint: its address, as ``http://127.0.0.1:40123``.
    :param state_dir: its state folder; ``server.log`` in it has what the server wrote to standard error.
    :param request_log: the file with its calls, if it keeps one.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        endpoint: str,
        state_dir: Path,
        request_log: Path | None = None,
    ) -> None:
        self._process = process
        self.request_log = request_log
        self.endpoint = endpoint
        self.state_dir = state_dir
        self.pid = process.pid

    def client(self, region: str = "us-east-1", **config: Any) -> Any:
        """Return a boto3 client of SageMaker for this server, with its credentials.

        :param region: AWS region; each has tuning jobs of its own.
        :param config: options of ``botocore.config.Config``.
        """
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "sagemaker",
            endpoint_url=self.endpoint,
            region_name=region,
            aws_access_key_id=self.credentials.access_key_id,
            aws_secret_access_key=self.credentials.secret_access_key,
            config=Config(**config),
        )

    @functools.cached_property
    def credentials(self) -> Credentials:
        """The access key and secret that its callers sign with."""
        return credentials.of_state_folder(self.state_dir)

    def environment(self, region: str = "us-east-1") -> dict[str, str]:
        """Return the variables by which AWS's clients in other processes find and use this server."""
        return credentials.environment(self.credentials, self.endpoint, region)

    def connection(self, region: str = "us-east-1", **extra: Any) -> str:
        """Return an Airflow connection to this server as JSON, as ``AIRFLOW_CONN_AWS_DEFAULT`` takes it.

        :param region: AWS region.
        :param extra: more of the connection's extra, or other values of it.
        """
        return credentials.connection(self.credentials, self.endpoint, region, extra)

    def signed(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        region: str = "us-east-1",
    ) -> dict[str, str]:
        """Return the headers of an HTTP request with its signature, for what AWS's clients cannot send."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials as Signer

        request = AWSRequest(method, f"{self.endpoint}{path}", dict(headers or {}), body)
        signer = Signer(self.credentials.access_key_id, self.credentials.secret_access_key)
        SigV4Auth(signer, "sagemaker", region).add_auth(request)
        return dict(request.headers)

    def set_faults(self, faults: Mapping[str, Any] | None) -> None:
        """Replace what goes wrong on purpose, from the next call on; counts and chances begin anew.

        :param faults: as the ``--faults`` option takes it; ``None`` ends all faults.
        :raises AmtFieldError: something in it cannot be used.
        """
        if faults is None:
            self._faults("DELETE", None)
        else:
            self._faults("PUT", json.dumps(_checked(faults).as_dict()))

    def faults(self) -> dict[str, Any]:
        """Return what goes wrong on purpose, and under ``applied`` how often each rule has been applied."""
        return self._faults("GET", None)

    def _faults(self, method: str, body: str | None) -> dict[str, Any]:
        sent = (body or "").encode()
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=_STOP_SECONDS)
        with contextlib.closing(connection):
            headers = self.signed(method, "/_amt/faults", sent)
            connection.request(method, "/_amt/faults", body=sent, headers=headers)
            response = connection.getresponse()
            text = response.read().decode()
        if response.status != 200:
            raise AmtError(f"{method} /_amt/faults was answered with {response.status}: {text}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def requests(self) -> list[dict[str, Any]]:
        """Return the calls that the server has answered so far, as its request log has them.

        :raises AmtFieldError: it keeps none.
        """
        from airflow_amt.local import request_log

        if self.request_log is None:
            raise AmtFieldError(
                "request_log", None, "the path that the server was started with", "start it with request_log"
            )
        return request_log.read(self.request_log)

    @property
    def log(self) -> str:
        """What the server wrote to standard error so far."""
        return (self.state_dir / "server.log").read_text(encoding="utf-8", errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether the server process runs."""
        return self._process.poll() is None

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """End the server as a user would; return its exit code.

        :raises subprocess.TimeoutExpired: it did not end; it has been killed then.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal_number)
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._close_pipes()

    def kill(self) -> None:
        """Kill the server, as the kernel would when memory runs out; its training processes live on."""
        self._process.kill()
        self._process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def start(
    state_dir: Path,
    *,
    clock_rate: float = 1.0,
    images: Mapping[str, str] | None = None,
    faults: Mapping[str, Any] | None = None,
    request_log: Path | None = None,
    roots: Sequence[Path] | None = None,
    pass_env: Sequence[str] = (),
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> RunningServer:
    """Start a server on a free port and wait until it is ready; the caller stops it.

    It ends by itself when this process is gone, however that ends.

    :param state_dir: its state folder.
    :param clock_rate: AMT seconds per real second.
    :param images: commands that stand for training images, as the ``--image`` option takes them.
    :param faults: what is to go wrong on purpose, as the ``--faults`` option takes it.
    :param request_log: file that a line is written to for each call; :meth:`RunningServer.requests` reads it.
    :param roots: folders of this machine that training jobs may get code and data from, as the ``--root``
        option takes them; the working directory if left out or empty.
    :param pass_env: variables of the server's environment that training processes get too; else they have
        ``PATH``, the locale and what SageMaker sets.
    :param options: more command line options of ``airflow-amt local serve``.
    :param environment: environment of the server; this process's own if left out.
    :raises ServerDidNotStartError: it ended or did not get ready.
    :raises AmtFieldError: something in the faults cannot be used.
    """
    state_folder.prepare(state_dir)
    command = [sys.executable, "-c", _MAIN, "local", "serve", "--until-stdin-closes"]
    command += ["--state-dir", str(state_dir), "--clock-rate", repr(clock_rate)]
    for image, trainer in (images or {}).items():
        command += ["--image", f"{image}={trainer}"]
    for name in pass_env:
        command += ["--pass-env", name]
    if request_log is not None:
        command += ["--request-log", str(request_log)]
    for root in roots or ():
        command += ["--root", str(root)]
    if faults is not None:
        command += ["--faults", json.dumps(_checked(faults).as_dict())]
    with (state_dir / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=None if environment is None else dict(environment),
            # Ctrl-C in a terminal goes to the whole foreground group; whoever started the server stops it.
            start_new_session=True,
        )
    server = RunningServer(process, "", state_dir, request_log)
    try:
        line = _first_line(process)
        if not line.startswith(READY):
            exit_code = process.wait(5) if not line else process.poll()
            raise ServerDidNotStartError(exit_code, server.log[-4000:])
    except BaseException:
        server.kill()
        raise
    server.endpoint = line.removeprefix(READY)
    return server


def _checked(faults: Mapping[str, Any]) -> Faults:
    # Imported when needed: it loads the service model, and only tests of failures need it.
    from airflow_amt.local.faults import Faults

    return Faults.parse(faults)


def _first_line(process: subprocess.Popen[bytes]) -> str:
    """Return the first line of standard output; empty if there is none in time or the process ended."""
    output = process.stdout
    if output is None:
        raise ValueError("the process was started without a pipe for its standard output")
    deadline = time.monotonic() + _START_SECONDS
    line = b""
    while b"\n" not in line:
        ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(output.fileno(), 4096) if ready else b""
        if not chunk:
            break
        line += chunk
    return line.partition(b"\n")[0].decode("utf-8", errors="replace").strip()


@contextlib.contextmanager
def running(
    state_dir: Path | None = None,
    *,
    clock_rate: float = 1.0,
    images: Mapping[str, str] | None = None,
    faults: Mapping[str, Any] | None = None,
    request_log: Path | None = None,
    roots: Sequence[Path] | None = None,
    pass_env: Sequence[str] = (),
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Run an embedded AMT in a process of its own for the time of a ``with`` block.

    :param state_dir: its state folder; a temporary one if left out.

    The other parameters are those of :func:`start`.

    :raises ServerDidNotStartError: it ended or did not get ready.
    """
    with contextlib.ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-amt-")))
        server = start(
            state_dir,
            clock_rate=clock_rate,
            images=images,
            faults=faults,
            request_log=request_log,
            roots=roots,
            pass_env=pass_env,
            options=options,
            environment=environment,
        )
        try:
            yield server
        finally:
            server.stop()
