"""Where ``s3://`` is: a folder, or an S3 server; the same prefixes mean the same in both."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, channels, pipes, trainer
from airflow_amt.local.channels import Channel
from airflow_amt.local.processes import MARKER
from airflow_amt.local.s3 import Places, StorageError
from airflow_amt.local.storage import BucketStorage, FolderStorage, Storage, storage_of
from airflow_amt.local.trainer import CannotStartError, TrainingSpec
from tests.local.support import create_request, training_processes, unique, wait_for_end, wait_until

OBJECTS = {
    "train/a.csv": b"1\n",
    "train/deep/b.csv": b"2\n",
    "train-old/c.csv": b"3\n",
    "parts/part-1": b"one",
    "parts/part-2": b"two",
    "parts/other": b"other",
    "lone": b"lone",
}


class SmallS3:
    """An S3 server of four operations, in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        s3 = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path).lstrip("/")
                query = {key: one[0] for key, one in parse_qs(urlsplit(self.path).query).items()}
                s3.requests.append(("GET", path, dict(self.headers)))
                if "list-type" in query:
                    return self.list(path.rstrip("/"), query)
                if path not in s3.objects:
                    return self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
                return self.answer(200, s3.objects[path])

            def list(self, bucket: str, query: Mapping[str, str]) -> None:
                if bucket != "data":
                    error = b"<Error><Code>NoSuchBucket</Code><Message>no bucket</Message></Error>"
                    return self.answer(404, error)
                prefix = f"{bucket}/{query.get('prefix', '')}"
                after = query.get("continuation-token", "")
                keys = sorted(key for key in s3.objects if key.startswith(prefix) and key > after)
                # Pages of two, so that every listing here has several.
                listed = "".join(
                    f"<Contents><Key>{escape(key.partition('/')[2])}</Key></Contents>" for key in keys[:2]
                )
                more = len(keys) > 2
                token = f"<NextContinuationToken>{escape(keys[1])}</NextContinuationToken>" if more else ""
                return self.answer(
                    200,
                    f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{listed}"
                    "</ListBucketResult>".encode(),
                )

            def do_PUT(self) -> None:
                path = unquote(urlsplit(self.path).path).lstrip("/")
                s3.requests.append(("PUT", path, dict(self.headers)))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if path.startswith("readonly/"):
                    error = b"<Error><Code>AccessDenied</Code><Message>read only</Message></Error>"
                    return self.answer(403, error)
                s3.objects[path] = body
                return self.answer(200, b"")

            def log_message(self, *_: Any) -> None:
                """Stay quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def small_s3() -> Iterator[SmallS3]:
    s3 = SmallS3()
    thread = threading.Thread(target=s3.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield s3
    finally:
        s3.server.shutdown()
        thread.join()
        s3.server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with small_s3() as s3:
        yield s3


class Filled:
    """A storage, and how to put objects into it and look at them."""

    def __init__(self, storage: Storage, root: Path | None, s3: SmallS3 | None) -> None:
        self.storage = storage
        self._root = root
        self._s3 = s3

    def put(self, key: str, content: bytes, bucket: str = "data") -> None:
        if self._s3 is not None:
            self._s3.objects[f"{bucket}/{key}"] = content
            return
        assert self._root is not None
        path = self._root / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def get(self, key: str, bucket: str = "data") -> bytes:
        if self._s3 is not None:
            return self._s3.objects[f"{bucket}/{key}"]
        assert self._root is not None
        return (self._root / bucket / key).read_bytes()


@pytest.fixture(params=["folder", "server"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Filled]:
    if request.param == "folder":
        root = tmp_path / "s3"
        root.mkdir()
        made = Filled(FolderStorage(Places(s3_root=root)), root, None)
    else:
        s3 = request.getfixturevalue("server")
        made = Filled(BucketStorage(s3.endpoint), None, s3)
    for key, content in OBJECTS.items():
        made.put(key, content)
    yield made
    made.storage.close()


def files(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, links followed."""
    found = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent) / name
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


