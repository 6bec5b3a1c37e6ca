"""Throw generated and mutated input at every parser that the embedded AMT has, and judge what it does.

Run as ``python -m tests.local.fuzz --minutes 60 [--seed N] [--json PATH]``. Two servers are bombarded, one
alone and one with ``--with-aws``; what parses files runs in this process. A seed gives the same inputs in
the same order. A server fails by an answer of 5xx that is not meant, a traceback in its log, an answer that
is late or very large, its end, a valid call that is refused afterwards, and memory that grows. A parser in
this process fails by an error that is none of its own, or by not ending.

One more target is one more line in :func:`targets`: a name, what makes an input, and what takes it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import random
import signal
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, channels, config, faults, images, metrics, running, trainer
from airflow_amt.local.log_lines import CONTINUED
from airflow_amt.local.s3 import Places, StorageError
from airflow_amt.local.signatures import SignatureError
from airflow_amt.local.storage import FolderStorage
from tests.local import fuzz_signatures
from tests.local.fuzz_corpus import (
    CHANNEL,
    FAULTS,
    LOGS_CALLS,
    ODD_BYTES,
    ODD_TEXTS,
    ODD_VALUES,
    QUERY_ACTIONS,
    QUERY_FIELDS,
    S3_BODIES,
    S3_HEADERS,
    S3_NAMES,
    SAGEMAKER_CALLS,
    SHARED,
    TOML_LINES,
    TOML_VALUES,
)
from tests.local.raw_http import LARGEST_ANSWER, SIGNATURE, Request, exchange
from tests.local.support import METRICS, create_request

DEFAULT_RESULTS = Path(__file__).parent / "results" / "fuzz.json"
IMAGES = {"quick:1": "sh -c 'echo objective=0.5'"}
#: Tuning jobs and training jobs that one run may start on a server; their rows stay in its memory.
MOST_CREATED = 100
#: Distinct failures after which a run ends.
MOST_FAILURES = 20
#: Memory may grow so much after the first fifth of the time: caches, fragmentation, moto's own state.
MOST_GROWTH_MIB = 64.0
_JSON = "application/x-amz-json-1.1"

# --- generating ------------------------------------------------------------------------------------------


def odd(rng: random.Random) -> Any:
    """Return a value that a parser may not expect."""
    if rng.random() < 0.05:
        deep: Any = 1
        for _ in range(rng.choice((10, 100, 250))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return rng.choice(rng.choice((ODD_TEXTS, ODD_VALUES)))


def mutated(rng: random.Random, value: Any) -> Any:
    """Return a copy of a value in which something is replaced, removed, added or multiplied."""
    root: list[Any] = [deepcopy(value)]
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    action = rng.random()
    if action < 0.55:
        holder[key] = odd(rng)
    elif action < 0.7:
        del holder[key]
    elif action < 0.85 and isinstance(holder, dict):
        holder[rng.choice(ODD_TEXTS)] = odd(rng)
    elif action < 0.87 and isinstance(holder, dict):
        holder.update({f"k{number}": number for number in range(5000)})
    elif isinstance(holder[key], list):
        holder[key] = holder[key] * 300
    else:
        holder[key] = f"{holder[key]}{rng.choice(ODD_TEXTS)}"
    return root[0] if root else None


def mangled(rng: random.Random, data: bytes) -> bytes:
    """Return bytes in which some are changed, left out, doubled or added."""
    content = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((1, 8, 100)))
        piece = (
            bytes(content[start:end]) * rng.choice((0, 2)),
            rng.choice(ODD_BYTES),
            rng.randbytes(min(8, end - start)),
        )
        content[start:end] = rng.choice(piece)
    return bytes(content)


def as_json(value: Any) -> bytes:
    """Return a value as JSON, as far as JSON can say it."""
    return json.dumps(value).encode()


# --- targets ---------------------------------------------------------------------------------------------


class Target:
    """A parser, and what to throw at it.

    :param name: its name in the results.
    :param generate: makes an input.
    :param server: the server that it belongs to, if it is in one.
    """

    def __init__(
        self, name: str, generate: Callable[[random.Random], Any], server: RunningServer | None = None
    ) -> None:
        self.name, self.generate, self.server = name, generate, server

    def run(self, case: Any, timeout: float) -> str:
        """Give an input to the parser; return what it made of it.

        :raises Exception: a failure.
        """
        raise NotImplementedError


class WrongError(Exception):
    """A server, or a parser, did what it may not do."""


class HttpTarget(Target):
    """Requests of a kind to a server."""

    server: RunningServer

    def run(self, case: Request, timeout: float) -> str:
        """Send it; judge the answer."""
        status, content = exchange(self.server, case, timeout)
        if status is not None and status >= 500 and not (status == 503 and b"ServiceUnavailable" in content):
            raise WrongError(f"answered with {status}: {content[:300]!r}")
        if status is not None and status >= 400 and len(content) > LARGEST_ANSWER:
            raise WrongError(f"refused with more than {LARGEST_ANSWER} bytes: {content[:300]!r}")
        if self.name == "faults":
            exchange(self.server, Request(method="DELETE", target="/_amt/faults"), timeout)
        return str(status)


class LocalTarget(Target):
    """A parser in this process: it may refuse an input with errors of its own only."""

    def __init__(
        self,
        name: str,
        generate: Callable[[random.Random], Any],
        parse: Callable[[Any], object],
        refusals: tuple[type[Exception], ...] = (AmtFieldError,),
    ) -> None:
        super().__init__(name, generate)
        self._parse, self._refusals = parse, refusals

    def run(self, case: Any, timeout: float) -> str:
        """Parse it; what hangs is interrupted."""

        def interrupt(*_: object) -> None:
            raise WrongError(f"did not end within {timeout} s")

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            self._parse(case)
        except self._refusals as refusal:
            str(refusal).encode()
            return "refused"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return "taken"


class Calls:
    """Mutated requests for SageMaker's operations; so many that start something, and no more."""

    def __init__(self) -> None:
        self.created = 0

    def __call__(self, rng: random.Random) -> Request:
        """Return a request."""
        operation, params = rng.choice(self._examples(rng))
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
            params = mutated(rng, params)
        if operation.startswith("Create"):
            self.created += 1
            limits: Any = params
            for key in ("HyperParameterTuningJobConfig", "ResourceLimits"):
                limits = limits.get(key) if isinstance(limits, dict) else None
            if isinstance(limits, dict):
                limits["MaxNumberOfTrainingJobs"] = 2
            if self.created > MOST_CREATED * 4 and isinstance(params, dict):
                params["TrainingJobName"] = params["HyperParameterTuningJobName"] = "-"
        body = as_json(params) if rng.random() < 0.9 else mangled(rng, as_json(params))
        target = f"SageMaker.{operation}" if rng.random() < 0.97 else rng.choice(ODD_TEXTS[10:])
        headers = {"X-Amz-Target": target.replace("\n", ""), "Content-Type": _JSON}
        spoiled = (
            (rng.randrange(250), rng.choice(("0", ",", ";", "/x", "=\xff"))) if rng.random() < 0.1 else None
        )
        if rng.random() < 0.05:
            headers["Authorization"] = mangled(
                rng, b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request"
            ).decode("latin-1")
        headers = {key: one_line(value) for key, value in headers.items()}
        return Request(headers=headers, body=body, spoiled=spoiled)

    def _examples(self, rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
        name = f"fuzz-{rng.randrange(MOST_CREATED)}"
        tuning = create_request(name, image="quick:1", most=2, tags={"a": "b"}, InputDataConfig=[CHANNEL])
        training = {key: tuning["TrainingJobDefinition"][key] for key in SHARED}
        training |= {"TrainingJobName": name, "HyperParameters": {"x": "1"}, "InputDataConfig": [CHANNEL]}
        creating = [("CreateHyperParameterTuningJob", tuning), ("CreateTrainingJob", training)]
        return [*SAGEMAKER_CALLS, *creating]


def one_line(text: str) -> str:
    """Return text that can be the value of a header as far as the framing goes."""
    return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace").decode()


def raw_request(rng: random.Random) -> Request:
    """Return a request that is odd as HTTP."""
    body = as_json({"HyperParameterTuningJobName": "fuzz-1"})
    signed = {"Host": "localhost", "X-Amz-Target": "SageMaker.DescribeHyperParameterTuningJob"}
    lines = "\r\n".join(f"{name}: {value}" for name, value in signed.items()).encode()
    head = b"POST / HTTP/1.1\r\n" + lines + b"\r\n" + SIGNATURE
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    length = b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    odd_lengths = [
        b"Content-Length: %s\r\n\r\n{}" % one for one in (b"-1", b"\xb2", b"9" * 5000, b"2, 3", b"")
    ]
    absolute = head.replace(b"POST /", b"POST http://evil.example/x?y", 1)
    heads = [
        head,
        absolute,
        head.replace(b"POST", rng.choice((b"GET", b"PUT", b"TRACE", b"\xff", b"OPTIONS", b"CONNECT"))),
    ]
    content = rng.choice(heads) + rng.choice(
        [chunked, length, *odd_lengths, b"Expect: 100-continue\r\n" + length]
    )
    content = mangled(rng, content) if rng.random() < 0.7 else content
    content = content[: rng.randrange(len(content) + 1)] if rng.random() < 0.2 else content
    return Request(headers=signed, body=body, raw=content)


def s3_request(rng: random.Random) -> Request:
    """Return a request for S3."""
    bucket = rng.choice(("data", "models", "new-bucket", rng.choice(ODD_TEXTS)))
    key = rng.choice(("", "train/rows.csv", "new", rng.choice(ODD_TEXTS), rng.choice(ODD_TEXTS)))
    query = "&".join(
        f"{name}={quote(rng.choice((*ODD_TEXTS, '1', '2', '/', 'a')), errors='replace')}"
        for name in rng.sample(S3_NAMES, rng.randrange(4))
    )
    path = f"/{bucket}/{key}"
    if rng.random() < 0.8:
        path = quote(path, safe="/%", errors="replace")
    headers = {
        name: one_line(rng.choice((*ODD_TEXTS, "bytes=0-1", "bytes=5-1", "/data/train/rows.csv", "1")))
        for name in rng.sample(S3_HEADERS, rng.choice((0, 0, 1, 2)))
    }
    if rng.random() < 0.1:
        headers["Content-Type"] = "multipart/form-data; boundary=b"
    return Request(
        service="s3",
        method=rng.choice(("GET", "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH")),
        target=one_line(path + (f"?{query}" if query else "")).replace(" ", "+"),
        headers=headers,
        body=mangled(rng, rng.choice(S3_BODIES)),
        half=rng.random() < 0.03,
    )


def service_request(rng: random.Random) -> Request:
    """Return a request for STS, IAM or CloudWatch Logs."""
    service = rng.choice(("sts", "iam", "logs", "logs", "elsewhere"))
    if service == "logs":
        operation, params = rng.choice(LOGS_CALLS)
        body = as_json(mutated(rng, params))
        body = body if rng.random() < 0.9 else mangled(rng, body)
        headers = {"X-Amz-Target": f"Logs_20140328.{operation}", "Content-Type": _JSON}
    else:
        fields = {"Action": rng.choice(QUERY_ACTIONS), **QUERY_FIELDS}
        if rng.random() < 0.7:
            fields[rng.choice(list(fields))] = rng.choice(ODD_TEXTS)
        body = "&".join(f"{key}={quote(value, errors='replace')}" for key, value in fields.items()).encode()
        body = mangled(rng, body) if rng.random() < 0.3 else body
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Request(service=service, headers=headers, body=body)


def faults_text(rng: random.Random) -> bytes:
    """Return a setting of faults."""
    text = as_json(mutated(rng, mutated(rng, FAULTS)))
    return text if rng.random() < 0.8 else mangled(rng, text)


def _config_text(rng: random.Random) -> bytes:
    lines = list(TOML_LINES)
    for _ in range(rng.choice((0, 1, 1, 2))):
        number = rng.randrange(len(lines))
        lines[number] = f"{lines[number].partition(' = ')[0]} = {rng.choice(TOML_VALUES)}"
    text = "\n".join(lines).encode()
    return text if rng.random() < 0.6 else mangled(rng, text)


def _archive(rng: random.Random) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=rng.choice(("w", "w:gz", "w:bz2", "w:xz"))) as archive:
        for name in (
            "train.py",
            rng.choice(("../x", "/etc/x", "a" * 300, "d/é", "\udcff", "x", "train.py/y")),
        ):
            member = tarfile.TarInfo(name)
            member.type = rng.choice(
                (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
            )
            member.linkname = "/etc/passwd" if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = 3 if member.type == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"a=1"))
    content = packed.getvalue()
    if rng.random() < 0.2:  # a mutated inside of a sound outside
        return gzip.compress(mangled(rng, content), 1)
    return mangled(rng, content) if rng.random() < 0.8 else content


