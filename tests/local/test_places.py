"""What callers and training jobs may reach of this machine, and what its user must not lose."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from airflow_amt.cli import local as command_line
from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, channels, config, files, running, trainer
from airflow_amt.local.s3 import Places, RefusedPlaceError, StorageError, UnmappableAddressError
from airflow_amt.local.storage import FolderStorage, storage_of
from airflow_amt.local.trainer import CannotStartError, TrainingSpec
from tests.local.raw_http import Request, exchange
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    run_to_end,
    training_processes,
    unique,
    wait_until,
)

NAMES = ("sagemaker_program", "sagemaker_submit_directory")


class Machine:
    """A project with the state folder in it, as the documents show, and a file that is nobody's business."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.state = self.project / "amt"
        self.s3 = self.state / "s3"
        self.bucket = self.s3 / "data"
        self.secret = folder / "secret" / "key"
        for path in (self.bucket / "train", self.secret.parent, self.state / "training-jobs"):
            path.mkdir(parents=True)
        self.secret.write_text("secret")
        (self.state / "amt.sqlite3").write_text("rows")
        (self.bucket / "train" / "rows.csv").write_text("1\n")
        (self.project / "train.py").write_text("print('objective=1')\n")
        self.places = Places(s3_root=self.s3, roots=(self.project,), state_dir=self.state)

    def spec(
        self, *, command: list[str] | None = None, static: Mapping[str, str] | None = None, **definition: Any
    ) -> TrainingSpec:
        return TrainingSpec(
            name="job-001-abc",
            arn="arn:aws:sagemaker:us-east-1:000000000000:training-job/job-001-abc",
            region="us-east-1",
            definition={"OutputDataConfig": {"S3OutputPath": "s3://data/out"}, **definition},
            hyperparameters=static or {},
            folder=self.state / "training-jobs" / "us-east-1" / "job-001-abc",
            storage=FolderStorage(self.places, link=definition.pop("link", False)),
            places=self.places,
            command=command,
            environment={},
            marker="state/us-east-1/job-001-abc",
        )

    def script(self, where: str) -> TrainingSpec:
        return self.spec(static=dict(zip(NAMES, ("train.py", where), strict=True)))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def channel(uri: str, **source: Any) -> list[dict[str, Any]]:
    s3_source = {"S3DataType": "S3Prefix", "S3Uri": uri, **source}
    return [{"ChannelName": "train", "DataSource": {"S3DataSource": s3_source}}]


def run(spec: TrainingSpec) -> trainer.Conclusion:
    command, environment = trainer.prepare(spec)
    with spec.log.open("ab") as log:
        done = subprocess.run(command, cwd=spec.code, env=environment, stdout=log, stderr=log, timeout=60)
    return trainer.conclude(spec, {}, done.returncode, stopped=False)


# --- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file:///etc/passwd", "Callers may reach"),
        ("file://localhost/etc/passwd", "Callers may reach"),
        ("file:///{project}/../secret/key", "Callers may reach"),
        ("file:///{project}/%2e%2e/secret/key", "Callers may reach"),
        ("file:///{project}/link", "Callers may reach"),
        ("file:///{project}/amt/amt.sqlite3", "server's own"),
        ("file:///{project}/amt", "server's own"),
        ("file:///{project}/amt/s3/.incoming/x", "server's own"),
        ("s3://.incoming/x", "server's own"),
        ("s3://.x", "server's own"),
        ("s3://data/link", "is in its folder"),
        ("s3://data/folder/key", "is in its folder"),
        ("s3://data/other", "is in its folder"),
        ("s3://out", "Callers may reach"),
        ("s3://jobs", "server's own"),
    ],
)
def test_addresses_that_lead_elsewhere_are_refused(machine: Machine, uri: str, why: str) -> None:
    (machine.project / "link").symlink_to(machine.secret)
    (machine.bucket / "link").symlink_to(machine.secret)
    (machine.bucket / "folder").symlink_to(machine.secret.parent)
    (machine.s3 / "more").mkdir()
    (machine.bucket / "other").symlink_to(machine.s3 / "more")
    (machine.s3 / "out").symlink_to(machine.secret.parent)
    (machine.s3 / "jobs").symlink_to(machine.state / "training-jobs")
    uri = uri.format(project=str(machine.project).lstrip("/"))
    with pytest.raises(RefusedPlaceError, match=why) as refusal:
        machine.places.path(uri)
    assert uri in str(refusal.value)
    with pytest.raises(RefusedPlaceError):
        storage_of(json.loads(json.dumps(FolderStorage(machine.places).description()))).objects(uri)


