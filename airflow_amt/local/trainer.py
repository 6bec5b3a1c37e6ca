"""One training job on this machine: its folder, its command and environment, and what became of it.

The folder follows the contract of SageMaker's training containers (``/opt/ml`` there)::

    <state-dir>/training-jobs/<region>/<name>/
        code/                            working directory; the script in script mode
        input/config/hyperparameters.json, inputdataconfig.json, resourceconfig.json
        input/data/<channel>/            the files of the channel: copies, gone when it is over
        input/data/<channel>_<epoch>     its named pipes in Pipe mode
        model/                           packed to model.tar.gz
        output/data/                     packed to output.tar.gz if anything is in it
        output/failure                   the trainer's own words about a failure
        home/                            HOME
        checkpoints/                     filled from and stored to CheckpointConfig.S3Uri
        log                              standard output and error, as CloudWatch would have it

Arguments and ``SM_*`` variables are those of the SageMaker training toolkit's script mode. Commands that
stand for images get the same ones.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
import shutil
import signal
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import channels, files, pipes
from airflow_amt.local.metrics import Metric, SlowMetricError, read_final_metrics
from airflow_amt.local.processes import MARKER
from airflow_amt.local.s3 import Places, RefusedPlaceError, StorageError, UnmappableAddressError
from airflow_amt.local.state_folder import DATABASE
from airflow_amt.local.storage import FolderStorage, Storage

logger = logging.getLogger(__name__)

TUNING_OBJECTIVE = "_tuning_objective_metric"
PROGRAM = "sagemaker_program"
SUBMIT_DIRECTORY = "sagemaker_submit_directory"

#: Longest FailureReason that the API carries.
LONGEST_REASON = 1024

#: Most that an archive with code may hold: files, and bytes when unpacked.
MOST_MEMBERS = 250_000
MOST_UNPACKED = 10 * 1024**3
#: Most bytes of the header of one file in it.
_MOST_HEADER = 1024 * 1024
_HEADERS = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X"}
)
#: What tarfile says of what is no archive, or a broken one.
_NO_ARCHIVE = (
    *(tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, KeyError, OverflowError, RecursionError),
)
#: Folders of a project that no training script needs.
_NO_CODE = frozenset({".git", "__pycache__"})

_HOST = "algo-1"


class CannotStartError(Exception):
    """A training job cannot be started; the text becomes its ``FailureReason``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """What one training job is to do.

    :param name: its name.
    :param arn: its ARN.
    :param region: AWS region.
    :param definition: the API's ``HyperParameterTrainingJobDefinition``, or a ``CreateTrainingJob`` request,
        which has the same members where this module looks.
    :param hyperparameters: all of them: static, tuned, and, of a tuning job, the name of the objective
        metric; strings.
    :param folder: where it lives.
    :param storage: where ``s3://`` is.
    :param places: what files of this machine it may reach.
    :param command: the command that stands for the image; ``None`` in script mode.
    :param marker: value of the environment variable by which its processes are found again.
    :param environment: variables that it has in common with all others
        (:mod:`airflow_amt.local.training_environment`).
    """

    name: str
    arn: str
    region: str
    definition: Mapping[str, Any]
    hyperparameters: Mapping[str, str]
    folder: Path
    storage: Storage
    places: Places
    command: Sequence[str] | None
    marker: str
    environment: Mapping[str, str]

    @property
    def log(self) -> Path:
        """The file that gets standard output and error."""
        return self.folder / "log"

    @property
    def code(self) -> Path:
        """The working directory of the training process."""
        return self.folder / "code"

    @property
    def output_uri(self) -> str:
        """Where the training job's output goes."""
        return output_uri(self.definition, self.name)

    @property
    def checkpoint_uri(self) -> str | None:
        """Where its checkpoints are kept; a tuning job's training jobs have a folder each there."""
        config = self.definition.get("CheckpointConfig")
        if not config:
            return None
        uri: str = config["S3Uri"].rstrip("/")
        return f"{uri}/{self.name}" if TUNING_OBJECTIVE in self.hyperparameters else uri