# --- prefixes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://data/train", {"a.csv": b"1\n", "deep/b.csv": b"2\n"}),
        ("s3://data/train/", {"a.csv": b"1\n", "deep/b.csv": b"2\n"}),
        ("s3://data/parts/part-", {"part-1": b"one", "part-2": b"two"}),
        ("s3://data/lone", {"lone": b"lone"}),
        ("s3://data/train/deep/b.csv", {"b.csv": b"2\n"}),
        ("s3://data/nothing", {}),
        ("s3://data/nothing/", {}),
        ("s3://data", OBJECTS),
        ("s3://data/", OBJECTS),
    ],
)
def test_a_prefix_means_the_same_in_a_folder_and_on_a_server(
    filled: Filled, tmp_path: Path, uri: str, expected: dict[str, bytes]
) -> None:
    folder = tmp_path / "channel"

    assert filled.storage.provide(uri, folder) is bool(expected)
    assert files(folder) == expected
    objects = filled.storage.objects(uri)
    assert {one.name: _read(filled.storage, one.uri) for one in objects} == expected
    assert [one.name for one in objects] == sorted(one.name for one in objects)


def _read(storage: Storage, uri: str) -> bytes:
    with storage.open(uri) as handle:
        return handle.read()


def test_what_is_stored_is_there(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "x").write_bytes(b"x")
    (tmp_path / "tree" / "y").write_bytes(b"y")
    (tmp_path / "file").write_bytes(b"f")
    tree = [(name, tmp_path / "tree" / name) for name in ("inner/x", "y")]
    filled.storage.store_all(tree, "s3://data/out/tree/")
    filled.storage.store(tmp_path / "file", "s3://data/out/file")

    assert filled.get("out/tree/inner/x") == b"x"
    assert filled.get("out/tree/y") == b"y"
    assert filled.get("out/file") == b"f"
    assert {one.name for one in filled.storage.objects("s3://data/out")} == {"file", "tree/inner/x", "tree/y"}


def test_an_object_that_is_missing_is_named(filled: Filled) -> None:
    with pytest.raises(StorageError, match=r"s3://data/none"):
        _read(filled.storage, "s3://data/none")


def test_a_storage_is_made_again_from_its_description(filled: Filled) -> None:
    again = storage_of(json.loads(json.dumps(filled.storage.description())))

    assert _read(again, "s3://data/lone") == b"lone"
    again.close()


# --- an S3 server ----------------------------------------------------------------------------------


def test_requests_to_a_server_are_signed_with_the_environments_credentials(
    server: SmallS3,
) -> None:
    server.objects["data/x"] = b"x"
    environment = {"AWS_REGION": "eu-west-1"}
    for key, named in ((None, "Credential=embedded/"), ("AKIDOWN", "Credential=AKIDOWN/")):
        if key is not None:
            environment |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "secret"}
        storage = BucketStorage.from_environment(server.endpoint, environment)
        _read(storage, "s3://data/x")
        storage.close()
        method, path, headers = server.requests[-1]
        assert (method, path) == ("GET", "data/x")
        assert named in headers["Authorization"]


def test_a_server_that_cannot_be_reached_is_named(server: SmallS3) -> None:
    storage = BucketStorage("http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"s3://data/x: .*http://127\.0\.0\.1:1"):
        storage.objects("s3://data/x")
    storage.close()


@pytest.mark.parametrize("key", ["up/../../x", "up/a//b", "up/./x"])
def test_keys_that_would_lead_out_of_the_channel(server: SmallS3, tmp_path: Path, key: str) -> None:
    server.objects[f"data/{key}"] = b"x"
    storage = BucketStorage(server.endpoint)
    with pytest.raises(StorageError, match="cannot be a file"):
        storage.provide("s3://data/up", tmp_path / "channel")
    storage.close()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "s3://bucket", ""])
def test_addresses_of_servers_are_checked(endpoint: str) -> None:
    with pytest.raises(AmtFieldError, match="s3-endpoint"):
        BucketStorage(endpoint)


# --- channels --------------------------------------------------------------------------------------


def a_channel(uri: str, **more: Any) -> Channel:
    return Channel(**{"name": "train", "uri": uri, "data_type": "S3Prefix", "mode": "File", **more})


def provide(filled: Filled, channel: Channel, tmp_path: Path) -> Path:
    data = tmp_path / "input" / "data"
    data.mkdir(parents=True)
    channels.provide(filled.storage, channel, data)
    return data