@pytest.mark.parametrize(
    "uri",
    ["file://data", "file://host/data", "file:///a%00b", "s3://data/a\0b", "s3://data/\ud800", "s3://../x"],
)
def test_addresses_that_no_file_can_have(machine: Machine, uri: str) -> None:
    with pytest.raises(UnmappableAddressError) as refusal:
        machine.places.path(uri)
    # The text goes into answers and into the state.
    assert str(refusal.value).encode()


def test_a_bucket_may_be_a_link_to_what_a_root_allows(machine: Machine) -> None:
    (machine.project / "rows").mkdir()
    (machine.project / "rows" / "x").write_text("x")
    (machine.s3 / "linked").symlink_to(machine.project / "rows")
    storage = FolderStorage(machine.places)

    assert [one.name for one in storage.objects("s3://linked")] == ["x"]
    storage.store_all([("y", machine.project / "train.py")], "s3://linked/out")
    assert (machine.project / "rows" / "out" / "y").is_file()


def test_a_folder_for_s3_around_the_state_folder_shows_nothing_of_it(machine: Machine) -> None:
    places = Places(s3_root=machine.project.parent, state_dir=machine.state)
    with pytest.raises(RefusedPlaceError, match="server's own"):
        places.path("s3://project/amt/amt.sqlite3")
    assert [name for name, _ in places.matching("s3://project")] == ["train.py"]


def test_links_are_followed_as_far_as_they_stay_and_only_once_around(machine: Machine) -> None:
    (machine.bucket / "same").symlink_to(machine.bucket / "train")
    (machine.bucket / "train" / "loop").symlink_to(machine.bucket)
    (machine.bucket / "self").symlink_to("self")
    (machine.bucket / "gone").symlink_to("nowhere")
    os.mkfifo(machine.bucket / "pipe")

    assert [name for name, _ in machine.places.matching("s3://data")] == ["same/rows.csv", "train/rows.csv"]
    (machine.bucket / "out").symlink_to(machine.secret)
    with pytest.raises(RefusedPlaceError, match="secret"):
        list(machine.places.matching("s3://data"))
    assert len(list(machine.places.matching("s3://data", strict=False))) == 2


def test_a_maze_of_links_has_an_end(machine: Machine) -> None:
    for number in range(20):
        (machine.bucket / str(number)).mkdir()
        for name in ("a", "b"):
            (machine.bucket / str(number) / name).symlink_to(f"../{number + 1}")
    with pytest.raises(OSError, match=os.strerror(40)):
        list(machine.places.matching("s3://data/0"))


def test_keys_come_in_order_and_from_where_they_are_asked_for(tmp_path: Path) -> None:
    names = ["a-b", "a/b", "a/c/d", "a/c0", "a0", "b/x", "c"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def walked(**options: str) -> list[str]:
        found = files.walk(tmp_path, allows=lambda _: True, refused=lambda *_: None, strict=True, **options)
        return [key for key, _ in found]

    assert walked() == sorted(names) == names
    for after in [*names, "", "a/", "a/c", "zz"]:
        for prefix in ("", "a", "a/", "a/c", "b/x", "zz"):
            expected = [name for name in names if name > after and name.startswith(prefix)]
            assert walked(after=after, prefix=prefix) == expected


# --- a training job --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "{secret}",
        "file://{secret}",
        "{project}/link",
        "{project}/amt",
        "{project}/amt/training-jobs",
        "/",
        "/etc",
        "s3://.x",
    ],
)
def test_code_comes_only_from_where_callers_may_reach(machine: Machine, where: str) -> None:
    (machine.project / "link").symlink_to(machine.secret.parent)
    (machine.secret.parent / "train.py").write_text("")
    where = where.format(secret=machine.secret.parent, project=machine.project)
    with pytest.raises(CannotStartError, match=r"^ClientError: sagemaker_submit_directory: .* leads to|own"):
        trainer.prepare(machine.script(where))


