"""A ``CreateHyperParameterTuningJob`` request in typed Python: :class:`TuningJobRequest` and its parts.

Each class says, field by field, where its values are in the API and in what form; that one table serves both
directions, ``to_request`` and ``from_request``. What is checked here are Python's types; the rules of AMT are
those of :mod:`airflow_amt.tuning.request`, and the service model's are checked before the call
(:func:`airflow_amt.service_model.check_create_request`).

Any text may be a Jinja template, also in place of a number, a duration or a flag: the operator renders it and
turns it into the API's type. Source of the fields: SageMaker API, ``CreateHyperParameterTuningJob`` and the
structures named at each class.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.criteria import API_PATHS, CompletionCriteria, ObjectiveType
from airflow_amt.tuning.request import check_documented_rules
from airflow_amt.tuning.templates import decided, is_template

__all__ = [
    "AutoParameter",
    "CategoricalRange",
    "Checkpoint",
    "ContinuousRange",
    "Hyperband",
    "InputChannel",
    "IntegerRange",
    "MetricDefinition",
    "Objective",
    "Resources",
    "Scaling",
    "Strategy",
    "TrainingJobDefinition",
    "TuningJobRequest",
    "Vpc",
    "WarmStart",
    "WarmStartType",
]

_Self = TypeVar("_Self", bound="_Structure")

_CONFIG = "HyperParameterTuningJobConfig"


class Scaling(str, Enum):
    """How the values of a range are spread; values as in the API (``HyperParameterScalingType``)."""

    AUTO = "Auto"
    LINEAR = "Linear"
    LOGARITHMIC = "Logarithmic"
    REVERSE_LOGARITHMIC = "ReverseLogarithmic"


class Strategy(str, Enum):
    """How the next hyperparameters are chosen; values as in the API."""

    BAYESIAN = "Bayesian"
    RANDOM = "Random"
    HYPERBAND = "Hyperband"
    GRID = "Grid"


class WarmStartType(str, Enum):
    """What a tuning job shares with those it starts from; values as in the API."""

    IDENTICAL_DATA_AND_ALGORITHM = "IdenticalDataAndAlgorithm"
    TRANSFER_LEARNING = "TransferLearning"


# --- the forms of values ------------------------------------------------------------------------------


class _BadValueError(Exception):
    """A value is not of a field's type."""

    def __init__(self, limit: str, fix: str) -> None:
        super().__init__(limit, fix)
        self.limit = limit
        self.fix = fix


class _Form:
    """Turns the value of a field into the API's and back."""

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        """Return the API's value; add what is wrong to the problems."""
        try:
            return value if is_template(value) else self.write(value)
        except _BadValueError as error:
            problems.append(AmtFieldError(path, value, error.limit, error.fix))
            return None

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        """Return the field's value; add what is wrong to the problems."""
        try:
            return value if is_template(value) else self.read(value)
        except _BadValueError as error:
            problems.append(AmtFieldError(path, value, error.limit, error.fix))
            return None

    def write(self, value: Any) -> Any:
        """Return the API's value of one that is no template.

        :raises _BadValueError: it is of another type.
        """
        raise NotImplementedError

    def read(self, value: Any) -> Any:
        """Return the field's value of one that is no template; most are the same as in the API."""
        return self.write(value)


class _Text(_Form):
    def write(self, value: Any) -> str:
        if isinstance(value, Enum):
            value = value.value
        if not isinstance(value, str):
            raise _BadValueError("it must be text", "give a string")
        return str(value)


