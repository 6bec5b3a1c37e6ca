"""The container contract: folders, arguments, variables, script mode, channels, and what became of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import images, pipes, s3, trainer
from airflow_amt.local.metrics import compile_definitions
from airflow_amt.local.processes import MARKER
from airflow_amt.local.s3 import Places
from airflow_amt.local.storage import FolderStorage
from airflow_amt.local.trainer import CannotStartError, TrainingSpec

DEFINITIONS = compile_definitions([{"Name": "objective", "Regex": r"objective=(\S+)"}], "")


def make(
    tmp_path: Path,
    hyperparameters: Mapping[str, str] | None = None,
    *,
    command: list[str] | None = None,
    **definition: Any,
) -> TrainingSpec:
    places = Places(s3_root=tmp_path / "s3", roots=(tmp_path,))
    return TrainingSpec(
        name="job-001-abc",
        arn="arn:aws:sagemaker:us-east-1:000000000000:training-job/job-001-abc",
        region="us-east-1",
        definition={"OutputDataConfig": {"S3OutputPath": "s3://models/out/"}, **definition},
        hyperparameters={"_tuning_objective_metric": "objective", **(hyperparameters or {})},
        folder=tmp_path / "training",
        storage=FolderStorage(places),
        places=places,
        command=command,
        marker="state/us-east-1/job-001-abc",
        environment={"PATH": os.environ["PATH"]},
    )


def channel(name: str, uri: str, **more: Any) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}},
        **more,
    }


def script(tmp_path: Path, text: str = "print('hello')\n", name: str = "train.py") -> Path:
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


# --- arguments and variables -----------------------------------------------------------------------


def test_arguments_and_variables_of_json_hyperparameters(tmp_path: Path) -> None:
    """As SDK 2 writes them: each value is JSON."""
    spec = make(
        tmp_path,
        {
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": json.dumps(str(script(tmp_path))),
            "sagemaker_container_log_level": "20",
            "optimizer": '"adam"',
            "learning-rate": "0.25",
            "layers": "[1, 2]",
            "verbose": "true",
            "x": "7",
        },
    )

    command, environment = trainer.prepare(spec)

    assert command == [
        sys.executable,
        "train.py",
        "--layers",
        "[1, 2]",
        "--learning-rate",
        "0.25",
        "--optimizer",
        "adam",
        "--verbose",
        "True",
        "-x",
        "7",
    ]
    assert json.loads(environment["SM_HPS"]) == {
        "layers": [1, 2],
        "learning-rate": 0.25,
        "optimizer": "adam",
        "verbose": True,
        "x": 7,
    }
    assert environment["SM_HP_OPTIMIZER"] == "adam"
    assert environment["SM_HP_LEARNING-RATE"] == environment["SM_HP_LEARNING_RATE"] == "0.25"
    assert environment["SM_HP_LAYERS"] == "[1, 2]"
    assert json.loads(environment["SM_USER_ARGS"]) == command[2:]
    assert environment["SM_USER_ENTRY_POINT"] == "train.py"
    assert not any("SAGEMAKER_PROGRAM" in name for name in environment)


def test_arguments_of_plain_hyperparameters(tmp_path: Path) -> None:
    """As SDK 3 writes them: values as they are."""
    spec = make(
        tmp_path,
        {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": str(script(tmp_path)),
            "optimizer": "adam",
            "note": "a b 'c'",
            "rate": "1e-05",
        },
    )

    command, environment = trainer.prepare(spec)

    assert command[2:] == ["--note", "a b 'c'", "--optimizer", "adam", "--rate", "1e-05"]
    assert environment["SM_HP_NOTE"] == "a b 'c'"


def test_folders_files_and_the_rest_of_the_variables(tmp_path: Path) -> None:
    source = tmp_path / "s3" / "data" / "train"
    source.mkdir(parents=True)
    (source / "a.csv").write_text("1")
    spec = make(
        tmp_path,
        {"depth": "3"},
        command=["run"],
        InputDataConfig=[channel("train", "s3://data/train", ContentType="text/csv")],
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1},
        Environment={"OWN": "value", "SM_LOG_LEVEL": "10"},
    )

    command, environment = trainer.prepare(spec)

    folder = spec.folder
    assert command == ["run", "--depth", "3"]
    assert environment["OWN"] == "value"
    assert environment["SM_LOG_LEVEL"] == "10"
    assert environment["TRAINING_JOB_NAME"] == "job-001-abc"
    assert environment["TRAINING_JOB_ARN"].endswith("training-job/job-001-abc")
    assert environment["AWS_REGION"] == "us-east-1"
    assert environment["SM_CURRENT_INSTANCE_TYPE"] == "ml.m5.large"
    assert environment["SM_CURRENT_HOST"] in json.loads(environment["SM_HOSTS"])
    assert int(environment["SM_NUM_CPUS"]) >= 1
    assert environment["SM_NUM_GPUS"] == "0"
    assert environment[MARKER] == spec.marker
    for variable, path in (
        ("SM_MODEL_DIR", "model"),
        ("SM_OUTPUT_DIR", "output"),
        ("SM_OUTPUT_DATA_DIR", "output/data"),
        ("SM_INPUT_DIR", "input"),
        ("SM_INPUT_CONFIG_DIR", "input/config"),
        ("SM_CHANNEL_TRAIN", "input/data/train"),
    ):
        assert environment[variable] == str(folder / path)
        assert (folder / path).is_dir()
    assert json.loads(environment["SM_CHANNELS"]) == ["train"]
    assert (folder / "input/data/train/a.csv").read_text() == "1"
    config = folder / "input" / "config"
    assert json.loads((config / "hyperparameters.json").read_text()) == {
        "_tuning_objective_metric": "objective",
        "depth": "3",
    }
    assert json.loads((config / "inputdataconfig.json").read_text())["train"] == {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
        "ContentType": "text/csv",
    }
    assert json.loads((config / "resourceconfig.json").read_text())["hosts"] == ["algo-1"]
    assert (folder / "checkpoints").is_dir()


# --- script mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file address", "archive", "s3"])
def test_where_a_script_may_be(tmp_path: Path, kind: str) -> None:
    folder = script(tmp_path, "print('trained')\n")
    where = str(folder)
    if kind == "file address":
        where = folder.as_uri()
    elif kind in ("archive", "s3"):
        archive = tmp_path / "s3" / "bucket" / "code" / "sourcedir.tar.gz"
        archive.parent.mkdir(parents=True)
        with tarfile.open(archive, "w:gz") as opened:
            opened.add(folder / "train.py", arcname="train.py")
        where = str(archive) if kind == "archive" else "s3://bucket/code/sourcedir.tar.gz"
    spec = make(tmp_path, {"sagemaker_program": "train.py", "sagemaker_submit_directory": where})

    command, _ = trainer.prepare(spec)

    assert command == [sys.executable, "train.py"]
    assert (spec.code / "train.py").read_text() == "print('trained')\n"


def test_a_shell_script(tmp_path: Path) -> None:
    folder = script(tmp_path, "echo hello\n", "train.sh")
    spec = make(tmp_path, {"sagemaker_program": "train.sh", "sagemaker_submit_directory": str(folder)})

    assert trainer.prepare(spec)[0] == ["/bin/sh", "train.sh"]


def test_requirements_are_not_installed_and_the_log_says_so(tmp_path: Path) -> None:
    folder = script(tmp_path)
    (folder / "requirements.txt").write_text("something\n")
    spec = make(tmp_path, {"sagemaker_program": "train.py", "sagemaker_submit_directory": str(folder)})
    trainer.prepare(spec)

    assert "requirements.txt is not installed" in spec.log.read_text()


@pytest.mark.parametrize(
    ("program", "where", "named"),
    [
        ("other.py", "{source}", "no file 'other.py'"),
        ("../train.py", "{source}/inner", "no file '../train.py'"),
        ("train.txt", "{source}", "neither a .py nor a .sh"),
        ("train.py", "{source}/missing", "does not exist"),
        ("train.py", "s3://bucket/missing.tar.gz", "s3://bucket/missing.tar.gz does not exist"),
        ("train.py", "s3://bucket/../../etc", "cannot be mapped"),
        ("train.py", "ftp://host/code", "not an s3:// address"),
        ("train.py", "{source}/train.txt", "cannot unpack"),
    ],
)
def test_scripts_that_cannot_be_run(tmp_path: Path, program: str, where: str, named: str) -> None:
    folder = script(tmp_path)
    script(tmp_path, "no archive", "train.txt")
    (folder / "inner").mkdir()
    spec = make(
        tmp_path,
        {
            "sagemaker_program": program,
            "sagemaker_submit_directory": where.format(source=folder),
        },
    )
    with pytest.raises(CannotStartError, match=r"^ClientError: sagemaker_") as refusal:
        trainer.prepare(spec)
    assert named in str(refusal.value)


# --- channels --------------------------------------------------------------------------------------


def test_a_prefix_matches_every_key_that_begins_so(tmp_path: Path) -> None:
    folder = tmp_path / "s3" / "data" / "x"
    folder.mkdir(parents=True)
    for name in ("part-1", "part-2", "other"):
        (folder / name).write_text(name)
    spec = make(
        tmp_path,
        command=["run"],
        InputDataConfig=[channel("some", "s3://data/x/part-"), channel("one", "s3://data/x/other")],
    )
    trainer.prepare(spec)

    data = spec.folder / "input" / "data"
    assert sorted(path.name for path in (data / "some").iterdir()) == ["part-1", "part-2"]
    assert (data / "one" / "other").read_text() == "other"


@pytest.mark.parametrize(
    "uri", ["s3://data/none", "s3://data/none/", "s3://dat", "s3://data/../../etc", "https://host/data"]
)
def test_channels_without_data(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "s3" / "data" / "x"
    folder.mkdir(parents=True)
    (folder / "file").write_text("1")
    spec = make(tmp_path, command=["run"], InputDataConfig=[channel("train", uri)])

    with pytest.raises(CannotStartError, match="'train'") as refusal:
        trainer.prepare(spec)
    assert uri in str(refusal.value)


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://../x", "s3://b/a/../../..", "gs://b/k", "/a"])
def test_addresses_stay_below_the_root(tmp_path: Path, uri: str) -> None:
    with pytest.raises(s3.UnmappableAddressError):
        Places(s3_root=tmp_path).path(uri)


# --- the end ---------------------------------------------------------------------------------------


def ended(tmp_path: Path, log: str = "", **definition: Any) -> TrainingSpec:
    spec = make(tmp_path, command=["run"], **definition)
    trainer.prepare(spec)
    spec.log.write_text(log)
    return spec


def conclude(spec: TrainingSpec, exit_status: int = 0, *, stopped: bool = False) -> trainer.Conclusion:
    return trainer.conclude(spec, DEFINITIONS, exit_status, stopped=stopped)


def test_a_completed_training_job(tmp_path: Path) -> None:
    spec = ended(tmp_path, "objective=1\nobjective=0.5\n")
    (spec.folder / "model" / "weights").write_text("w")

    assert conclude(spec) == trainer.Conclusion(status="Completed", metrics={"objective": 0.5})
    output = tmp_path / "s3" / "models" / "out" / "job-001-abc" / "output"
    with tarfile.open(output / "model.tar.gz") as archive:
        assert archive.getnames() == ["weights"]
    assert not (output / "output.tar.gz").exists()
    assert trainer.model_uri(spec.definition, spec.name) == "s3://models/out/job-001-abc/output/model.tar.gz"


def test_output_without_compression(tmp_path: Path) -> None:
    output_config = {"S3OutputPath": "s3://models", "CompressionType": "NONE"}
    spec = ended(tmp_path, OutputDataConfig=output_config)
    (spec.folder / "model" / "weights").write_text("w")
    (spec.folder / "output" / "data" / "notes").write_text("n")

    assert conclude(spec).status == "Completed"
    output = tmp_path / "s3" / "models" / "job-001-abc" / "output"
    assert (output / "model" / "weights").read_text() == "w"
    assert (output / "output" / "notes").read_text() == "n"
    assert trainer.model_uri(spec.definition, spec.name) == "s3://models/job-001-abc/output/model/"


def test_a_failed_training_job_says_the_end_of_its_log(tmp_path: Path) -> None:
    spec = ended(tmp_path, "first\n\nValueError: no\n")

    assert conclude(spec, 1).failure_reason == "AlgorithmError: first; ValueError: no, exit code: 1"
    assert conclude(spec, -11).failure_reason == (
        "AlgorithmError: first; ValueError: no, exit code: 139 (ended by SIGSEGV)"
    )


def test_its_own_words_come_first(tmp_path: Path) -> None:
    spec = ended(tmp_path, "the log\n")
    (spec.folder / "output" / "failure").write_text("the data are bad")

    assert conclude(spec, 2).failure_reason == "AlgorithmError: the data are bad, exit code: 2"
    # A failure file alone is a failure too.
    assert conclude(spec, 0).status == "Failed"


def test_a_reason_is_never_longer_than_the_api_allows(tmp_path: Path) -> None:
    reason = conclude(ended(tmp_path, "x" * 10_000), 1).failure_reason

    assert reason is not None
    assert len(reason) == trainer.LONGEST_REASON
    assert reason.endswith("x, exit code: 1")


def test_a_silent_failure(tmp_path: Path) -> None:
    assert conclude(ended(tmp_path), 1).failure_reason == (
        "AlgorithmError: the training process wrote nothing to its log, exit code: 1"
    )


def test_a_stopped_training_job_is_stopped_however_it_exited(tmp_path: Path) -> None:
    spec = ended(tmp_path, "objective=0.5\n")

    for status in (0, 1, -9, -15):
        assert conclude(spec, status, stopped=True) == trainer.Conclusion(
            status="Stopped", metrics={"objective": 0.5}
        )


def test_a_model_that_cannot_be_stored(tmp_path: Path) -> None:
    spec = ended(tmp_path)
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "models").write_text("a file where a bucket should be")

    conclusion = conclude(spec)
    assert conclusion.status == "Failed"
    assert str(conclusion.failure_reason).startswith("ClientError: cannot store the model at s3://models/out")


# --- what a trainer may leave instead ---------------------------------------------------------------


def make_socket(path: Path) -> None:
    """Leave a socket that nobody listens to; its path may be longer than the address of one."""
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


INSTEAD_OF_A_FILE: list[Callable[[Path], None]] = [
    os.mkfifo,
    Path.mkdir,
    make_socket,
    make_link_to_device,
    make_link_to_itself,
]


@pytest.mark.parametrize("make_instead", INSTEAD_OF_A_FILE)
@pytest.mark.parametrize("status", [0, 1])
def test_a_failure_that_is_no_file_is_no_message(
    tmp_path: Path, make_instead: Callable[[Path], None], status: int
) -> None:
    spec = ended(tmp_path, "objective=0.5\n")
    make_instead(spec.folder / "output" / "failure")

    assert trainer.failure_message(spec) == ""
    conclusion = conclude(spec, status)
    assert conclusion.metrics == {"objective": 0.5}
    assert conclusion.status == ("Failed" if status else "Completed")
    assert conclusion.failure_reason == ("AlgorithmError: objective=0.5, exit code: 1" if status else None)


@pytest.mark.parametrize("make_instead", INSTEAD_OF_A_FILE)
def test_a_log_that_is_no_file_is_an_empty_one(tmp_path: Path, make_instead: Callable[[Path], None]) -> None:
    spec = ended(tmp_path)
    spec.log.unlink()
    make_instead(spec.log)

    conclusion = conclude(spec, 1)
    assert conclusion.metrics == {}
    assert str(conclusion.failure_reason).startswith(
        "AlgorithmError: the training process wrote nothing to its log"
    )


@pytest.mark.parametrize("make_instead", INSTEAD_OF_A_FILE)
def test_a_note_about_pipes_that_is_no_file_is_none(
    tmp_path: Path, make_instead: Callable[[Path], None]
) -> None:
    spec = ended(tmp_path, "bad\n")
    make_instead(pipes.failure_file(spec.folder))

    assert pipes.failure(spec.folder) is None
    assert conclude(spec, 1).failure_reason == "AlgorithmError: bad, exit code: 1"


def test_a_note_about_pipes_need_not_be_text(tmp_path: Path) -> None:
    spec = ended(tmp_path)
    pipes.failure_file(spec.folder).write_bytes(b"no \xff data")

    assert conclude(spec, 1).failure_reason == "ClientError: no \ufffd data"


@pytest.mark.parametrize("status", [0, 1])
def test_a_file_in_place_of_the_output_folder(tmp_path: Path, status: int) -> None:
    spec = ended(tmp_path, "bad\n")
    shutil.rmtree(spec.folder / "output")
    (spec.folder / "output").write_text("not a folder")

    assert trainer.failure_message(spec) == ""
    reason = str(conclude(spec, status).failure_reason)
    assert reason.startswith(
        "AlgorithmError: bad" if status else "ClientError: cannot store the model at s3:"
    )


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_named_pipes_and_sockets_are_not_stored(tmp_path: Path, compression: str) -> None:
    output_config = {"S3OutputPath": "s3://models", "CompressionType": compression}
    spec = ended(
        tmp_path, OutputDataConfig=output_config, CheckpointConfig={"S3Uri": "s3://models/checkpoints"}
    )
    for name in ("model", "output/data", "checkpoints"):
        inner = spec.folder / name / "inner"
        inner.mkdir()
        (inner / "weights").write_text("w")
        os.mkfifo(inner / "pipe")
        make_socket(inner / "socket")
    # The archive is written to a place that the trainer knows.
    os.mkfifo(spec.folder / "model.tar.gz")

    assert conclude(spec) == trainer.Conclusion(status="Completed", metrics={})
    output = tmp_path / "s3" / "models" / "job-001-abc" / "output"
    if compression == "GZIP":
        for name in ("model", "output"):
            with tarfile.open(output / f"{name}.tar.gz") as archive:
                assert sorted(archive.getnames()) == ["inner", "inner/weights"]
    else:
        for name in ("model", "output"):
            assert [path.name for path in (output / name / "inner").iterdir()] == ["weights"]
    checkpoints = tmp_path / "s3" / "models" / "checkpoints" / "job-001-abc" / "inner"
    assert [path.name for path in checkpoints.iterdir()] == ["weights"]


def test_named_pipes_behind_a_link_are_neither_packed_nor_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("w")
    os.mkfifo(elsewhere / "pipe")
    spec = ended(tmp_path)
    (spec.folder / "model").rmdir()
    (spec.folder / "model").symlink_to(elsewhere)

    assert conclude(spec).status == "Completed"
    with tarfile.open(tmp_path / "s3/models/out/job-001-abc/output/model.tar.gz") as archive:
        assert archive.getnames() == ["weights"]
    assert (elsewhere / "pipe").is_fifo()


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
@pytest.mark.parametrize("removed", ["model", "output", "output/data", "checkpoints"])
def test_a_folder_that_the_trainer_removed_is_an_empty_one(
    tmp_path: Path, compression: str, removed: str
) -> None:
    output_config = {"S3OutputPath": "s3://models", "CompressionType": compression}
    spec = ended(
        tmp_path, OutputDataConfig=output_config, CheckpointConfig={"S3Uri": "s3://models/checkpoints"}
    )
    shutil.rmtree(spec.folder / removed)

    assert conclude(spec) == trainer.Conclusion(status="Completed", metrics={})
    output = tmp_path / "s3" / "models" / "job-001-abc" / "output"
    if compression == "GZIP":
        assert [path.name for path in output.iterdir()] == ["model.tar.gz"]
        with tarfile.open(output / "model.tar.gz") as archive:
            assert archive.getnames() == []
    else:
        assert [path.name for path in output.iterdir()] == ["model"]
        assert list((output / "model").iterdir()) == []


def test_a_file_in_place_of_the_model_folder_fails(tmp_path: Path) -> None:
    spec = ended(tmp_path)
    (spec.folder / "model").rmdir()
    (spec.folder / "model").write_text("not a folder")

    reason = str(conclude(spec).failure_reason)
    assert reason.startswith("ClientError: cannot store the model at s3://models/out")
    assert os.strerror(errno.ENOTDIR) in reason


def test_another_attempt_is_not_kept_waiting_by_named_pipes(tmp_path: Path) -> None:
    spec = ended(tmp_path)
    config = spec.folder / "input" / "config" / "hyperparameters.json"
    for path in (spec.log, config):
        path.unlink()
        os.mkfifo(path)

    trainer.prepare(spec)

    assert config.is_file()
    assert not spec.log.exists()


# --- images ----------------------------------------------------------------------------------------


def test_image_mappings(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    commands = images.parse_mappings(
        ["repo/image:1=python3 train.py --fast 'a b'", "other=sh -c 'echo x=1'"], tmp_path
    )

    program, *arguments = commands["repo/image:1"]
    assert Path(program).is_absolute()
    assert arguments == [str(tmp_path / "train.py"), "--fast", "a b"]
    assert commands["other"][1:] == ["-c", "echo x=1"]


@pytest.mark.parametrize(
    "mapping",
    ["image", "=python3 x.py", "image=", "image='", "image=no-such-program-here", "image=./missing"],
)
def test_mappings_that_are_none(tmp_path: Path, mapping: str) -> None:
    with pytest.raises(AmtFieldError) as refusal:
        images.parse_mappings([mapping], tmp_path)
    assert refusal.value.value == mapping


@pytest.mark.parametrize(
    ("command", "word"),
    [("python3 train.py", "train.py"), ("sh -e run/train.sh --fast", "run/train.sh")],
)
def test_a_script_that_does_not_exist_is_refused(tmp_path: Path, command: str, word: str) -> None:
    with pytest.raises(AmtFieldError) as refusal:
        images.parse_mappings([f"image={command}"], tmp_path)

    assert str(refusal.value.limit) == f"scripts that exist; {word!r} is not in {tmp_path}"


def test_options_and_shell_commands_are_no_scripts(tmp_path: Path) -> None:
    commands = images.parse_mappings(
        ["a=sh -c 'cd /opt; exec sh train.sh'", "b=python3 --check-hash-based-pycs=train.py -m train"],
        tmp_path,
    )

    assert commands["a"][1:] == ["-c", "cd /opt; exec sh train.sh"]
    assert commands["b"][1:] == ["--check-hash-based-pycs=train.py", "-m", "train"]


def test_an_image_is_mapped_once(tmp_path: Path) -> None:
    with pytest.raises(AmtFieldError, match="mapped before"):
        images.parse_mappings(["a=true", "a=false"], tmp_path)


def test_bundled_images_have_their_files() -> None:
    for command in images.bundled_commands().values():
        assert Path(command[-1]).is_file()