@pytest.mark.parametrize("uri", ["file:///etc", "s3://.incoming", "s3://data/link"])
def test_a_training_job_that_asks_for_more_fails_with_what_is_allowed(machine: Machine, uri: str) -> None:
    (machine.bucket / "link").symlink_to(machine.secret)
    with pytest.raises(CannotStartError, match=r"^ClientError: Data download failed for channel 'train'"):
        trainer.prepare(machine.spec(command=["true"], InputDataConfig=channel(uri)))
    with pytest.raises(CannotStartError, match=r"^ClientError: Data download failed for the checkpoints"):
        trainer.prepare(machine.spec(command=["true"], CheckpointConfig={"S3Uri": uri}))
    if not uri.endswith("link"):
        stored = run(machine.spec(command=["true"], OutputDataConfig={"S3OutputPath": uri}))
        assert str(stored.failure_reason).startswith("ClientError: cannot store the model at ")


HARM = 'cd "$SM_CHANNEL_TRAIN"; echo 2 >>rows.csv; rm -f other.csv; rm -rf deep; touch new.csv'


@pytest.mark.parametrize("mode", ["File", "FastFile"])
@pytest.mark.parametrize("source", ["s3://data/train", "s3://data/train/", "s3://data/tr", "file://{train}"])
def test_what_a_script_does_to_its_channel_is_not_done_to_the_users_files(
    machine: Machine, mode: str, source: str
) -> None:
    train = machine.bucket / "train"
    (train / "deep").mkdir()
    for name in ("other.csv", "deep/x"):
        (train / name).write_text(name)
        (train / name).chmod(0o444)
    given = channel(source.format(train=train))
    given[0]["InputMode"] = mode
    # "tr" is no folder, but what all keys of the folder begin with; so the folder is in the channel.
    harm = HARM.replace('TRAIN"', 'TRAIN"/train') if source == "s3://data/tr" else HARM
    spec = machine.spec(command=["sh", "-ec", harm], InputDataConfig=given)

    assert run(spec).status == "Completed"
    assert {path.name: path.read_text() for path in train.rglob("*") if path.is_file()} == {
        "rows.csv": "1\n",
        "other.csv": "other.csv",
        "x": "deep/x",
    }
    assert list((spec.folder / "input" / "data").iterdir()) == []


def test_the_objects_of_a_manifest_are_copies_too(machine: Machine) -> None:
    (machine.bucket / "manifest").write_text(json.dumps([{"prefix": "s3://data/train/"}, "rows.csv"]))
    given = channel("s3://data/manifest", S3DataType="ManifestFile")
    spec = machine.spec(command=["sh", "-c", 'echo 2 >>"$SM_CHANNEL_TRAIN"/rows.csv'], InputDataConfig=given)

    assert run(spec).status == "Completed"
    assert (machine.bucket / "train" / "rows.csv").read_text() == "1\n"


def test_links_on_request_are_to_each_file(machine: Machine) -> None:
    (machine.bucket / "train" / "deep").mkdir()
    (machine.bucket / "train" / "deep" / "x").write_text("x")
    spec = machine.spec(
        command=["sh", "-ec", 'cd "$SM_CHANNEL_TRAIN"; test -L rows.csv; rm deep/x; touch new'],
        InputDataConfig=channel("s3://data/train"),
        link=True,
    )

    assert run(spec).status == "Completed"
    assert (machine.bucket / "train" / "deep" / "x").read_text() == "x"
    assert not (machine.bucket / "train" / "new").exists()


def test_another_attempt_gets_its_data_anew_and_follows_no_link_of_the_first(machine: Machine) -> None:
    own = machine.project / "own" / "data"
    own.mkdir(parents=True)
    (own / "rows.csv").write_text("mine")
    spec = machine.spec(command=["true"], InputDataConfig=channel("s3://data/train"))
    trainer.prepare(spec)
    (spec.folder / "input" / "data" / "train" / "rows.csv").write_text("changed")
    trainer.prepare(spec)
    assert (spec.folder / "input" / "data" / "train" / "rows.csv").read_text() == "1\n"

    for name, target in (("input/data", own), ("input", own.parent)):
        files.remove(spec.folder / name)
        (spec.folder / name).symlink_to(target)
        trainer.clean_up(spec.folder)
        trainer.prepare(spec)
        assert (own / "rows.csv").read_text() == "mine"