def targets(folder: Path, alone: RunningServer, with_aws: RunningServer) -> list[Target]:
    """Return what is thrown at; each target gets every so-many-th input."""
    (folder / "bucket").mkdir(parents=True)
    storage = FolderStorage(Places(s3_root=folder))
    manifest = [{"prefix": "s3://bucket/a/"}, "one.csv", "two.csv"]
    record = {"source-ref": "s3://bucket/one", "class": 1}

    def write(name: str, content: bytes) -> Path:
        (folder / "bucket" / name).write_bytes(content)
        return folder / "bucket" / name

    def read_config(content: bytes) -> None:
        settings = config.settle({}, write("config.toml", content), folder)
        if settings.faults:
            faults.Faults.from_text(settings.faults)

    def read_channel(case: tuple[str, bytes]) -> None:
        kind, content = case
        write("manifest", content)
        attributes = ("source-ref", "class")
        one = channels.Channel(
            name="train", uri="s3://bucket/manifest", data_type=kind, mode="Pipe", attributes=attributes
        )
        channels.passes(storage, one)

    def manifest_text(rng: random.Random) -> tuple[str, bytes]:
        if rng.random() < 0.5:
            return "ManifestFile", mangled(rng, as_json(mutated(rng, manifest)))
        return "AugmentedManifestFile", b"\n".join(
            mangled(rng, as_json(mutated(rng, record))) for _ in range(3)
        )

    def unpack(content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            trainer._unpack(write("archive", content), Path(place))

    def read_metrics(case: tuple[str, bytes]) -> None:
        regex, log = case
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python reads differently
            compiled = metrics.compile_definitions([{"Name": "objective", "Regex": regex}], "Metrics")
        metrics.read_final_metrics(write("log", log), compiled)

    def regex_and_log(rng: random.Random) -> tuple[str, bytes]:
        regex = mangled(rng, METRICS[0]["Regex"].encode()).decode("latin-1")
        # Longer ones are refused by the service model.
        return regex[:500], mangled(rng, b"objective=0.5\n" * 20 + b"loss=" + b"a" * 46 + b"!\n")

    def mapping(rng: random.Random) -> str:
        text = mangled(rng, b"image:1=sh -c 'echo 1; sh train.sh' x.py") if rng.random() < 0.7 else b"a=sh "
        return text.decode("latin-1") + rng.choice(ODD_TEXTS)

    def put_faults(rng: random.Random) -> Request:
        return Request(method="PUT", target="/_amt/faults", body=faults_text(rng))

    return [
        HttpTarget("wire", Calls(), alone),
        HttpTarget("http", raw_request, alone),
        HttpTarget("s3 view", s3_request, alone),
        HttpTarget("faults", put_faults, alone),
        HttpTarget("wire, with-aws", Calls(), with_aws),
        HttpTarget("http, with-aws", raw_request, with_aws),
        HttpTarget("s3, with-aws", s3_request, with_aws),
        HttpTarget("sts, iam, logs", service_request, with_aws),
        LocalTarget("faults text", faults_text, faults.Faults.from_json),
        LocalTarget("config", _config_text, read_config),
        LocalTarget("image", mapping, lambda text: images.parse_mappings([text], folder)),
        LocalTarget("manifest", manifest_text, read_channel, (StorageError,)),
        LocalTarget("archive", _archive, unpack, (StorageError, OSError)),
        LocalTarget("metric", regex_and_log, read_metrics),
        LocalTarget("signature", fuzz_signatures.case_of, fuzz_signatures.check, (SignatureError,)),
    ]


# --- judging ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """What is known of one server while it is fuzzed."""

    server: RunningServer
    read: int = 0
    memory_mib: list[float] = field(default_factory=list)

    def new_tracebacks(self) -> str:
        """Return what the log has got since, if a traceback or a bug is in it."""
        with (self.server.state_dir / "server.log").open("rb") as log:
            log.seek(self.read)
            new = log.read()
        self.read += len(new)
        text = new.decode(errors="replace")
        return text[-3000:] if "Traceback" in text or "This is a bug" in text else ""

    def look(self, timeout: float) -> str:
        """Return what is wrong with the server itself, and note its memory."""
        if not self.server.is_running:
            return "the server has ended"
        self.memory_mib.append(round(psutil.Process(self.server.pid).memory_info().rss / 2**20, 1))
        headers = {"X-Amz-Target": "SageMaker.ListHyperParameterTuningJobs", "Content-Type": _JSON}
        status, content = exchange(self.server, Request(headers=headers, body=b"{}"), timeout)
        return "" if status == 200 else f"a valid call was answered with {status}: {content[:300]!r}"


def fuzz(
    folder: Path, *, seed: int, seconds: float = math.inf, most_rounds: float = math.inf, limit: float = 5.0
) -> dict[str, Any]:
    """Fuzz for a time, or for so many inputs of each target; return figures and failures.

    :param limit: real seconds that an input may take.
    """
    rng = random.Random(seed)
    counts: dict[str, Counter[str]] = {}
    slowest: Counter[str] = Counter()
    failures: dict[tuple[str, str], dict[str, Any]] = {}

    def fail(name: str, case: object, wrong: str) -> None:
        # Many inputs end in the same place.
        found = failures.setdefault(
            (name, _where(wrong)),
            {"target": name, "count": 0, "input": repr(case)[:500], "wrong": wrong[-2000:]},
        )
        found["count"] += 1

    with ExitStack() as stack:
        servers = [stack.enter_context(_server(folder / name, name)) for name in ("alone", "with-aws")]
        watches = {id(server): Watch(server) for server in servers}
        all_targets = targets(folder / "local", *servers)
        began = time.monotonic()
        rounds = 0
        while time.monotonic() - began < seconds and rounds < most_rounds and len(failures) < MOST_FAILURES:
            if rounds % 20 == 0:
                for watch in watches.values():
                    if wrong := watch.look(limit):
                        fail("alive", "", wrong)
            rounds += 1
            for target in all_targets:
                case = target.generate(rng)
                started = time.monotonic()
                try:
                    result, wrong = target.run(case, limit), ""
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                    result, wrong = "failed", f"{type(error).__name__}: {error}"
                took = time.monotonic() - started
                if not wrong and took > limit:
                    wrong = f"took {took:.1f} s"
                if target.server is not None:
                    # The traceback of an answer of 500 is written after it.
                    time.sleep(0.1 if wrong else 0)
                    wrong += watches[id(target.server)].new_tracebacks()
                counts.setdefault(target.name, Counter())[result] += 1
                slowest[target.name] = max(slowest[target.name], round(took * 1000))
                if wrong:
                    fail(target.name, case, wrong)
        took = time.monotonic() - began
    memory = {watch.server.state_dir.name: _memory(watch.memory_mib) for watch in watches.values()}
    for name, figures in memory.items():
        if figures["growth"] > MOST_GROWTH_MIB:
            fail("memory", name, f"grew by {figures['growth']} MiB")
    return {
        "seed": seed,
        "minutes": round(took / 60, 2),
        "inputs": sum(one.total() for one in counts.values()),
        "counts": {name: dict(sorted(one.items())) for name, one in counts.items()},
        "slowest_milliseconds": dict(slowest),
        "memory_mib": memory,
        "failures": list(failures.values()),
    }


def _where(wrong: str) -> str:
    """Return what tells a failure from others: the last line of a traceback, or the first of all."""
    lines = [line for line in wrong.splitlines() if line.startswith(CONTINUED)] or [wrong]
    return lines[-1][:60]


@contextmanager
def _server(folder: Path, name: str) -> Iterator[RunningServer]:
    data = folder / "s3" / "data" / "train"
    data.mkdir(parents=True)
    (data / "rows.csv").write_text("1,2\n")
    options = ("--with-aws",) if name == "with-aws" else ()
    with running(folder, clock_rate=200, images=IMAGES, options=options) as server:
        yield server


def _memory(samples: Sequence[float]) -> dict[str, float]:
    """Return first (after a fifth of the time), last and peak of the samples, and how they grow."""
    warm = samples[len(samples) // 5 :] or [0.0]
    half = max(1, len(warm) // 2)
    growth = sum(warm[-half:]) / half - sum(warm[:half]) / half
    return {"first": warm[0], "last": warm[-1], "peak": max(warm), "growth": round(growth, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=DEFAULT_RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="airflow-amt-fuzz-") as folder:
        results = fuzz(Path(folder), seed=options.seed, seconds=options.minutes * 60)
    text = json.dumps(results, indent=2) + "\n"
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(text)
    print(text)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