def output_uri(definition: Mapping[str, Any], name: str) -> str:
    """Return the address of a training job's output: ``<S3OutputPath>/<name>/output``."""
    return f"{definition['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"


def model_uri(definition: Mapping[str, Any], name: str) -> str:
    """Return the address of a training job's model: an archive, or a folder if compression is ``NONE``."""
    compressed = definition["OutputDataConfig"].get("CompressionType") != "NONE"
    return output_uri(definition, name) + ("/model.tar.gz" if compressed else "/model/")


def resource_config_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a training job is run on, as a ``ResourceConfig``; empty if the definition does not say.

    Of a ``HyperParameterTuningResourceConfig`` with several instances to choose from it is the first one.
    """
    if definition.get("ResourceConfig"):
        return dict(definition["ResourceConfig"])
    tuning = definition.get("HyperParameterTuningResourceConfig") or {}
    first = (tuning.get("InstanceConfigs") or [tuning])[0]
    members = ("InstanceType", "InstanceCount", "VolumeSizeInGB")
    found = {name: first[name] for name in members if first.get(name) is not None}
    if found and tuning.get("VolumeKmsKeyId"):
        found["VolumeKmsKeyId"] = tuning["VolumeKmsKeyId"]
    return found


def decoded(value: str) -> Any:
    """Return a hyperparameter as the training toolkit would: JSON where it is JSON, else the text itself.

    The SageMaker SDK 2 writes script-mode hyperparameters as JSON (a string in quotes), SDK 3 does not.
    """
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def place_problems(
    places: Places, storage: Storage, definition: Mapping[str, Any], prefix: str
) -> list[AmtFieldError]:
    """List the addresses of a training job definition that lead to where callers may not reach.

    :param prefix: what stands before the definition's members in the request.
    """
    addresses = {
        "OutputDataConfig.S3OutputPath": definition["OutputDataConfig"]["S3OutputPath"],
        "CheckpointConfig.S3Uri": (definition.get("CheckpointConfig") or {}).get("S3Uri"),
    }
    for position, channel in enumerate(definition.get("InputDataConfig") or ()):
        source = channel["DataSource"].get("S3DataSource") or {}
        addresses[f"InputDataConfig[{position}].DataSource.S3DataSource.S3Uri"] = source.get("S3Uri")
    static = "HyperParameters" if "HyperParameters" in definition else "StaticHyperParameters"
    directory = (definition.get(static) or {}).get(SUBMIT_DIRECTORY)
    if directory is not None:
        addresses[f"{static}.{SUBMIT_DIRECTORY}"] = str(decoded(directory))
    found = []
    for field, uri in addresses.items():
        if uri is None or (uri.startswith("s3://") and not isinstance(storage, FolderStorage)):
            continue
        try:
            places.place(uri, plain=field.endswith(SUBMIT_DIRECTORY))
        except RefusedPlaceError as error:
            found.append(AmtFieldError(f"{prefix}{field}", uri, error.limit, error.fix))
        except UnmappableAddressError:
            continue  # The training job fails with these words.
    return found


def is_script_mode(static: Mapping[str, str]) -> bool:
    """Whether static hyperparameters say what script to run."""
    return PROGRAM in static and SUBMIT_DIRECTORY in static


def script_mode_program(static: Mapping[str, str]) -> str:
    """Return the script to run, relative to the submit directory."""
    return str(decoded(static[PROGRAM]))


def prepare(spec: TrainingSpec) -> tuple[list[str], dict[str, str]]:
    """Lay out the folder of a training job; return its command line and environment.

    :raises CannotStartError: input data or the script are missing or unusable.
    :raises OSError: the folder cannot be written.
    """
    # What an earlier attempt left, perhaps where something is to be written: opening it would block.
    files.remove_special(spec.folder)
    for name in ("input", "input/data"):
        # Links that the trainer has made; what they lead to is not the training job's.
        if (spec.folder / name).is_symlink():
            (spec.folder / name).unlink()
    files.remove(spec.folder / "input" / "data")
    for folder in ("input/config", "input/data", "model", "output/data", "checkpoints", "code", "home"):
        (spec.folder / folder).mkdir(parents=True, exist_ok=True)
    provided = channels.channels_of(spec.definition)
    for channel in provided:
        _provide_channel(spec, channel)
    _provide_checkpoints(spec)
    program = _provide_script(spec) if spec.command is None else list(spec.command)
    _note_entry_point(spec)
    _note_instances(spec)
    user = _user_hyperparameters(spec.hyperparameters)
    arguments = _arguments(user)
    input_config = _input_config(spec.definition)
    resources = {"current_host": _HOST, "hosts": [_HOST], "network_interface_name": "lo"}
    config = spec.folder / "input" / "config"
    _write_json(config / "hyperparameters.json", dict(spec.hyperparameters))
    _write_json(config / "inputdataconfig.json", input_config)
    _write_json(config / "resourceconfig.json", resources)
    environment = {"HOME": str(spec.folder / "home"), **spec.environment}
    environment.update(_variables(spec, user, arguments, input_config, resources))
    environment.update(spec.definition.get("Environment") or {})
    environment[MARKER] = spec.marker
    command = program + arguments
    piped = [channel for channel in provided if channel.mode == "Pipe"]
    if piped:
        command = pipes.wrapped(command, piped, spec.storage, spec.folder)
    return command, environment


def _provide_channel(spec: TrainingSpec, channel: channels.Channel) -> None:
    try:
        channels.provide(spec.storage, channel, spec.folder / "input" / "data")
    except (StorageError, OSError) as error:
        raise CannotStartError(_download_failed(f"channel {channel.name!r}", error)) from None


def _download_failed(what: str, error: Exception) -> str:
    return f"ClientError: Data download failed for {what}: {error}"


def _provide_checkpoints(spec: TrainingSpec) -> None:
    """Copy the checkpoints that an earlier training job of this name left."""
    uri = spec.checkpoint_uri
    if uri is None:
        return
    try:
        for found in spec.storage.objects(f"{uri}/"):
            target = spec.folder / "checkpoints" / found.name
            target.parent.mkdir(parents=True, exist_ok=True)
            # Copied, also where it could be linked to: the trainer writes here. What an earlier attempt has
            # linked to is not written to.
            if target.is_symlink():
                target.unlink()
            with spec.storage.open(found.uri) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    except (StorageError, OSError) as error:
        raise CannotStartError(_download_failed("the checkpoints", error)) from None


def _provide_script(spec: TrainingSpec) -> list[str]:
    """Copy or unpack the submit directory into the working directory; return the command that runs it."""
    where = str(decoded(spec.hyperparameters[SUBMIT_DIRECTORY]))
    try:
        _provide_code(spec, where)
    except (StorageError, OSError) as error:
        raise CannotStartError(f"ClientError: {SUBMIT_DIRECTORY}: {error}") from None
    program = script_mode_program(spec.hyperparameters)
    script = (spec.code / program).resolve()
    if not script.is_relative_to(spec.code.resolve()) or not script.is_file():
        raise CannotStartError(f"ClientError: {PROGRAM}: there is no file {program!r} in {where}")
    if (spec.code / "requirements.txt").is_file():
        _note(spec, "requirements.txt is not installed; the server's own packages are used")
    if script.suffix == ".py":
        return [sys.executable, program]
    if script.suffix == ".sh":
        return ["/bin/sh", program]
    raise CannotStartError(f"ClientError: {PROGRAM}: {program!r} is neither a .py nor a .sh file")


def _provide_code(spec: TrainingSpec, where: str) -> None:
    if where.startswith("s3://") and not isinstance(spec.storage, FolderStorage):
        looked_at = spec.storage.where(where)
        source, allows = _downloaded(spec, where), _inside(spec.folder)
    else:
        place = spec.places.place(where, plain=True)
        source, allows = place.path, place.allows
        looked_at = str(source)
    if source.is_dir():
        _copy_project(spec, source, allows)
    elif source.is_file():
        _unpack(source, spec.code)
    else:
        raise StorageError(f"{where} does not exist (looked at {looked_at})")


def _copy_project(spec: TrainingSpec, source: Path, allows: Callable[[Path], bool]) -> None:
    """Copy a folder with code, without what is the server's or belongs to no script."""
    s3_root = Path(os.path.realpath(spec.places.s3_root))

    def is_code(real: Path) -> bool:
        if real.name in _NO_CODE or real == s3_root:
            return False
        # Virtual environments, and state folders of whichever server.
        if files.is_file(real / "pyvenv.cfg") or files.is_file(real / DATABASE):
            return False
        return allows(real)

    def note(link: Path, real: Path) -> None:
        if not allows(real):
            _note(
                spec,
                f"left out of the code: {str(link)!r}, which leads to {str(real)!r}, beyond all roots",
            )

    for name, path in files.walk(source, allows=is_code, refused=note, strict=True):
        target = spec.code / name
        files.copy(path, target)
        # Scripts that others are to start by their name.
        target.chmod(path.stat().st_mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR)