def test_a_channel_that_its_trainer_has_closed_is_removed_all_the_same(machine: Machine) -> None:
    close = 'mkdir "$SM_CHANNEL_TRAIN"/d; touch "$SM_CHANNEL_TRAIN"/d/x; chmod 500 "$SM_CHANNEL_TRAIN"/d; '
    spec = machine.spec(
        command=["sh", "-c", close + 'chmod 500 "$SM_CHANNEL_TRAIN"'],
        InputDataConfig=channel("s3://data/train"),
    )
    assert run(spec).status == "Completed"
    assert list((spec.folder / "input" / "data").iterdir()) == []


# --- code ------------------------------------------------------------------------------------------


def test_a_project_with_the_state_folder_in_it(machine: Machine) -> None:
    for name in (".git/config", ".venv/pyvenv.cfg", ".venv/lib/x.py", "__pycache__/x.pyc", "package/a.py"):
        (machine.project / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.project / name).write_text("")
    (machine.project / "run").write_text("#!/bin/sh\n")
    (machine.project / "run").chmod(0o755)
    (machine.project / "linked.py").symlink_to("package/a.py")
    (machine.project / "loop").symlink_to(".")
    (machine.project / "key").symlink_to(machine.secret)
    spec = machine.script(str(machine.project))

    assert run(spec).status == "Completed"
    found = sorted(path.relative_to(spec.code).as_posix() for path in spec.code.rglob("*"))
    assert [name for name in found if "__pycache__" not in name] == [
        "linked.py",
        "package",
        "package/a.py",
        "run",
        "train.py",
    ]
    assert not (spec.code / "linked.py").is_symlink()
    assert os.access(spec.code / "run", os.X_OK)
    assert f"left out of the code: '{machine.project / 'key'}'" in spec.log.read_text()


@pytest.fixture
def deep(machine: Machine) -> Iterator[Path]:
    """A folder deeper in the project than a function may call itself; pytest cannot remove such ones."""
    folder = machine.project.joinpath(*("d" for _ in range(1200)))
    yield folder
    files.remove(machine.project)


def test_a_deep_project_is_copied(machine: Machine, deep: Path) -> None:
    files.make_folder(deep)
    (deep / "x.py").write_text("")
    spec = machine.script(str(machine.project))

    trainer.prepare(spec)
    assert (spec.code / deep.relative_to(machine.project) / "x.py").is_file()


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
@pytest.mark.usefixtures("deep")
def test_a_deep_model_is_stored_and_a_deep_channel_removed(machine: Machine, compression: str) -> None:
    output = {"S3OutputPath": "s3://data/out", "CompressionType": compression}
    spec = machine.spec(command=["true"], OutputDataConfig=output, InputDataConfig=channel("s3://data/train"))
    trainer.prepare(spec)
    below = "/".join(["d"] * 1100)
    for folder in (spec.folder / "model", spec.folder / "input" / "data" / "train"):
        files.make_folder(folder / below)
        (folder / below / "x").write_text("x")

    assert trainer.conclude(spec, {}, 0, stopped=False) == trainer.Conclusion(status="Completed", metrics={})
    stored = machine.bucket / "out" / "job-001-abc" / "output"
    assert (stored / ("model" if compression == "NONE" else "model.tar.gz")).exists()
    assert list((spec.folder / "input" / "data").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_of_a_project_is_named(machine: Machine) -> None:
    (machine.project / "closed.py").write_text("")
    (machine.project / "closed.py").chmod(0)
    with pytest.raises(CannotStartError, match=r"^ClientError: sagemaker_submit_directory: .*closed\.py"):
        trainer.prepare(machine.script(str(machine.project)))


def archive_of(path: Path, members: list[tarfile.TarInfo], content: bytes = b"") -> str:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(content) if member.size else None)
    return str(path)