def test_a_manifest_lists_what_a_channel_is_made_of(filled: Filled, tmp_path: Path) -> None:
    manifest = json.dumps([{"prefix": "s3://data/"}, "train/a.csv", "parts/part-1"]).encode()
    filled.put("manifest", manifest)
    data = provide(filled, a_channel("s3://data/manifest", data_type="ManifestFile"), tmp_path)

    assert files(data / "train") == {"train/a.csv": b"1\n", "parts/part-1": b"one"}
    assert (data / "train-manifest").read_bytes() == manifest


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        (b"not json", "is no manifest"),
        (b"{}", "is no manifest"),
        (b'["a"]', "is no manifest"),
        (b'[{"prefix": "s3://data/"}, 3]', "is no manifest"),
        (b'[{"prefix": "s3://data/"}]', "lists nothing"),
        (b'[{"prefix": "s3://data/"}, "../x"]', "cannot be the name"),
        (b'[{"prefix": "s3://data/"}, "missing"]', "s3://data/missing"),
    ],
)
def test_manifests_that_are_none(filled: Filled, tmp_path: Path, manifest: bytes, named: str) -> None:
    filled.put("manifest", manifest)
    with pytest.raises(StorageError, match=named):
        provide(filled, a_channel("s3://data/manifest", data_type="ManifestFile"), tmp_path)


def test_gzip_is_decompressed_on_the_way(filled: Filled, tmp_path: Path) -> None:
    filled.put("zip/a.csv.gz", gzip.compress(b"plain"))
    filled.put("zip/in/b", gzip.compress(b"also"))
    data = provide(filled, a_channel("s3://data/zip", gzipped=True), tmp_path)

    assert files(data / "train") == {"a.csv": b"plain", "in/b": b"also"}
    assert gzip.decompress(filled.get("zip/a.csv.gz")) == b"plain"


@pytest.mark.parametrize("content", [b"plain", gzip.compress(b"x" * 1000)[:-9]])
def test_what_is_not_gzip_is_named(filled: Filled, tmp_path: Path, content: bytes) -> None:
    filled.put("zip/a.gz", content)
    with pytest.raises(StorageError, match=r"s3://data/zip/a\.gz is not compressed with gzip"):
        provide(filled, a_channel("s3://data/zip", gzipped=True), tmp_path)