def _inside(folder: Path) -> Callable[[Path], bool]:
    """Return what says whether a path without links is in a folder."""
    real = Path(os.path.realpath(folder))
    return lambda path: path.is_relative_to(real)


def _downloaded(spec: TrainingSpec, where: str) -> Path:
    """Download the submit directory, or its archive, and return where it is now, if it is anywhere."""
    target = spec.folder / "input" / "code"
    for found in spec.storage.objects(where):
        if found.uri == where:
            spec.storage.fetch(where, target)
        elif found.uri.startswith(where.rstrip("/") + "/"):
            spec.storage.fetch(found.uri, target / found.name)
    return target


class _TarInfo(tarfile.TarInfo):
    """What an archive says of a file; tarfile reads its headers into memory, however long they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _HEADERS and not 0 <= info.size <= _MOST_HEADER:
            raise StorageError(f"a header in it is {info.size} bytes long: {_MOST_HEADER} at most")
        return info


def _unpack(archive: Path, folder: Path) -> None:
    room = min(MOST_UNPACKED, shutil.disk_usage(folder).free)
    members = size = 0

    def limited(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo | None:
        nonlocal members, size
        if member.size < 0:
            raise StorageError(f"{member.name!r} in it is {member.size} bytes long")
        members += 1
        size += member.size
        if members > MOST_MEMBERS or size > room:
            raise StorageError(
                f"it unpacks to more than {MOST_MEMBERS} files or {room} bytes, which is the limit or all "
                "room that there is"
            )
        return tarfile.data_filter(member, where)

    try:
        with tarfile.open(archive, tarinfo=_TarInfo) as opened:
            opened.extractall(folder, filter=limited)  # noqa: S202 - the filter checks each member
    except (StorageError, OSError, *_NO_ARCHIVE) as error:
        raise StorageError(f"cannot unpack {archive}: {error}") from None


def _note_entry_point(spec: TrainingSpec) -> None:
    """Say in the log what is not used of a stand-alone training job."""
    specification = spec.definition.get("AlgorithmSpecification") or {}
    given = [name for name in ("ContainerEntrypoint", "ContainerArguments") if specification.get(name)]
    if given:
        _note(
            spec,
            f"{' and '.join(given)} not used: there is no container; what runs is the command that "
            "stands for the image, or the script in script mode",
        )


def _note_instances(spec: TrainingSpec) -> None:
    """Say that several instances are one process here: a script sees a cluster of one host."""
    resources = resource_config_of(spec.definition)
    groups = resources.get("InstanceGroups") or [resources]
    count = sum(group.get("InstanceCount") or 1 for group in groups)
    if count > 1:
        _note(spec, f"InstanceCount is {count}; one process on this machine trains, as host {_HOST}")


def _note(spec: TrainingSpec, text: str) -> None:
    # The trainer may have put something else in its log's place, which must neither block nor be written to.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(spec.log, flags, 0o666)
    except OSError as error:
        logger.warning("%s: %s (its log cannot be written: %s)", spec.name, text, error)
        return
    with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"embedded AMT: {text}\n")


def _user_hyperparameters(hyperparameters: Mapping[str, str]) -> dict[str, Any]:
    """Return what the training script is told: everything but SageMaker's own, decoded."""
    return {
        name: decoded(value)
        for name, value in sorted(hyperparameters.items())
        if not name.startswith("sagemaker_") and name != TUNING_OBJECTIVE
    }