def member(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: [member("../out")], "outside"),
        (lambda: [member("x", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "absolute"),
        (lambda: [member("x", type=tarfile.FIFOTYPE)], "special"),
        (lambda: [member(str(number)) for number in range(20)], "more than 10 files"),
        (lambda: [member("x", 2000)], "or 1000 bytes"),
        (lambda: [member("x", -2000)], "-2000 bytes long"),
        (lambda: [member("x", 2**20 + 1, type=tarfile.XHDTYPE)], "a header in it"),
    ],
)
def test_archives_that_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, make: Callable[[], list[tarfile.TarInfo]], why: str
) -> None:
    monkeypatch.setattr(trainer, "MOST_MEMBERS", 10)
    monkeypatch.setattr(trainer, "MOST_UNPACKED", 1000)
    where = archive_of(machine.project / "code.tar.gz", make(), bytes(2**20 + 1))
    with pytest.raises(CannotStartError, match=f"^ClientError: sagemaker_submit_directory: cannot.*{why}"):
        trainer.prepare(machine.script(where))


@pytest.mark.parametrize(
    "content",
    [b"", b"x", gzip.compress(b"x" * 600), gzip.compress(bytes(5000))[:-9], b"\xfd7zXZ\0junk", b"BZh9"],
)
def test_archives_that_are_none(machine: Machine, content: bytes) -> None:
    (machine.project / "code.tar.gz").write_bytes(content)
    with pytest.raises(CannotStartError, match=r"^ClientError: sagemaker_"):
        trainer.prepare(machine.script(str(machine.project / "code.tar.gz")))


# --- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_links_that_leave_a_model_are_left_out_and_the_log_says_so(
    machine: Machine, compression: str
) -> None:
    spec = machine.spec(
        command=["true"],
        OutputDataConfig={"S3OutputPath": "s3://data/out", "CompressionType": compression},
        CheckpointConfig={"S3Uri": "s3://data/checks"},
    )
    trainer.prepare(spec)
    for name in ("model", "checkpoints"):
        folder = spec.folder / name
        (folder / "deep").mkdir()
        (folder / "weights").write_text("w")
        (folder / "deep" / "same").symlink_to(folder / "weights")
        (folder / "passwd").symlink_to("/etc/passwd")
        (folder / "up").symlink_to("../..")
        (folder / "loop").symlink_to(".")

    assert trainer.conclude(spec, {}, 0, stopped=False).status == "Completed"
    stored = machine.bucket / "out" / "job-001-abc" / "output"
    folders = [machine.bucket / "checks"]
    if compression == "GZIP":
        folders.append(machine.bucket / "unpacked")
        with tarfile.open(stored / "model.tar.gz") as archive:
            archive.extractall(folders[-1], filter="data")
            folders[-1].joinpath("loop").unlink()
    else:
        folders.append(stored / "model")
    for folder in folders:
        stored_files = [path for path in folder.rglob("*") if path.is_file()]
        found = {path.relative_to(folder).as_posix(): path.read_text() for path in stored_files}
        assert found == {"weights": "w", "deep/same": "w"}
        assert compression == "GZIP" or not any(path.is_symlink() for path in folder.rglob("*"))
    log = spec.log.read_text()
    assert f"not stored: '{spec.folder / 'model' / 'passwd'}'" in log
    assert f"not stored: '{spec.folder / 'checkpoints' / 'up'}'" in log


# --- manifests -------------------------------------------------------------------------------------

DEEP = b"[" * 100_000
JUNK = [
    b"",
    b"\xff\xfe",
    b"null",
    b"3",
    DEEP,
    DEEP + b"]" * 100_000,
    b"9" * 5000,
    b'[{"prefix": ' + b"9" * 5000 + b"}]",
    b'[{"prefix": []}, "x"]',
    b'[{"prefix": "s3://data/"}, {}]',
    b'[{"prefix": "s3://data/"}, "."]',
    b'[{"prefix": "s3://data/"}, "\\ud800"]',
    b'[{"prefix": "s3://data/"}, "\\u0000"]',
    b'[{"prefix": "\\ud800"}, "x"]',
    b'[{"prefix": "s3://data/"}, "' + b"x" * 5000 + b'"]',
    b'[{"prefix": "s3://.incoming/"}, "x"]',
    b'[{"prefix": "file:///etc/"}, "passwd"]',
    b'{"a-ref": 3, "b": 1}',
    b'{"a-ref": "\\ud800", "b": 1}',
    b'{"a-ref": "s3://data/train/rows.csv", "b": "\\ud800"}',
    b'{"a-ref": "s3://data/train/rows.csv", "b": ' + DEEP + b"}",
    b'{"b": 1}',
    b"[]",
]