# --- pipes -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def fed(filled: Filled, channel: Channel, data: Path) -> Iterator[None]:
    """Fill the pipes of a channel beside this test: a trainer that only waits for the end of the test."""
    folder = data.parents[1]
    (folder / "input" / "config").mkdir(exist_ok=True)
    wait = ["sh", "-c", "read -r line"]
    process = subprocess.Popen(
        pipes.wrapped(wait, [channel], filled.storage, folder),
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.communicate(b"end\n", timeout=30)


def test_each_pass_over_a_piped_channel_is_a_pipe_of_its_own(filled: Filled, tmp_path: Path) -> None:
    channel = a_channel("s3://data/train", mode="Pipe")
    data = provide(filled, channel, tmp_path)
    assert (data / "train_0").is_fifo()
    assert not (data / "train").exists()
    with fed(filled, channel, data):
        for epoch in range(3):
            assert (data / f"train_{epoch}").read_bytes() == b"1\n2\n"
            assert not (data / f"train_{epoch}").exists()


def test_a_trainer_may_stop_reading_and_go_on_with_the_next_pass(filled: Filled, tmp_path: Path) -> None:
    filled.put("big/x", b"x" * 1_000_000)
    channel = a_channel("s3://data/big", mode="Pipe")
    data = provide(filled, channel, tmp_path)
    with fed(filled, channel, data):
        with (data / "train_0").open("rb") as early:
            assert early.read(10) == b"x" * 10
        assert len((data / "train_1").read_bytes()) == 1_000_000


def test_records_and_gzip_in_a_pipe(filled: Filled, tmp_path: Path) -> None:
    filled.put("zip/a.gz", gzip.compress(b"abcde"))
    filled.put("zip/b.gz", gzip.compress(b"wxyz"))
    channel = a_channel("s3://data/zip", mode="Pipe", gzipped=True, record_io=True)
    data = provide(filled, channel, tmp_path)
    with fed(filled, channel, data):
        stream = (data / "train_0").read_bytes()
    magic = struct.pack("<I", 0xCED7230A)
    assert stream == (magic + struct.pack("<I", 5) + b"abcde\0\0\0" + magic + struct.pack("<I", 4) + b"wxyz")


def test_an_augmented_manifest_streams_objects_and_attributes_in_turn(filled: Filled, tmp_path: Path) -> None:
    lines = [
        {"image-ref": "s3://data/parts/part-1", "label": 1, "unused": "x"},
        {"image-ref": "s3://data/parts/part-2", "label": "cat"},
    ]
    filled.put("augmented", "\n".join(json.dumps(line) for line in lines).encode() + b"\n\n")
    channel = a_channel(
        "s3://data/augmented",
        mode="Pipe",
        data_type="AugmentedManifestFile",
        attributes=("image-ref", "label"),
    )
    data = provide(filled, channel, tmp_path)
    with fed(filled, channel, data):
        assert (data / "train_0").read_bytes() == b"one1twocat"
    filled.put("augmented", b'{"image-ref": "s3://data/parts/part-1"}')
    with pytest.raises(StorageError, match=r"augmented, line 1: .*label"):
        channels.passes(filled.storage, channel)


def test_a_seed_shuffles_each_pass_in_its_own_way(tmp_path: Path) -> None:
    root = tmp_path / "s3"
    (root / "data").mkdir(parents=True)
    letters = [chr(ord("a") + number) for number in range(20)]
    for letter in letters:
        (root / "data" / letter).write_text(letter)
    filled = Filled(FolderStorage(Places(s3_root=root)), root, None)
    channel = a_channel("s3://data", mode="Pipe", seed=7)
    data = provide(filled, channel, tmp_path)
    with fed(filled, channel, data):
        first, second = (data / "train_0").read_text(), (data / "train_1").read_text()
    assert sorted(first) == sorted(second) == letters
    assert len({first, second, "".join(letters)}) == 3


def test_a_piped_channel_without_data_is_refused_before_it_starts(filled: Filled, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no object matches s3://data/nothing"):
        provide(filled, a_channel("s3://data/nothing", mode="Pipe"), tmp_path)


# --- training jobs on either -----------------------------------------------------------------------


def make(filled: Filled, tmp_path: Path, hyperparameters: Mapping[str, str], **more: Any) -> TrainingSpec:
    command: list[str] | None = more.pop("command", None)
    return TrainingSpec(
        name="job-001-abc",
        arn="arn:aws:sagemaker:us-east-1:000000000000:training-job/job-001-abc",
        region="us-east-1",
        definition={"OutputDataConfig": {"S3OutputPath": "s3://data/out"}, **more},
        hyperparameters=hyperparameters,
        folder=tmp_path / "training",
        storage=filled.storage,
        places=Places(s3_root=tmp_path / "s3"),
        command=command,
        marker="state/us-east-1/job-001-abc",
        environment={"PATH": os.environ["PATH"]},
    )


@pytest.mark.parametrize("where", ["s3://data/code", "s3://data/code/sourcedir.tar.gz"])
def test_script_mode_from_s3(filled: Filled, tmp_path: Path, where: str) -> None:
    if where.endswith(".tar.gz"):
        archive = tmp_path / "sourcedir.tar.gz"
        (tmp_path / "train.py").write_text("print('x')")
        subprocess.run(["tar", "czf", archive, "-C", tmp_path, "train.py"], check=True)
        filled.put("code/sourcedir.tar.gz", archive.read_bytes())
    else:
        filled.put("code/train.py", b"print('x')")
        filled.put("code-old/other.py", b"")
    spec = make(
        filled, tmp_path, {"sagemaker_program": '"train.py"', "sagemaker_submit_directory": json.dumps(where)}
    )

    assert trainer.prepare(spec)[0] == [sys.executable, "train.py"]
    assert {path.name for path in spec.code.iterdir()} == {"train.py"}


def test_a_submit_directory_that_is_missing(filled: Filled, tmp_path: Path) -> None:
    spec = make(
        filled,
        tmp_path,
        {"sagemaker_program": "train.py", "sagemaker_submit_directory": "s3://data/none.tar.gz"},
    )
    with pytest.raises(CannotStartError, match=r"^ClientError: sagemaker_submit_directory: s3://data/none"):
        trainer.prepare(spec)


def run(spec: TrainingSpec) -> trainer.Conclusion:
    command, environment = trainer.prepare(spec)
    with spec.log.open("ab") as log:
        done = subprocess.run(
            command,
            cwd=spec.code,
            env=environment,
            stdout=log,
            stderr=log,
            timeout=60,
            start_new_session=True,
        )
    return trainer.conclude(spec, {}, done.returncode, stopped=False)


def test_a_stand_alone_training_job_reads_pipes_and_stores_its_model(filled: Filled, tmp_path: Path) -> None:
    """As ``CreateTrainingJob`` describes it: no static hyperparameters, no objective, an entry point."""
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/train"}}
    spec = make(
        filled,
        tmp_path,
        {"depth": "3"},
        command=["sh", "-c", 'cat "$SM_CHANNEL_TRAIN"_0 "$SM_CHANNEL_TRAIN"_1 >"$SM_MODEL_DIR"/all'],
        HyperParameters={"depth": "3"},
        OutputDataConfig={"S3OutputPath": "s3://data/out", "CompressionType": "NONE"},
        AlgorithmSpecification={
            "TrainingInputMode": "Pipe",
            "ContainerEntrypoint": ["python3"],
            "ContainerArguments": ["x"],
        },
        InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
    )

    assert run(spec) == trainer.Conclusion(status="Completed", metrics={})
    assert filled.get("out/job-001-abc/output/model/all") == b"1\n2\n1\n2\n"
    assert "ContainerEntrypoint and ContainerArguments not used" in spec.log.read_text()
    config = json.loads((spec.folder / "input/config/inputdataconfig.json").read_text())
    assert config["train"]["TrainingInputMode"] == "Pipe"
    # Nobody who looks through the state folder is to hang on a pipe.
    assert not [path for path in (spec.folder / "input" / "data").iterdir() if path.is_fifo()]


def test_a_pipe_that_breaks_fails_the_training_job(tmp_path: Path) -> None:
    root = tmp_path / "s3"
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.gz").write_bytes(b"no gzip")
    filled = Filled(FolderStorage(Places(s3_root=root)), root, None)
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/a.gz"}}
    spec = make(
        filled,
        tmp_path,
        {},
        command=["sh", "-c", 'cat "$SM_CHANNEL_TRAIN"_0; sleep 60'],
        InputDataConfig=[
            {"ChannelName": "train", "InputMode": "Pipe", "CompressionType": "Gzip", "DataSource": source}
        ],
    )

    conclusion = run(spec)
    assert conclusion.status == "Failed"
    assert conclusion.failure_reason == (
        "ClientError: Data download failed for channel 'train': s3://data/a.gz is not compressed with gzip: "
        "Not a gzipped file (b'no')"
    )


@pytest.mark.parametrize("tuned", [True, False])
def test_checkpoints_are_there_before_and_stored_after_a_failure(
    filled: Filled, tmp_path: Path, tuned: bool
) -> None:
    key = "checks/job-001-abc" if tuned else "checks"
    filled.put(f"{key}/epoch/1", b"old")
    spec = make(
        filled,
        tmp_path,
        {"_tuning_objective_metric": "objective"} if tuned else {},
        command=["sh", "-c", 'cd "$SM_CHECKPOINT_DIR"; cp epoch/1 epoch/2; echo new >epoch/1; exit 3'],
        CheckpointConfig={"S3Uri": "s3://data/checks/"},
    )

    assert run(spec).status == "Failed"
    assert filled.get(f"{key}/epoch/1") == b"new\n"
    assert filled.get(f"{key}/epoch/2") == b"old"


def test_checkpoints_that_cannot_be_stored_fail_the_training_job(server: SmallS3, tmp_path: Path) -> None:
    filled = Filled(BucketStorage(server.endpoint), None, server)
    spec = make(filled, tmp_path, {}, command=["true"], CheckpointConfig={"S3Uri": "s3://data/checks"})
    trainer.prepare(spec)
    (spec.folder / "checkpoints" / "x").write_text("x")
    broken = make(filled, tmp_path, {}, command=["true"], CheckpointConfig={"S3Uri": "s3://readonly/checks"})

    reason = trainer.conclude(broken, {}, 0, stopped=False).failure_reason
    assert str(reason).startswith("ClientError: cannot store the checkpoints at s3://readonly/checks: ")
    assert "AccessDenied" in str(reason)
    filled.storage.close()


def test_data_of_a_server_that_are_missing_fail_with_its_words(server: SmallS3, tmp_path: Path) -> None:
    filled = Filled(BucketStorage(server.endpoint), None, server)
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://absent/train"}}
    spec = make(
        filled,
        tmp_path,
        {},
        command=["true"],
        InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
    )
    with pytest.raises(CannotStartError) as refusal:
        trainer.prepare(spec)
    assert str(refusal.value).startswith(
        "ClientError: Data download failed for channel 'train': s3://absent/train: An error occurred "
        "(NoSuchBucket)"
    )
    filled.storage.close()


def test_downloads_are_removed_when_the_training_job_is_over(server: SmallS3, tmp_path: Path) -> None:
    server.objects["data/train/a.csv"] = b"1"
    filled = Filled(BucketStorage(server.endpoint), None, server)
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/train"}}
    spec = make(
        filled,
        tmp_path,
        {},
        command=["sh", "-c", 'test "$(cat "$SM_CHANNEL_TRAIN"/a.csv)" = 1'],
        InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
    )

    assert run(spec).status == "Completed"
    assert not (spec.folder / "input" / "data" / "train").exists()
    filled.storage.close()


@pytest.mark.local
@pytest.mark.parametrize("sequence", ["0.5", "hang"])
def test_a_trainer_that_never_reads_its_pipe_leaves_nothing_behind(
    amt: RunningServer, client: Any, sequence: str
) -> None:
    data = amt.state_dir / "s3" / "piped"
    data.mkdir(parents=True, exist_ok=True)
    (data / "rows").write_bytes(b"x" * 1_000_000)
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://piped"}}
    name = unique("piped")
    request = create_request(
        name,
        sequence=sequence,
        most=1,
        InputDataConfig=[{"ChannelName": "train", "InputMode": "Pipe", "DataSource": source}],
    )
    client.create_hyper_parameter_tuning_job(**request)
    if sequence == "hang":
        # The trainer, and the process that fills its pipe.
        wait_until(lambda: len(training_processes(name)) == 2, "both processes")
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    ended = wait_for_end(client, name)
    assert ended["HyperParameterTuningJobStatus"] == ("Stopped" if sequence == "hang" else "Completed")
    wait_until(lambda: not training_processes(name), "the end of all processes")


@pytest.mark.local
def test_the_process_that_fills_pipes_ends_with_the_trainer_also_without_a_server(tmp_path: Path) -> None:
    root = tmp_path / "s3"
    (root / "data").mkdir(parents=True)
    (root / "data" / "x").write_bytes(b"x")
    filled = Filled(FolderStorage(Places(s3_root=root)), root, None)
    channel = a_channel("s3://data", mode="Pipe")
    data = provide(filled, channel, tmp_path)
    (tmp_path / "input" / "config").mkdir()
    marked = {**os.environ, MARKER: f"alone/{tmp_path.name}"}
    command = pipes.wrapped(["sleep", "600"], [channel], filled.storage, tmp_path)
    with subprocess.Popen(command, env=marked, start_new_session=True) as process:
        wait_until(lambda: len(training_processes(marked[MARKER])) == 2, "both processes")
        wait_until((data / "train_1").is_fifo, "the second pipe")
        process.kill()
    wait_until(lambda: not training_processes(marked[MARKER]), "the end of the other process")


# --- requests that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"InputMode": "FastFile", "Source": {"S3DataType": "ManifestFile"}}, "InputMode"),
        ({"Source": {"S3DataType": "AugmentedManifestFile", "AttributeNames": ["a"]}}, "InputMode"),
        ({"InputMode": "Pipe", "Source": {"S3DataType": "AugmentedManifestFile"}}, "AttributeNames"),
        ({"Source": {"S3DataType": "Converse"}}, "S3DataType"),
        ({"RecordWrapperType": "RecordIO"}, "RecordWrapperType"),
        (
            {"DataSource": {"FileSystemDataSource": {"FileSystemId": "fs-1"}}},
            "DataSource",
        ),
    ],
)
def test_channels_that_are_refused(change: dict[str, Any], field: str) -> None:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://data/x", **change.pop("Source", {})}
    channel = {"ChannelName": "train", "DataSource": {"S3DataSource": source}, **change}
    definition = {
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "InputDataConfig": [
            {"ChannelName": "good", "DataSource": {"S3DataSource": {**source, "S3DataType": "S3Prefix"}}},
            channel,
        ],
    }

    (problem,) = channels.problems(definition, "TrainingJobDefinition.")
    assert problem.field.startswith("TrainingJobDefinition.InputDataConfig[1].")
    assert problem.field.endswith(field)