def _arguments(user: Mapping[str, Any]) -> list[str]:
    arguments = []
    for name, value in user.items():
        arguments += [f"-{name}" if len(name) == 1 else f"--{name}", _argument(value)]
    return arguments


def _argument(value: Any) -> str:
    # Lists and maps keep their JSON form; Python's own form is what the toolkit gives for the rest.
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _input_config(definition: Mapping[str, Any]) -> dict[str, Any]:
    default_mode = (definition.get("AlgorithmSpecification") or {}).get("TrainingInputMode") or "File"
    return {
        channel["ChannelName"]: {
            "TrainingInputMode": channel.get("InputMode") or default_mode,
            "S3DistributionType": channel["DataSource"]["S3DataSource"].get("S3DataDistributionType")
            or "FullyReplicated",
            "RecordWrapperType": channel.get("RecordWrapperType") or "None",
            **({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {}),
        }
        for channel in definition.get("InputDataConfig") or ()
    }


def _variables(
    spec: TrainingSpec,
    user: Mapping[str, Any],
    arguments: Sequence[str],
    input_config: Mapping[str, Any],
    resources: Mapping[str, Any],
) -> dict[str, str]:
    folder = spec.folder
    paths = {name: str(folder / "input" / "data" / name) for name in input_config}
    resource_config = resource_config_of(spec.definition)
    program = script_mode_program(spec.hyperparameters) if PROGRAM in spec.hyperparameters else ""
    variables = {
        "TRAINING_JOB_NAME": spec.name,
        "TRAINING_JOB_ARN": spec.arn,
        "AWS_REGION": spec.region,
        "AWS_DEFAULT_REGION": spec.region,  # what boto3 reads
        "PYTHONUNBUFFERED": "1",
        "SM_HPS": json.dumps(user),
        "SM_USER_ARGS": json.dumps(list(arguments)),
        "SM_USER_ENTRY_POINT": program,
        "SM_MODULE_NAME": program.removesuffix(".py"),
        "SM_MODULE_DIR": str(spec.code),
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_OUTPUT_DIR": str(folder / "output"),
        "SM_OUTPUT_DATA_DIR": str(folder / "output" / "data"),
        "SM_CHECKPOINT_DIR": str(folder / "checkpoints"),
        "SM_INPUT_DIR": str(folder / "input"),
        "SM_INPUT_CONFIG_DIR": str(folder / "input" / "config"),
        "SM_CHANNELS": json.dumps(sorted(paths)),
        "SM_INPUT_DATA_CONFIG": json.dumps(input_config),
        "SM_CURRENT_HOST": _HOST,
        "SM_HOSTS": json.dumps([_HOST]),
        "SM_NETWORK_INTERFACE_NAME": str(resources["network_interface_name"]),
        "SM_RESOURCE_CONFIG": json.dumps(resources),
        "SM_NUM_CPUS": str(os.cpu_count() or 1),
        "SM_NUM_GPUS": "0",
        "SM_CURRENT_INSTANCE_TYPE": str(resource_config.get("InstanceType") or "local"),
        "SM_LOG_LEVEL": "20",
    }
    for name, value in user.items():
        text = value if isinstance(value, str) else json.dumps(value)
        key = f"SM_HP_{name.upper()}"
        variables[key] = text
        # The toolkit leaves hyphens in; shells cannot read such a name.
        variables[key.replace("-", "_")] = text
    for name, path in paths.items():
        variables[f"SM_CHANNEL_{name.upper()}"] = path
    return {key: value for key, value in variables.items() if "\0" not in value and "=" not in key}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def store_results(spec: TrainingSpec) -> None:
    """Pack model and output data to where ``OutputDataConfig`` says, as SageMaker does after training.

    A folder that the trainer has removed is an empty one: the model is always stored.

    :raises OSError: this machine's disk refuses, or the trainer has put something else in a folder's place.
    :raises StorageError: ``S3OutputPath`` is not an address of S3, or the storage refuses.
    """
    compress = spec.definition["OutputDataConfig"].get("CompressionType") != "NONE"
    model = spec.folder / "model"
    if not _entries(model):
        # Without parents: a training job whose whole folder is gone has lost its model.
        model.mkdir(exist_ok=True)
    _store(spec, model, "model", compress)
    data = spec.folder / "output" / "data"
    if _entries(data):
        _store(spec, data, "output", compress)


def _store(spec: TrainingSpec, folder: Path, name: str, compress: bool) -> None:
    if not compress:
        spec.storage.store_all(_content(spec, folder), f"{spec.output_uri}/{name}")
        return
    inside = _inside(folder)

    def packed_member(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        # Nobody would unpack named pipes and devices; tarfile leaves out sockets.
        if member.isdev():
            return None
        if member.issym():
            path = folder / member.name
            real = Path(os.path.realpath(path))
            if not inside(real):
                _note_link(spec, path, real)
                return None
            # Also where the archive is unpacked elsewhere.
            member.linkname = os.path.relpath(real, os.path.realpath(path.parent))
        return member

    packed = spec.folder / f"{name}.tar.gz"
    # The trainer may have put something there.
    packed.unlink(missing_ok=True)
    with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
        # Not recursive, as tarfile would be for each folder: trainers may make them deep.
        waiting = _entries(folder)[::-1]
        while waiting:
            path = waiting.pop()
            name_inside = path.relative_to(folder).as_posix()
            archive.add(path, arcname=name_inside, recursive=False, filter=packed_member)
            if path.is_dir() and not path.is_symlink():
                waiting += _entries(path)[::-1]
    spec.storage.store(packed, f"{spec.output_uri}/{packed.name}")
    packed.unlink()


def _content(spec: TrainingSpec, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files that a trainer left in a folder; links only where they stay in it."""

    def note(link: Path, real: Path) -> None:
        _note_link(spec, link, real)

    return files.walk(folder, allows=_inside(folder), refused=note, strict=True)


def _note_link(spec: TrainingSpec, link: Path, real: Path) -> None:
    _note(spec, f"not stored: {str(link)!r}, a link that leads out of its folder to {str(real)!r}")


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder of the trainer's, which is empty if the trainer has removed it."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def store_checkpoints(spec: TrainingSpec) -> None:
    """Store what is in the checkpoints folder where ``CheckpointConfig`` says; nothing without one.

    :raises OSError: this machine's disk refuses.
    :raises StorageError: ``S3Uri`` is not an address of S3, or the storage refuses.
    """
    folder = spec.folder / "checkpoints"
    if spec.checkpoint_uri is not None and _entries(folder):
        spec.storage.store_all(_content(spec, folder), spec.checkpoint_uri)


def clean_up(folder: Path) -> bool:
    """Remove what only the training process needed: named pipes and the files of its channels.

    :param folder: the training job's folder.
    :return: whether nothing of it is left. A process that the trainer left behind may still write there.
    """
    data = folder / "input" / "data"
    # What a link of the trainer's leads to is not the training job's.
    if not data.is_dir() or any(folder.is_symlink() for folder in (data, data.parent)):
        return True
    gone = True
    try:
        paths = list(data.iterdir())
    except OSError as error:
        _note_left(folder, error)
        return False
    for path in paths:
        try:
            if path.is_fifo():
                path.unlink()
            elif path.is_dir():
                files.remove(path)
        except OSError as error:
            gone = False
            _note_left(folder, error)
    return gone


def _note_left(folder: Path, error: OSError) -> None:
    logger.warning("Input data of %s cannot be removed: %s", folder.name, error)


def failure_reason(spec: TrainingSpec, exit_status: int) -> str:
    """Say why a training process failed: its own words or the end of its log, and its exit code."""
    download = pipes.failure(spec.folder)
    if download is not None:
        return f"ClientError: {download}"[:LONGEST_REASON]
    # A container's exit code for a process that a signal ended is 128 plus the signal's number.
    code = exit_status if exit_status >= 0 else 128 - exit_status
    words = failure_message(spec) or _last_words(spec.log)
    signalled = f" (ended by {_signal_name(-exit_status)})" if exit_status < 0 else ""
    tail = f", exit code: {code}{signalled}"
    start = "AlgorithmError: "
    return start + words[-(LONGEST_REASON - len(start) - len(tail)) :] + tail


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def failure_message(spec: TrainingSpec) -> str:
    """Return what the trainer wrote to ``output/failure``; empty if it wrote nothing to a file there."""
    handle = files.open_regular(spec.folder / "output" / "failure")
    if handle is None:
        return ""
    with handle:
        return handle.read(LONGEST_REASON).decode("utf-8", errors="replace").strip()


def _last_words(log: Path) -> str:
    """Return the last lines of a log, or say that it is empty."""
    lines = []
    handle = files.open_regular(log)
    if handle is not None:
        with handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - 4096))
            lines = handle.read().decode("utf-8", errors="replace").split("\n")
    kept = [line.strip() for line in lines if line.strip()][-5:]
    return "; ".join(kept) if kept else "the training process wrote nothing to its log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What became of a training job.

    :param status: ``Completed``, ``Failed`` or ``Stopped``.
    :param metrics: final value of each metric that was emitted; finite.
    :param failure_reason: set if and only if it failed.
    """

    status: str
    metrics: Mapping[str, float]
    failure_reason: str | None = None


def conclude(
    spec: TrainingSpec, definitions: Mapping[str, Metric], exit_status: int, *, stopped: bool
) -> Conclusion:
    """Read metrics, store the model, and decide how a training job ended whose process has exited.

    :param exit_status: 0 to 255, or minus the number of the signal that ended the process.
    :param stopped: whether it was told to stop; then it is ``Stopped`` however it exited, and what it had
        produced is stored, as SageMaker does.
    """
    files.remove_special(spec.folder)
    # A trainer may have replaced its log too, by a link to something that is no file.
    metrics: Mapping[str, float] = {}
    slow = None
    try:
        if spec.log.is_file():
            metrics = read_final_metrics(spec.log, definitions)
    except SlowMetricError as error:
        metrics, slow = error.found, f"ClientError: {error}"
    reason = None
    if not stopped and (exit_status != 0 or failure_message(spec)):
        reason = failure_reason(spec, exit_status)
    if not stopped:
        reason = reason or slow
    clean_up(spec.folder)
    # Checkpoints are stored however it ended, as they are what the next one goes on from.
    refused = _refusal(store_checkpoints, spec, f"the checkpoints at {spec.checkpoint_uri}")
    reason = reason or refused or _refusal(store_results, spec, f"the model at {spec.output_uri}")
    if reason is not None:
        return Conclusion(status="Failed", metrics=metrics, failure_reason=reason[:LONGEST_REASON])
    return Conclusion(status="Stopped" if stopped else "Completed", metrics=metrics)


def _refusal(store: Callable[[TrainingSpec], None], spec: TrainingSpec, what: str) -> str | None:
    """Store something; return why that was not possible, ``None`` if it was."""
    try:
        store(spec)
    except (OSError, StorageError) as error:
        return f"ClientError: cannot store {what}: {error}"
    return None