@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("data_type", ["ManifestFile", "AugmentedManifestFile"])
def test_manifests_of_any_kind_are_an_error_of_the_caller(
    machine: Machine, content: bytes, data_type: str
) -> None:
    (machine.bucket / "manifest").write_bytes(content)
    given = channel("s3://data/manifest", S3DataType=data_type, AttributeNames=["a-ref", "b"])
    given[0]["InputMode"] = "Pipe" if data_type == "AugmentedManifestFile" else "File"
    with pytest.raises(CannotStartError, match=r"^ClientError: Data download failed") as refusal:
        trainer.prepare(machine.spec(command=["true"], InputDataConfig=given))
    assert str(refusal.value).encode()


@pytest.mark.parametrize("data_type", ["ManifestFile", "AugmentedManifestFile"])
def test_a_manifest_without_end_is_not_read_to_its_end(
    machine: Machine, data_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "LONGEST_MANIFEST", 1000)
    (machine.bucket / "manifest").write_bytes(b" " * 1001)
    given = channel("s3://data/manifest", S3DataType=data_type, AttributeNames=["a"])
    with pytest.raises(CannotStartError, match="longer than 1000 bytes"):
        trainer.prepare(machine.spec(command=["true"], InputDataConfig=given))


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000])
def test_hyperparameters_that_are_json_of_no_use_are_text(value: str) -> None:
    assert trainer.decoded(value) == value


# --- S3 over HTTP ----------------------------------------------------------------------------------


class Shown:
    """A server whose bucket has what no bucket should have."""

    def __init__(self, server: RunningServer, secret: Path, *, is_moto: bool) -> None:
        self.server = server
        self.is_moto = is_moto
        self.root = server.state_dir / "s3"
        bucket = self.root / "odd"
        (bucket / "deep").mkdir(parents=True)
        (bucket / "deep" / "file").write_text("f")
        (bucket / "line\nfeed").write_text("l")
        (bucket / "control\x01").write_text("c")
        (bucket / "plus+ %41&<").write_text("p")
        Path(os.fsdecode(os.fsencode(bucket) + b"/\xff")).write_text("no key")
        os.mkfifo(bucket / "pipe")
        (bucket / "closed").write_text("")
        (bucket / "closed").chmod(0)
        (bucket / "passwd").symlink_to(secret)
        (bucket / "folder").symlink_to(secret.parent)
        (bucket / "loop").symlink_to(bucket)
        (bucket / "self").symlink_to("self")
        (self.root / "out").symlink_to(secret.parent)
        (self.root / "jobs").symlink_to(server.state_dir / "training-jobs")
        self.s3 = self.client()

    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.server.credentials.access_key_id,
            aws_secret_access_key=self.server.credentials.secret_access_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        status, body = exchange(self.server, Request(service="s3", method=method, target=path), 30)
        assert status is not None, path
        return status, body