class _Count(_Form):
    def write(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise _BadValueError("it must be a whole number, or a template of one", "give an int")
        return int(value)


class _Flag(_Form):
    def write(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _BadValueError("it must be True or False, or a template of it", "give a bool")
        return value


class _Switch(_Form):
    """A flag that the API spells as one of two words."""

    def __init__(self, on: str, off: str | None) -> None:
        self._on = on
        self._off = off

    def write(self, value: Any) -> str | None:
        if not isinstance(value, bool):
            raise _BadValueError("it must be True or False, or a template of the API's word", "give a bool")
        return self._on if value else self._off

    def read(self, value: Any) -> bool:
        if value not in (self._on, self._off):
            words = " or ".join(repr(word) for word in (self._on, self._off) if word)
            raise _BadValueError(f"it must be {words}", "correct it")
        return bool(value == self._on)


class _Seconds(_Form):
    def write(self, value: Any) -> int:
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        whole = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds % 1 == 0
        if not whole:
            raise _BadValueError(
                "it must be a timedelta or a number of seconds, in whole seconds, or a template of them",
                "give it as timedelta(hours=1)",
            )
        return int(seconds)

    def read(self, value: Any) -> timedelta:
        seconds = self.write(value)
        if abs(seconds) >= 2**31:
            raise _BadValueError("it must be a number of seconds below 2^31", "correct it")
        return timedelta(seconds=seconds)


class _Number(_Form):
    """A number, or its text, that the API carries as text: with all its digits."""

    def write(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            # "true", "True" or "1": only the training image knows which it reads.
            raise _BadValueError("it must be a number or text", "write the text that the algorithm reads")
        if isinstance(value, Decimal):
            return str(value)
        if isinstance(value, numbers.Integral):
            return str(int(value))
        if isinstance(value, numbers.Real):
            return repr(float(value))
        raise _BadValueError("it must be a number or text", "give a number")


class _ListOf(_Form):
    def __init__(self, form: _Form) -> None:
        self._form = form

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        return self._each(value, path, problems, self._form.to_api)

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        return tuple(self._each(value, path, problems, self._form.from_api) or ())

    def _each(
        self,
        value: Any,
        path: str,
        problems: list[AmtFieldError],
        turn: Callable[[Any, str, list[AmtFieldError]], Any],
    ) -> list[Any] | None:
        if not isinstance(value, (list, tuple)):
            problems.append(AmtFieldError(path, value, "it must be a list or tuple", "give a list"))
            return None
        return [turn(one, f"{path}[{position}]", problems) for position, one in enumerate(value)]


class _MapOf(_Form):
    def __init__(self, form: _Form) -> None:
        self._form = form

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        return self._each(value, path, problems, self._form.to_api)

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        return self._each(value, path, problems, self._form.from_api) or {}

    def _each(
        self,
        value: Any,
        path: str,
        problems: list[AmtFieldError],
        turn: Callable[[Any, str, list[AmtFieldError]], Any],
    ) -> dict[str, Any] | None:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            problems.append(
                AmtFieldError(path, value, "it must be a mapping with text as keys", "give a dict")
            )
            return None
        return {key: turn(one, f"{path}.{key}", problems) for key, one in value.items()}


class _Tags(_Form):
    """A mapping that the API has as a list of ``Tag`` structures."""

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        written = _MapOf(_Text()).to_api(value, path, problems)
        return None if written is None else [{"Key": key, "Value": text} for key, text in written.items()]

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        read: dict[str, Any] = {}
        for position, one in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if not isinstance(one, Mapping) or set(one) != {"Key", "Value"} or one["Key"] in read:
                problems.append(
                    AmtFieldError(
                        f"{path}[{position}]", one, "it must be one Tag, Key and Value", "correct it"
                    )
                )
                continue
            read[one["Key"]] = one["Value"]
        return read


class _Parents(_Form):
    """Names that the API has as a list of structures."""

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        names = _ListOf(_Text()).to_api(value, path, problems)
        return None if names is None else [{"HyperParameterTuningJobName": name} for name in names]

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        if not isinstance(value, (list, tuple)):
            return _ListOf(_Text()).from_api(value, path, problems)
        names = []
        for position, one in enumerate(value):
            if not isinstance(one, Mapping) or set(one) != {"HyperParameterTuningJobName"}:
                limit = "it must be a structure with HyperParameterTuningJobName alone"
                problems.append(AmtFieldError(f"{path}[{position}]", one, limit, "correct it"))
            else:
                names.append(one["HyperParameterTuningJobName"])
        return _ListOf(_Text()).from_api(names, path, problems)


class _Part(_Form):
    """A structure of this module; where ``raw`` is set, the API's own dict will do, for what is rare."""

    def __init__(self, kind: type[_Structure], *, raw: bool = False) -> None:
        self._kind = kind
        self._raw = raw

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        if self._raw and isinstance(value, Mapping):
            return dict(value)
        if not isinstance(value, self._kind):
            problems.append(
                AmtFieldError(
                    path, value, f"it must be a {self._kind.__name__}", f"give {self._kind.__name__}(...)"
                )
            )
            return None
        return value._written(path, problems)

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        found: list[AmtFieldError] = []
        part = self._kind._read(value, path, found)
        if part is None and self._raw and isinstance(value, Mapping):
            return dict(value)
        problems += found
        return part


_TEXT, _COUNT, _FLAG, _SECONDS, _NUMBER = _Text(), _Count(), _Flag(), _Seconds(), _Number()


@dataclass(frozen=True, slots=True)
class _At:
    """Annotates a field: its place in the structure of the API, and the form of its value."""

    path: str
    form: _Form = _TEXT


# --- structures ---------------------------------------------------------------------------------------


class _Structure:
    """What all parts of a request share."""

    __slots__ = ()

    def to_request(self) -> dict[str, Any]:
        """Return the structure as the API has it; what is ``None`` is left out.

        :raises AmtRequestError: values are not of their fields' types; all of them are listed.
        """
        problems: list[AmtFieldError] = []
        written = self._written("", problems)
        if problems:
            raise AmtRequestError(problems)
        return written

    @classmethod
    def from_request(cls: type[_Self], request: Mapping[str, Any]) -> _Self:
        """Return the object whose :meth:`to_request` is this structure of the API.

        :raises AmtRequestError: there are values of a wrong type, or members that this class does not have;
            all of them are listed.
        """
        problems: list[AmtFieldError] = []
        read = cls._read(request, "", problems)
        if read is None or problems:
            raise AmtRequestError(problems)
        return read

    def _written(self, path: str, problems: list[AmtFieldError]) -> dict[str, Any]:
        written: dict[str, Any] = {}
        kind: Any = type(self)  # mypy takes a class for not hashable
        for name, place, form, required in _api_fields(kind):
            value = getattr(self, name)
            where = f"{path}.{place}" if path else place
            if value is None:
                if required:
                    problems.append(AmtFieldError(where, None, f"{name} is required", f"give {name}"))
                continue
            turned = form.to_api(value, where, problems)
            if turned is not None and (required or turned not in ([], {})):
                _set(written, place, turned)
        return written

    @classmethod
    def _read(cls: type[_Self], value: Any, path: str, problems: list[AmtFieldError]) -> _Self | None:
        before = len(problems)
        if not isinstance(value, Mapping):
            problems.append(
                AmtFieldError(path or cls.__name__, value, "it must be a structure", "give a dict")
            )
            return None
        rest = _copied(value)
        values: dict[str, Any] = {}
        kind: Any = cls
        for name, place, form, required in _api_fields(kind):
            where = f"{path}.{place}" if path else place
            found = _take(rest, place)
            if found is not None:
                values[name] = form.from_api(found, where, problems)
            elif required:
                problems.append(AmtFieldError(where, None, "this field is required", "add it"))
        values.update(cls._read_rest(rest, path, problems))
        problems.extend(
            AmtFieldError(
                f"{path}.{place}" if path else place,
                left,
                f"{cls.__name__} does not have it",
                "correct its spelling, or pass the request as a dict",
            )
            for place, left in _leaves(rest)
        )
        return None if len(problems) > before else cls(**values)

    @classmethod
    def _read_rest(cls, rest: dict[str, Any], path: str, problems: list[AmtFieldError]) -> dict[str, Any]:
        """Take out of the rest what is not one member for one field; return it as arguments."""
        del rest, path, problems  # nothing is, in most structures
        return {}


@cache
def _api_fields(structure: Any) -> tuple[tuple[str, str, _Form, bool], ...]:
    """Return name, place, form and whether it is required of each annotated field."""
    hints = get_type_hints(structure, include_extras=True)
    return tuple(
        (one.name, place.path, place.form, one.default is MISSING)
        for one in fields(structure)
        for place in getattr(hints[one.name], "__metadata__", ())
    )


def _set(target: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value


def _take(source: dict[str, Any], path: str) -> Any:
    """Take a member out of a structure, and structures that are empty then."""
    key, _, below = path.partition(".")
    if not below:
        return source.pop(key, None)
    inner = source.get(key)
    if not isinstance(inner, dict):
        return None
    taken = _take(inner, below)
    if taken is not None and not inner:
        del source[key]
    return taken


def _copied(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(key): _copied(item) if isinstance(item, Mapping) else item
        for key, item in value.items()
        if item is not None
    }


def _leaves(rest: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what was not taken."""
    for key, value in rest.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield from _leaves(value, where)
        else:
            yield where, value


@dataclass(frozen=True, slots=True)
class IntegerRange(_Structure):
    """A hyperparameter that takes whole numbers (API, ``IntegerParameterRange``).

    :param name: the hyperparameter.
    :param min_value: the least value: a number or its text.
    :param max_value: the greatest value.
    :param scaling: how values are spread; not ``REVERSE_LOGARITHMIC``.
    """

    name: Annotated[str, _At("Name")]
    min_value: Annotated[int | str, _At("MinValue", _NUMBER)]
    max_value: Annotated[int | str, _At("MaxValue", _NUMBER)]
    scaling: Annotated[Scaling | str | None, _At("ScalingType")] = None


@dataclass(frozen=True, slots=True)
class ContinuousRange(_Structure):
    """A hyperparameter that takes any number (API, ``ContinuousParameterRange``).

    :param name: the hyperparameter.
    :param min_value: the least value: a number, written with all its digits, or its text.
    :param max_value: the greatest value.
    :param scaling: how values are spread: ``LOGARITHMIC`` needs bounds above 0, ``REVERSE_LOGARITHMIC`` from
        0 to below 1.
    """

    name: Annotated[str, _At("Name")]
    min_value: Annotated[float | Decimal | str, _At("MinValue", _NUMBER)]
    max_value: Annotated[float | Decimal | str, _At("MaxValue", _NUMBER)]
    scaling: Annotated[Scaling | str | None, _At("ScalingType")] = None


@dataclass(frozen=True, slots=True)
class CategoricalRange(_Structure):
    """A hyperparameter that takes one of some values (API, ``CategoricalParameterRange``).

    :param name: the hyperparameter.
    :param values: 1 to 30 different ones; numbers become text.
    """

    name: Annotated[str, _At("Name")]
    values: Annotated[Sequence[str | float], _At("Values", _ListOf(_NUMBER))]


@dataclass(frozen=True, slots=True)
class AutoParameter(_Structure):
    """A hyperparameter whose range Autotune finds (API, ``AutoParameter``).

    :param name: the hyperparameter.
    :param value_hint: an example of a value.
    """

    name: Annotated[str, _At("Name")]
    value_hint: Annotated[str | float, _At("ValueHint", _NUMBER)]


Range = IntegerRange | ContinuousRange | CategoricalRange | AutoParameter

_RANGE_KINDS: Mapping[type[_Structure], str] = {
    IntegerRange: "IntegerParameterRanges",
    ContinuousRange: "ContinuousParameterRanges",
    CategoricalRange: "CategoricalParameterRanges",
    AutoParameter: "AutoParameters",
}


class _Ranges(_Form):
    """A list of ranges of all kinds, which the API sorts by kind."""

    def to_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        if not isinstance(value, (list, tuple)):
            problems.append(AmtFieldError(path, value, "it must be a list of ranges", "give a list"))
            return None
        written: dict[str, list[Any]] = {}
        for position, one in enumerate(value):
            kind = _RANGE_KINDS.get(type(one))
            if kind is None:
                problems.append(
                    AmtFieldError(
                        f"{path}[{position}]",
                        one,
                        f"it must be one of {', '.join(known.__name__ for known in _RANGE_KINDS)}",
                        "give IntegerRange('depth', 1, 9)",
                    )
                )
                continue
            of_kind = written.setdefault(kind, [])
            of_kind.append(one._written(f"{path}.{kind}[{len(of_kind)}]", problems))
        return written

    def from_api(self, value: Any, path: str, problems: list[AmtFieldError]) -> Any:
        if not isinstance(value, Mapping):
            problems.append(AmtFieldError(path, value, "it must be a structure", "give a dict"))
            return ()
        kinds = {name: kind for kind, name in _RANGE_KINDS.items()}
        found: list[Any] = []
        for name, ranges in value.items():
            if name not in kinds:
                problems.append(
                    AmtFieldError(f"{path}.{name}", ranges, f"one of {', '.join(kinds)}", "correct it")
                )
            elif ranges is not None:
                found += _ListOf(_Part(kinds[name])).from_api(ranges, f"{path}.{name}", problems)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Objective(_Structure):
    """What is optimised (API, ``HyperParameterTuningJobObjective``).

    :param metric_name: one of the metric definitions, or of the built-in algorithm's metrics.
    :param type: which direction is better.
    """

    metric_name: Annotated[str, _At("MetricName")]
    type: Annotated[ObjectiveType | str, _At("Type")]


@dataclass(frozen=True, slots=True)
class MetricDefinition(_Structure):
    """How a metric is found in a training job's log (API, ``MetricDefinition``).

    :param name: the metric.
    :param regex: has one group, which captures the value.
    """

    name: Annotated[str, _At("Name")]
    regex: Annotated[str, _At("Regex")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputChannel(_Structure):
    """A channel of training data in S3 (API, ``Channel`` with ``S3DataSource``).

    :param name: the channel, as ``train``.
    :param s3_uri: a prefix, or a manifest where ``s3_data_type`` says so.
    :param s3_data_type: ``S3Prefix``, ``ManifestFile``, ``AugmentedManifestFile``.
    :param distribution: ``FullyReplicated`` or ``ShardedByS3Key``.
    :param attribute_names: attributes of an augmented manifest.
    :param content_type: the data's MIME type.
    :param compression: ``None`` (the word) or ``Gzip``.
    :param record_wrapper: ``None`` (the word) or ``RecordIO``.
    :param input_mode: ``Pipe``, ``File`` or ``FastFile``, where it is not the algorithm's.
    :param shuffle_seed: shuffle with it.
    """

    name: Annotated[str, _At("ChannelName")]
    s3_uri: Annotated[str, _At("DataSource.S3DataSource.S3Uri")]
    s3_data_type: Annotated[str, _At("DataSource.S3DataSource.S3DataType")] = "S3Prefix"
    distribution: Annotated[str | None, _At("DataSource.S3DataSource.S3DataDistributionType")] = None
    attribute_names: Annotated[
        Sequence[str] | None, _At("DataSource.S3DataSource.AttributeNames", _ListOf(_TEXT))
    ] = None
    content_type: Annotated[str | None, _At("ContentType")] = None
    compression: Annotated[str | None, _At("CompressionType")] = None
    record_wrapper: Annotated[str | None, _At("RecordWrapperType")] = None
    input_mode: Annotated[str | None, _At("InputMode")] = None
    shuffle_seed: Annotated[int | str | None, _At("ShuffleConfig.Seed", _COUNT)] = None


@dataclass(frozen=True, slots=True)
class Resources(_Structure):
    """Instances of a training job (API, ``ResourceConfig``, ``HyperParameterTuningInstanceConfig``).

    :param instance_type: as ``ml.m5.xlarge``.
    :param instance_count: how many for one training job.
    :param volume_size_gb: storage of each.
    """

    instance_type: Annotated[str, _At("InstanceType")]
    instance_count: Annotated[int | str, _At("InstanceCount", _COUNT)] = 1
    volume_size_gb: Annotated[int | str, _At("VolumeSizeInGB", _COUNT)] = 30


@dataclass(frozen=True, slots=True)
class Checkpoint(_Structure):
    """Where training jobs keep checkpoints (API, ``CheckpointConfig``).

    :param s3_uri: where in S3.
    :param local_path: where in the container.
    """

    s3_uri: Annotated[str, _At("S3Uri")]
    local_path: Annotated[str | None, _At("LocalPath")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vpc(_Structure):
    """The network of the training jobs (API, ``VpcConfig``).

    :param security_group_ids: 1 to 5.
    :param subnets: 1 to 16.
    """

    security_group_ids: Annotated[Sequence[str], _At("SecurityGroupIds", _ListOf(_TEXT))]
    subnets: Annotated[Sequence[str], _At("Subnets", _ListOf(_TEXT))]


@dataclass(frozen=True, slots=True)
class WarmStart(_Structure):
    """The tuning jobs to start from (API, ``HyperParameterTuningJobWarmStartConfig``).

    :param parents: names of 1 to 5 tuning jobs that are over.
    :param type: what is shared with them.
    """

    parents: Annotated[Sequence[str], _At("ParentHyperParameterTuningJobs", _Parents())]
    type: Annotated[WarmStartType | str, _At("WarmStartType")]


@dataclass(frozen=True, slots=True)
class Hyperband(_Structure):
    """Resources of the Hyperband strategy, as epochs (API, ``HyperbandStrategyConfig``).

    :param min_resource: before a training job may be stopped; 1 if left out.
    :param max_resource: the most; inferred from a static ``epochs`` if left out.
    """

    min_resource: Annotated[int | str | None, _At("MinResource", _COUNT)] = None
    max_resource: Annotated[int | str | None, _At("MaxResource", _COUNT)] = None


_ONE_RESOURCE, _LISTED_RESOURCES = "ResourceConfig", "HyperParameterTuningResourceConfig"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJobDefinition(_Structure):
    """The training jobs of a tuning job (API, ``HyperParameterTrainingJobDefinition``).

    :param image: URI of the training image; or give ``algorithm_name``.
    :param algorithm_name: an algorithm resource, or one of the marketplace.
    :param role: the training jobs' role: ARN, or a name, which the operator expands.
    :param output_path: where in S3 models go.
    :param resources: instances; several, in order of preference, for AMT to choose from; or a
        ``ResourceConfig`` as a dict, for what :class:`Resources` does not have.
    :param volume_kms_key_id: key of the instances' storage; not with a dict as ``resources``.
    :param inputs: channels of data: :class:`InputChannel`, or a ``Channel`` as a dict.
    :param input_mode: ``File``, ``Pipe`` or ``FastFile``.
    :param static_hyperparameters: what is the same in all training jobs; numbers become text.
    :param metric_definitions: how metrics are found in the log; AWS's own algorithms bring theirs.
    :param max_runtime: of one training job, in whole seconds; AMT's default is a day.
    :param max_wait: with spot, for instances and training together.
    :param max_pending: for instances.
    :param spot: use managed spot training; needs ``max_wait``.
    :param checkpoint: where training jobs keep checkpoints.
    :param retries: attempts after an internal error of AWS, 1 to 30.
    :param environment: the containers' variables.
    :param vpc: the network.
    :param network_isolation: no calls out of the container.
    :param encrypt_traffic: between the containers of one training job.
    :param output_kms_key_id: key of the models.
    :param output_compression: ``GZIP`` or ``NONE``.
    :param name: required where there are several definitions, as are ``objective`` and ``ranges`` then.
    :param objective: of this definition.
    :param ranges: the hyperparameters that this definition searches.
    """

    image: Annotated[str | None, _At("AlgorithmSpecification.TrainingImage")] = None
    algorithm_name: Annotated[str | None, _At("AlgorithmSpecification.AlgorithmName")] = None
    role: Annotated[str, _At("RoleArn")]
    output_path: Annotated[str, _At("OutputDataConfig.S3OutputPath")]
    resources: Resources | Sequence[Resources] | Mapping[str, Any]
    volume_kms_key_id: str | None = None
    inputs: Annotated[
        Sequence[InputChannel | Mapping[str, Any]],
        _At("InputDataConfig", _ListOf(_Part(InputChannel, raw=True))),
    ] = ()
    input_mode: Annotated[str, _At("AlgorithmSpecification.TrainingInputMode")] = "File"
    static_hyperparameters: Annotated[
        Mapping[str, str | float] | None, _At("StaticHyperParameters", _MapOf(_NUMBER))
    ] = None
    metric_definitions: Annotated[
        Sequence[MetricDefinition],
        _At("AlgorithmSpecification.MetricDefinitions", _ListOf(_Part(MetricDefinition))),
    ] = ()
    max_runtime: Annotated[
        timedelta | int | str | None, _At("StoppingCondition.MaxRuntimeInSeconds", _SECONDS)
    ] = None
    max_wait: Annotated[
        timedelta | int | str | None, _At("StoppingCondition.MaxWaitTimeInSeconds", _SECONDS)
    ] = None
    max_pending: Annotated[
        timedelta | int | str | None, _At("StoppingCondition.MaxPendingTimeInSeconds", _SECONDS)
    ] = None
    spot: Annotated[bool | str | None, _At("EnableManagedSpotTraining", _FLAG)] = None
    checkpoint: Annotated[Checkpoint | None, _At("CheckpointConfig", _Part(Checkpoint))] = None
    retries: Annotated[int | str | None, _At("RetryStrategy.MaximumRetryAttempts", _COUNT)] = None
    environment: Annotated[Mapping[str, str | float] | None, _At("Environment", _MapOf(_NUMBER))] = None
    vpc: Annotated[Vpc | None, _At("VpcConfig", _Part(Vpc))] = None
    network_isolation: Annotated[bool | str | None, _At("EnableNetworkIsolation", _FLAG)] = None
    encrypt_traffic: Annotated[bool | str | None, _At("EnableInterContainerTrafficEncryption", _FLAG)] = None
    output_kms_key_id: Annotated[str | None, _At("OutputDataConfig.KmsKeyId")] = None
    output_compression: Annotated[str | None, _At("OutputDataConfig.CompressionType")] = None
    name: Annotated[str | None, _At("DefinitionName")] = None
    objective: Annotated[Objective | None, _At("TuningObjective", _Part(Objective))] = None
    ranges: Annotated[Sequence[Range] | None, _At("HyperParameterRanges", _Ranges())] = None

    def _written(self, path: str, problems: list[AmtFieldError]) -> dict[str, Any]:
        # Named: a dataclass with slots is another class than the one that super() without arguments sees.
        written = _Structure._written(self, path, problems)
        # Required, also where AMT's own defaults are taken.
        written.setdefault("StoppingCondition", {})
        prefix = f"{path}." if path else ""
        if isinstance(self.resources, (list, tuple)):
            holder: dict[str, Any] = {
                "InstanceConfigs": _ListOf(_Part(Resources)).to_api(
                    self.resources, f"{prefix}{_LISTED_RESOURCES}.InstanceConfigs", problems
                ),
                "AllocationStrategy": "Prioritized",
            }
            place = _LISTED_RESOURCES
        else:
            place = _ONE_RESOURCE
            holder = (
                _Part(Resources, raw=True).to_api(self.resources, f"{prefix}{_ONE_RESOURCE}", problems) or {}
            )
        if self.volume_kms_key_id is not None:
            key = _TEXT.to_api(self.volume_kms_key_id, f"{prefix}{place}.VolumeKmsKeyId", problems)
            if isinstance(self.resources, Mapping):
                problems.append(
                    AmtFieldError(
                        f"{prefix}{place}.VolumeKmsKeyId",
                        key,
                        "resources is a dict, which can carry it",
                        "give it there",
                    )
                )
            holder["VolumeKmsKeyId"] = key
        written[place] = holder
        return written

    @classmethod
    def _read_rest(cls, rest: dict[str, Any], path: str, problems: list[AmtFieldError]) -> dict[str, Any]:
        if rest.get("StoppingCondition") == {}:
            del rest["StoppingCondition"]
        prefix = f"{path}." if path else ""
        one, listed = rest.pop(_ONE_RESOURCE, None), rest.get(_LISTED_RESOURCES)
        if isinstance(one, Mapping):
            found: list[AmtFieldError] = []
            plain = {key: value for key, value in one.items() if key != "VolumeKmsKeyId"}
            # Its defaults are ours, not AMT's: what leaves them out is kept as it is.
            complete = {"InstanceType", "InstanceCount", "VolumeSizeInGB"} <= set(plain)
            read = Resources._read(plain, f"{prefix}{_ONE_RESOURCE}", found) if complete else None
            if read is None:
                return {"resources": one}
            return {"resources": read, "volume_kms_key_id": one.get("VolumeKmsKeyId")}
        if isinstance(listed, dict) and listed.get("AllocationStrategy") == "Prioritized":
            configs = listed.pop("InstanceConfigs", None)
            key = listed.pop("VolumeKmsKeyId", None)
            del listed["AllocationStrategy"]
            if not listed:
                del rest[_LISTED_RESOURCES]
            return {
                "resources": _ListOf(_Part(Resources)).from_api(
                    configs, f"{prefix}{_LISTED_RESOURCES}.InstanceConfigs", problems
                ),
                "volume_kms_key_id": key,
            }
        problems.append(
            AmtFieldError(
                f"{prefix}{_ONE_RESOURCE}",
                one,
                f"{_ONE_RESOURCE}, or {_LISTED_RESOURCES} with InstanceConfigs and AllocationStrategy "
                "'Prioritized', is required",
                "add one of them, or pass the request as a dict",
            )
        )
        return {"resources": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningJobRequest(_Structure):
    """A whole ``CreateHyperParameterTuningJob`` request.

    It is checked when it is made: types, and the documented rules as far as templates leave them decided.

    :param strategy: how the next hyperparameters are chosen.
    :param training: the training jobs; a list of definitions tunes several algorithms in one tuning job.
    :param objective: what is optimised, unless each definition has its own.
    :param ranges: the hyperparameters to search, unless each definition has its own.
    :param max_parallel_training_jobs: at the same time.
    :param criteria: when AMT shall end the tuning job. Criteria with templates go to the operator's
        ``criteria``.
    :param warm_start: tuning jobs to start from.
    :param early_stopping: whether AMT may stop training jobs that are not promising.
    :param random_seed: makes the choices repeatable.
    :param hyperband: resources of the Hyperband strategy.
    :param autotune: whether AMT finds ranges and limits by itself.
    :param tags: of the tuning job and its training jobs.
    :param name: of the tuning job; left out, the operator derives one.
    :raises AmtRequestError: one or more fields are wrong; all of them are listed, by their path in the API.
    """

    strategy: Annotated[Strategy | str, _At(f"{_CONFIG}.Strategy")]
    training: TrainingJobDefinition | Sequence[TrainingJobDefinition]
    objective: Annotated[
        Objective | None, _At(f"{_CONFIG}.HyperParameterTuningJobObjective", _Part(Objective))
    ] = None
    ranges: Annotated[Sequence[Range], _At(f"{_CONFIG}.ParameterRanges", _Ranges())] = ()
    max_parallel_training_jobs: Annotated[
        int | str, _At(f"{_CONFIG}.ResourceLimits.MaxParallelTrainingJobs", _COUNT)
    ] = 1
    criteria: CompletionCriteria = field(default_factory=CompletionCriteria)
    warm_start: Annotated[WarmStart | None, _At("WarmStartConfig", _Part(WarmStart))] = None
    early_stopping: Annotated[
        bool | str | None, _At(f"{_CONFIG}.TrainingJobEarlyStoppingType", _Switch("Auto", "Off"))
    ] = None
    random_seed: Annotated[int | str | None, _At(f"{_CONFIG}.RandomSeed", _COUNT)] = None
    hyperband: Annotated[
        Hyperband | None, _At(f"{_CONFIG}.StrategyConfig.HyperbandStrategyConfig", _Part(Hyperband))
    ] = None
    autotune: Annotated[bool | str | None, _At("Autotune.Mode", _Switch("Enabled", None))] = None
    tags: Annotated[Mapping[str, str] | None, _At("Tags", _Tags())] = None
    name: Annotated[str | None, _At("HyperParameterTuningJobName")] = None

    def __post_init__(self) -> None:
        problems: list[AmtFieldError] = []
        request = self._written("", problems)
        named = {problem.field for problem in problems}
        documented = decided(check_documented_rules(request), request)
        problems += [problem for problem in documented if problem.field not in named]
        if problems:
            raise AmtRequestError(problems)

    def _written(self, path: str, problems: list[AmtFieldError]) -> dict[str, Any]:
        written = _Structure._written(self, path, problems)
        criteria: Any = self.criteria
        if isinstance(criteria, CompletionCriteria):
            written[_CONFIG] = criteria.merge_into(written.get(_CONFIG) or {})
        else:
            problems.append(
                AmtFieldError(
                    "criteria",
                    criteria,
                    "it must be CompletionCriteria",
                    "give criteria with templates to the operator instead",
                )
            )
        if isinstance(self.training, (list, tuple)):
            place, form = "TrainingJobDefinitions", _ListOf(_Part(TrainingJobDefinition))
            written[place] = form.to_api(self.training, place, problems)
        else:
            place = "TrainingJobDefinition"
            written[place] = _Part(TrainingJobDefinition).to_api(self.training, place, problems)
        return written

    @classmethod
    def _read_rest(cls, rest: dict[str, Any], path: str, problems: list[AmtFieldError]) -> dict[str, Any]:
        del path  # a request is no part of anything
        values: dict[str, Any] = {}
        config = rest.get(_CONFIG) or {}
        try:
            values["criteria"] = CompletionCriteria.from_request(config)
        except AmtRequestError as error:
            problems.extend(error.problems)
        for place in API_PATHS.values():
            _take(rest, place)
        one, several = rest.pop("TrainingJobDefinition", None), rest.pop("TrainingJobDefinitions", None)
        if several is None:
            part = _Part(TrainingJobDefinition)
            values["training"] = part.from_api(one, "TrainingJobDefinition", problems)
        elif one is None:
            parts = _ListOf(_Part(TrainingJobDefinition))
            values["training"] = parts.from_api(several, "TrainingJobDefinitions", problems)
        else:
            problems.append(
                AmtFieldError(
                    "TrainingJobDefinitions",
                    "both TrainingJobDefinition and TrainingJobDefinitions",
                    "exactly one of the two is allowed",
                    "keep one of the two",
                )
            )
        return values