@pytest.fixture(scope="module", params=["view", "moto"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    (folder / "secret").mkdir()
    (folder / "secret" / "key").write_text("secret")
    options = ("--with-aws",) if request.param == "moto" else ()
    with running(folder / "state", images=IMAGES, options=options) as server:
        made = Shown(server, folder / "secret" / "key", is_moto=bool(options))
        yield made
        made.s3.close()
        assert "Traceback" not in server.log, server.log


PATHS = [
    "/odd/passwd",
    "/odd/folder/key",
    "/odd/self",
    "/odd/pipe",
    "/odd/closed",
    "/odd/%ff",
    "/odd/%00",
    "/odd/%ed%a0%80",
    "/odd/" + "x" * 300,
    "/odd/" + "x/" * 3000 + "y",
    "/odd/deep/file/below",
    "/odd/deep/",
    "/odd/loop/loop/loop/none",
    "/odd/../../amt.sqlite3",
    "/.incoming",
    "/.incoming/x",
    "/.incoming/",
    "/%2eincoming/x",
    "/out",
    "/out/key",
    "/out?list-type=2",
    "/jobs",
    "/%00",
    "/%ff",
    "/" + "b" * 300,
]


@pytest.mark.parametrize("path", PATHS, ids=[path[:20] for path in PATHS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_s3_over_http_refuses_without_an_error_of_its_own(shown: Shown, path: str, method: str) -> None:
    status, body = shown.get(path, method)
    may_read = path.endswith("closed") and os.access(shown.root / "odd" / "closed", os.R_OK)
    assert status in ((200, 403) if may_read else (400, 403, 404)), (status, body)
    assert b"secret" not in body.replace(b"/secret", b"")


@pytest.mark.parametrize("value", ["%C2%B2", "9" * 5000, "-1", "1.5", "", "x", "%00"])
def test_max_keys_that_are_no_number_are_refused(shown: Shown, value: str) -> None:
    status, body = shown.get(f"/odd?list-type=2&max-keys={value}")
    assert status == 400 or (value == "" and status == 200), body
    if status == 400:
        ElementTree.fromstring(body)


@pytest.mark.parametrize(
    "query",
    [
        "prefix=" + "x" * 3000,
        "prefix=" + "a/" * 3000,
        "prefix=%00",
        "prefix=%ff",
        "prefix=%01&delimiter=%02",
        "start-after=%ff",
        "prefix=..%2f..%2f",
    ],
)
def test_prefixes_of_any_kind(shown: Shown, query: str) -> None:
    for encoding in ("", "&encoding-type=url"):
        status, body = shown.get(f"/odd?list-type=2&{query}{encoding}")
        assert status in (200, 400), body


@pytest.mark.parametrize("token", ["x", "%ff", "=", "9" * 5000, "%00", "L3g_"])
def test_continuation_tokens_that_nobody_gave_out(shown: Shown, token: str) -> None:
    status, body = shown.get(f"/odd?list-type=2&continuation-token={token}")
    assert status in (200, 400), body
    ElementTree.fromstring(body)


KEYS = ["control\x01", "deep/file", "line\nfeed", "plus+ %41&<"]
CLOSED = ["closed"] if os.geteuid() == 0 else []


def test_a_bucket_with_odd_names_is_listed(shown: Shown) -> None:
    # moto cannot write keys that XML cannot carry.
    expected = sorted([*(KEYS[1:] if shown.is_moto else KEYS), *CLOSED])
    for size in (1, 1000):
        pages = shown.s3.get_paginator("list_objects_v2").paginate(
            Bucket="odd", PaginationConfig={"PageSize": size}
        )
        assert [one["Key"] for page in pages for one in page["Contents"]] == expected
    for key in KEYS:
        if shown.is_moto and "\n" in key:
            continue  # moto's routes know none
        assert shown.s3.get_object(Bucket="odd", Key=key)["Body"].read()
    # Clients that do not ask for it get XML that can be read.
    status, body = shown.get("/odd?list-type=2")
    assert status == 200
    assert len(ElementTree.fromstring(body).findall("{*}Contents")) == len(expected)


def test_a_link_cannot_be_written_through(shown: Shown, tmp_path: Path) -> None:
    bucket = unique("write")
    (shown.root / bucket).mkdir()
    (shown.root / bucket / "way").symlink_to(tmp_path)
    # A connection whose request was refused unread is of no further use.
    writer = shown.client()
    for key, place in (("way/new", bucket), ("x", ".incoming"), ("x", "out")):
        with pytest.raises(ClientError) as refusal:
            writer.put_object(Bucket=place, Key=key, Body=b"x")
        assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403, 404, 405)
    writer.close()
    assert list(tmp_path.iterdir()) == []
    assert not (shown.root / "out" / "x").exists()


def test_an_object_that_becomes_a_link_is_none_any_more(shown: Shown) -> None:
    bucket = unique("became")
    (shown.root / bucket).mkdir()
    key = shown.root / bucket / "key"
    key.write_text("mine")
    assert shown.s3.get_object(Bucket=bucket, Key="key")["Body"].read() == b"mine"
    key.unlink()
    key.symlink_to("/etc/passwd")
    with pytest.raises(ClientError):
        shown.s3.get_object(Bucket=bucket, Key="key")


# --- calls and options -----------------------------------------------------------------------------


@pytest.mark.local
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"OutputDataConfig": {"S3OutputPath": "s3://.x"}}, "OutputDataConfig.S3OutputPath"),
        ({"CheckpointConfig": {"S3Uri": "s3://.incoming/x"}}, "CheckpointConfig.S3Uri"),
        ({"InputDataConfig": channel("s3://.x/")}, "InputDataConfig[0].DataSource.S3DataSource.S3Uri"),
        (
            {"StaticHyperParameters": dict(zip(NAMES, ("x.sh", "/etc"), strict=True))},
            "StaticHyperParameters.sagemaker_submit_directory",
        ),
    ],
)
def test_a_request_that_leads_elsewhere_is_refused_at_once(
    client: Any, change: dict[str, Any], field: str
) -> None:
    request = create_request()
    request["TrainingJobDefinition"].update(change)
    with pytest.raises(ClientError) as refusal:
        client.create_hyper_parameter_tuning_job(**request)
    error = refusal.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert f"TrainingJobDefinition.{field}: " in error["Message"]


@pytest.mark.local
def test_roots_are_the_working_directory_unless_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.sh").write_text("echo objective=0.5\n")
    monkeypatch.chdir(tmp_path / "here")

    def outcome(server: RunningServer, folder: str) -> str:
        static = dict(zip(NAMES, ("train.sh", str(tmp_path / folder)), strict=True))
        with client_of(server) as client:
            try:
                ended = run_to_end(client, create_request(image="any:1", most=1, static=static))
            except ClientError as error:
                return str(error.response["Error"]["Code"])
            status: str = ended["HyperParameterTuningJobStatus"]
            return status

    # In the working directory, as the documents show.
    with running(Path("amt")) as server:
        assert outcome(server, "here") == "Completed"
        assert outcome(server, "there") == "ValidationException"
    with running(tmp_path / "state", roots=[tmp_path / "there"]) as server:
        assert outcome(server, "there") == "Completed"
        assert outcome(server, "here") == "ValidationException"


@pytest.mark.local
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_ends_leaves_no_copies(tmp_path: Path, end: str) -> None:
    def copies() -> list[Path]:
        return list((tmp_path / "training-jobs").rglob("rows.csv"))

    (tmp_path / "s3" / "data").mkdir(parents=True)
    (tmp_path / "s3" / "data" / "rows.csv").write_text("1")
    request = create_request(sequence="hang", most=1, InputDataConfig=channel("s3://data"))
    with running(tmp_path, images=IMAGES) as server, client_of(server) as client:
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(lambda: training_processes(request["HyperParameterTuningJobName"]), "the training job")
        assert len(copies()) == 1
        server.kill() if end == "kill" else server.stop()
    if end == "kill":
        with running(tmp_path, images=IMAGES):
            pass
    assert copies() == []


def test_the_root_of_the_machine_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert command_line._roots(()) == ()


@pytest.mark.parametrize(
    ("options", "field"),
    [(["--root", "{folder}/none"], "root"), (["--s3-root", "{folder}/state"], "s3-root")],
)
def test_folders_that_cannot_be_used(
    tmp_path: Path, options: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(folder=tmp_path) for option in options]
    assert main(["local", "serve", "--state-dir", str(tmp_path / "state"), *given]) == 2
    assert f"{field}: " in capsys.readouterr().err


def test_roots_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "amt.toml").write_text('root = ["code", "/data"]\nlink-channels = true\n')
    options = config.settle({}, tmp_path / "amt.toml", Path("/elsewhere")).options
    assert options["root"] == [tmp_path / "code", Path("/data")]
    assert options["link_channels"] is True
    (tmp_path / "amt.toml").write_text('root = "code"\n')
    with pytest.raises(AmtFieldError, match="a list of texts"):
        config.settle({}, tmp_path / "amt.toml", Path("/elsewhere"))


def test_errors_can_be_written_whatever_their_names_are() -> None:
    assert str(StorageError("x\udcffy")) == "x\\udcffy"
