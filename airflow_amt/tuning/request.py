"""What AMT's documentation asks of a ``CreateHyperParameterTuningJob`` request beyond the service model.

The service model's own rules (required, lengths, patterns, enums, ranges) are checked by
:mod:`airflow_amt.service_model`; here are those that relate fields to each other. Sources: SageMaker API
reference of the structures named, and the developer guide's pages on automatic model tuning.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.criteria import CompletionCriteria

#: Most hyperparameters that one tuning job may search over (developer guide, quotas).
MAX_TUNED_HYPERPARAMETERS = 30

_CONFIG = "HyperParameterTuningJobConfig"
_RANGE_KINDS = ("IntegerParameterRanges", "ContinuousParameterRanges", "CategoricalParameterRanges")


def training_job_definitions(request: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the training job definitions of a request or description, each with its path in the API."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    single = request.get("TrainingJobDefinition")
    if isinstance(single, Mapping):
        found.append(("TrainingJobDefinition", single))
    several = request.get("TrainingJobDefinitions")
    if isinstance(several, (list, tuple)):
        found += [
            (f"TrainingJobDefinitions[{position}]", definition)
            for position, definition in enumerate(several)
            if isinstance(definition, Mapping)
        ]
    return found


def parameter_ranges(
    request: Mapping[str, Any], definition: Mapping[str, Any], path: str
) -> tuple[str, Mapping[str, Any]]:
    """Return the ranges that a definition searches, its own or those of the config, with their path."""
    own = definition.get("HyperParameterRanges")
    if isinstance(own, Mapping):
        return f"{path}.HyperParameterRanges", own
    ranges = _mapping(_mapping(request.get(_CONFIG)).get("ParameterRanges"))
    return f"{_CONFIG}.ParameterRanges", ranges


def search_space_size(request: Mapping[str, Any]) -> int | None:
    """Return how many combinations a request or description can try, ``None`` if there is no end to them.

    Finite are categorical and integer ranges; one continuous or automatic range makes it endless. Several
    definitions add up. Ranges that cannot be read count as endless.
    """
    total = 0
    for path, definition in training_job_definitions(request):
        _, ranges = parameter_ranges(request, definition, path)
        size = _combinations(ranges)
        if size is None:
            return None
        total += size
    return total or None


def estimated_max_compute(request: Mapping[str, Any]) -> int | None:
    """Return the most compute the tuning job can use, in instance-seconds, or ``None`` without a limit.

    The developer guide's formula: ``MaxRuntimeInSeconds`` * ``MaxParallelTrainingJobs`` *
    ``MaxInstancesPerTrainingJob``. With several training job definitions the one with most instances
    counts, since all parallel training jobs may be of that definition.

    :param request: a create request or a description.
    """
    limits = _mapping(_mapping(request.get(_CONFIG)).get("ResourceLimits"))
    runtime, parallel = limits.get("MaxRuntimeInSeconds"), limits.get("MaxParallelTrainingJobs")
    if not _is_count(runtime) or not _is_count(parallel):
        return None
    instances = max(
        (_instances(definition) for _, definition in training_job_definitions(request)), default=1
    )
    return runtime * parallel * instances


def _instances(definition: Mapping[str, Any]) -> int:
    """Return the most instances that one training job of this definition uses, at least 1."""
    counts: list[int] = [1]
    resources = _mapping(definition.get("ResourceConfig"))
    tuning_resources = _mapping(definition.get("HyperParameterTuningResourceConfig"))
    for holder in (resources, tuning_resources, *_mappings(tuning_resources.get("InstanceConfigs"))):
        count = holder.get("InstanceCount")
        if _is_count(count):
            counts.append(count)
    groups = [group.get("InstanceCount") for group in _mappings(resources.get("InstanceGroups"))]
    counts.append(sum(count for count in groups if _is_count(count)))
    return max(counts)


def check_documented_rules(
    request: Mapping[str, Any], *, builtin_algorithms: bool = True
) -> list[AmtFieldError]:
    """List the ways in which a create request breaks a documented rule that the service model lacks.

    Parts that are missing or of a wrong type are passed over: the check of the service model names those.

    :param request: ``CreateHyperParameterTuningJob`` parameters.
    :param builtin_algorithms: whether a training image without ``MetricDefinitions`` may be one of AWS's
        own algorithms, which bring their metrics along.
    :return: the problems, in the order of the request; empty if there are none.
    """
    return list(_problems(request, builtin_algorithms))


def check_training_job(request: Mapping[str, Any]) -> list[AmtFieldError]:
    """List the ways in which a ``CreateTrainingJob`` request breaks a documented rule that the model lacks.

    :param request: ``CreateTrainingJob`` parameters that fit the service model.
    """
    problems = []
    algorithm = _mapping(request.get("AlgorithmSpecification"))
    named = [key for key in ("TrainingImage", "AlgorithmName") if algorithm.get(key)]
    if len(named) != 1:
        problems.append(
            AmtFieldError(
                "AlgorithmSpecification.TrainingImage",
                " and ".join(named) or None,
                "exactly one of TrainingImage and AlgorithmName is required",
                "give the training image's URI",
            )
        )
    problems += _regex_problems("", algorithm)
    problems += _spot_problems("", request)
    return problems


def _problems(request: Mapping[str, Any], builtin_algorithms: bool) -> Iterator[AmtFieldError]:
    config = _mapping(request.get(_CONFIG))
    try:
        CompletionCriteria.from_request(
            {
                "ResourceLimits": _mapping(config.get("ResourceLimits")),
                "TuningJobCompletionCriteria": _mapping(config.get("TuningJobCompletionCriteria")),
            }
        )
    except AmtRequestError as error:
        yield from error.problems
    yield from _strategy_problems(request, config)
    definitions = training_job_definitions(request)
    if request.get("TrainingJobDefinition") is not None and request.get("TrainingJobDefinitions") is not None:
        yield AmtFieldError(
            "TrainingJobDefinitions",
            "both TrainingJobDefinition and TrainingJobDefinitions",
            "exactly one of TrainingJobDefinition and TrainingJobDefinitions is allowed",
            "keep one of the two",
        )
    elif request.get("TrainingJobDefinition") is None and request.get("TrainingJobDefinitions") is None:
        yield AmtFieldError(
            "TrainingJobDefinition",
            None,
            "exactly one of TrainingJobDefinition and TrainingJobDefinitions is required",
            "add a TrainingJobDefinition",
        )
    yield from _several_definitions_problems(request, config, definitions)
    for path, definition in definitions:
        yield from _definition_problems(request, config, path, definition, builtin_algorithms)


def _strategy_problems(request: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    strategy = config.get("Strategy")
    early_stopping = config.get("TrainingJobEarlyStoppingType")
    if strategy == "Hyperband" and early_stopping == "Auto":
        yield AmtFieldError(
            f"{_CONFIG}.TrainingJobEarlyStoppingType",
            early_stopping,
            "Hyperband has its own early stopping: it must be Off",
            "set it to Off or leave it out",
        )
    if config.get("StrategyConfig") is not None and strategy != "Hyperband":
        yield AmtFieldError(
            f"{_CONFIG}.StrategyConfig",
            config["StrategyConfig"],
            "it is allowed with the Hyperband strategy only",
            "remove it, or set Strategy to Hyperband",
        )
    hyperband = _mapping(_mapping(config.get("StrategyConfig")).get("HyperbandStrategyConfig"))
    least, most = hyperband.get("MinResource"), hyperband.get("MaxResource")
    if _is_count(least) and _is_count(most) and least >= most:
        yield AmtFieldError(
            f"{_CONFIG}.StrategyConfig.HyperbandStrategyConfig.MinResource",
            least,
            f"it must be below MaxResource ({most})",
            "lower MinResource or raise MaxResource",
        )
    if strategy == "Grid":
        yield from _grid_problems(request, config)
    if request.get("WarmStartConfig") is not None and strategy not in (None, "Bayesian", "Random"):
        yield AmtFieldError(
            "WarmStartConfig",
            f"Strategy {strategy}",
            "warm start works with the Bayesian and Random strategies only",
            "choose one of these strategies, or remove WarmStartConfig",
        )


def _grid_problems(request: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    categorical_only = True
    for path, definition in training_job_definitions(request):
        ranges_path, ranges = parameter_ranges(request, definition, path)
        for kind in ("IntegerParameterRanges", "ContinuousParameterRanges"):
            if ranges.get(kind):
                categorical_only = False
                yield AmtFieldError(
                    f"{ranges_path}.{kind}",
                    [one.get("Name") for one in _mappings(ranges[kind])],
                    "the Grid strategy takes categorical ranges only",
                    "list the values to try in CategoricalParameterRanges",
                )
    size = search_space_size(request) if categorical_only else None
    most = _mapping(config.get("ResourceLimits")).get("MaxNumberOfTrainingJobs")
    if size is not None and _is_count(most) and most != size:
        yield AmtFieldError(
            f"{_CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs",
            most,
            f"with the Grid strategy it must equal the number of combinations, {size}",
            "leave it out: AMT computes it",
        )


def _several_definitions_problems(
    request: Mapping[str, Any],
    config: Mapping[str, Any],
    definitions: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[AmtFieldError]:
    if not request.get("TrainingJobDefinitions"):
        return
    for path, definition in definitions:
        for key in ("DefinitionName", "TuningObjective", "HyperParameterRanges"):
            if path != "TrainingJobDefinition" and definition.get(key) is None:
                yield AmtFieldError(
                    f"{path}.{key}",
                    None,
                    "it is required in each of several training job definitions",
                    f"add {key} to this definition",
                )
    names = Counter(definition.get("DefinitionName") for _, definition in definitions)
    for name, count in names.items():
        if name is not None and count > 1:
            yield AmtFieldError(
                "TrainingJobDefinitions", name, "each DefinitionName must be unique", "rename one of them"
            )
    if config.get("TrainingJobEarlyStoppingType") == "Auto":
        yield AmtFieldError(
            f"{_CONFIG}.TrainingJobEarlyStoppingType",
            "Auto",
            "early stopping is not available with several training job definitions",
            "set it to Off or leave it out",
        )
    if request.get("WarmStartConfig") is not None:
        yield AmtFieldError(
            "WarmStartConfig",
            "with TrainingJobDefinitions",
            "warm start is not available with several training job definitions",
            "remove WarmStartConfig, or tune one definition",
        )


def _definition_problems(
    request: Mapping[str, Any],
    config: Mapping[str, Any],
    path: str,
    definition: Mapping[str, Any],
    builtin_algorithms: bool,
) -> Iterator[AmtFieldError]:
    algorithm = _mapping(definition.get("AlgorithmSpecification"))
    if algorithm:
        named = [key for key in ("TrainingImage", "AlgorithmName") if algorithm.get(key)]
        if len(named) != 1:
            yield AmtFieldError(
                f"{path}.AlgorithmSpecification.TrainingImage",
                " and ".join(named) or None,
                "exactly one of TrainingImage and AlgorithmName is required",
                "give the training image's URI",
            )
        yield from _metric_problems(config, path, definition, algorithm, builtin_algorithms)
    resources = [
        key
        for key in ("ResourceConfig", "HyperParameterTuningResourceConfig")
        if definition.get(key) is not None
    ]
    if len(resources) != 1:
        yield AmtFieldError(
            f"{path}.ResourceConfig",
            " and ".join(resources) or None,
            "exactly one of ResourceConfig and HyperParameterTuningResourceConfig is required",
            "give a ResourceConfig with InstanceType, InstanceCount and VolumeSizeInGB",
        )
    yield from _spot_problems(f"{path}.", definition)
    ranges_path, ranges = parameter_ranges(request, definition, path)
    static = _mapping(definition.get("StaticHyperParameters"))
    yield from _range_problems(ranges_path, ranges, static, f"{path}.StaticHyperParameters")
    autotune = _mapping(request.get("Autotune")).get("Mode") == "Enabled"
    if not autotune and not any(ranges.get(kind) for kind in (*_RANGE_KINDS, "AutoParameters")):
        yield AmtFieldError(
            ranges_path,
            dict(ranges) or None,
            "at least one hyperparameter to tune is required",
            "add an integer, continuous or categorical range",
        )


def _metric_problems(
    config: Mapping[str, Any],
    path: str,
    definition: Mapping[str, Any],
    algorithm: Mapping[str, Any],
    builtin_algorithms: bool,
) -> Iterator[AmtFieldError]:
    own, shared = definition.get("TuningObjective"), config.get("HyperParameterTuningJobObjective")
    objective_path = (
        f"{path}.TuningObjective" if own is not None else f"{_CONFIG}.HyperParameterTuningJobObjective"
    )
    metric = _mapping(own if own is not None else shared).get("MetricName")
    if own is None and shared is None and path == "TrainingJobDefinition":
        yield AmtFieldError(
            objective_path, None, "an objective metric is required", "give its Type and MetricName"
        )
    definitions = _mappings(algorithm.get("MetricDefinitions"))
    yield from _regex_problems(f"{path}.", algorithm)
    names = [one.get("Name") for one in definitions]
    if isinstance(metric, str) and metric not in names and (names or not builtin_algorithms):
        yield AmtFieldError(
            f"{objective_path}.MetricName",
            metric,
            f"the objective must be one of the MetricDefinitions ({', '.join(map(str, names)) or 'none'})",
            f"add a metric definition named {metric} to {path}.AlgorithmSpecification.MetricDefinitions",
        )


def _regex_problems(prefix: str, algorithm: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    for position, one in enumerate(_mappings(algorithm.get("MetricDefinitions"))):
        if not isinstance(one.get("Regex"), str):
            continue
        try:
            groups = re.compile(one["Regex"]).groups
        except re.error as error:
            limit = f"it must be a regular expression ({error})"
        else:
            if groups >= 1:
                continue
            limit = "it must have one group that captures the metric's value"
        yield AmtFieldError(
            f"{prefix}AlgorithmSpecification.MetricDefinitions[{position}].Regex",
            one["Regex"],
            limit,
            "write it as in 'accuracy: ([0-9.]+)'",
        )


def _spot_problems(prefix: str, definition: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    stopping = _mapping(definition.get("StoppingCondition"))
    runtime, wait = stopping.get("MaxRuntimeInSeconds"), stopping.get("MaxWaitTimeInSeconds")
    if definition.get("EnableManagedSpotTraining") is True and wait is None:
        yield AmtFieldError(
            f"{prefix}StoppingCondition.MaxWaitTimeInSeconds",
            None,
            "managed spot training needs it",
            "set it to MaxRuntimeInSeconds or more",
        )
    if _is_count(runtime) and _is_count(wait) and wait < runtime:
        yield AmtFieldError(
            f"{prefix}StoppingCondition.MaxWaitTimeInSeconds",
            wait,
            f"it must be MaxRuntimeInSeconds ({runtime}) or more",
            "raise it",
        )


def _range_problems(
    path: str, ranges: Mapping[str, Any], static: Mapping[str, Any], static_path: str
) -> Iterator[AmtFieldError]:
    names: Counter[str] = Counter()
    for kind in _RANGE_KINDS:
        for position, one in enumerate(_mappings(ranges.get(kind))):
            if isinstance(one.get("Name"), str):
                names[one["Name"]] += 1
            where = f"{path}.{kind}[{position}]"
            if kind == "CategoricalParameterRanges":
                yield from _categorical_problems(where, one)
            else:
                yield from _numeric_problems(where, one, integer=kind == "IntegerParameterRanges")
    for name, count in names.items():
        if count > 1:
            yield AmtFieldError(
                path, name, "each hyperparameter may have one range only", f"remove one range of {name}"
            )
        if name in static:
            yield AmtFieldError(
                f"{static_path}.{name}",
                static[name],
                "a hyperparameter is either static or tuned",
                f"remove {name} from StaticHyperParameters, or its range",
            )
    if names.total() > MAX_TUNED_HYPERPARAMETERS:
        yield AmtFieldError(
            path,
            f"{names.total()} ranges",
            f"at most {MAX_TUNED_HYPERPARAMETERS} hyperparameters can be tuned",
            "fix the less important ones in StaticHyperParameters",
        )


def _categorical_problems(path: str, one: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    values = one.get("Values")
    if not isinstance(values, (list, tuple)):
        return
    for value, count in Counter(value for value in values if isinstance(value, str)).items():
        if count > 1:
            yield AmtFieldError(f"{path}.Values", value, "each value may occur once", "remove the duplicate")


def _numeric_problems(path: str, one: Mapping[str, Any], *, integer: bool) -> Iterator[AmtFieldError]:
    bounds: dict[str, float] = {}
    for key in ("MinValue", "MaxValue"):
        text = one.get(key)
        if not isinstance(text, str):
            continue
        number = parse_bound(text, integer=integer)
        if number is None:
            yield AmtFieldError(
                f"{path}.{key}",
                text,
                "it must be a whole number" if integer else "it must be a finite number",
                "write the bound as a decimal number",
            )
        else:
            bounds[key] = number
    if len(bounds) != len(("MinValue", "MaxValue")):
        return
    least, most = bounds["MinValue"], bounds["MaxValue"]
    if least > most:
        yield AmtFieldError(
            f"{path}.MinValue", one["MinValue"], f"it must not exceed MaxValue ({most:g})", "swap the bounds"
        )
    scaling = one.get("ScalingType")
    if scaling == "Logarithmic" and least <= 0:
        yield AmtFieldError(
            f"{path}.MinValue",
            one["MinValue"],
            "logarithmic scaling needs bounds above 0",
            "raise MinValue above 0, or choose Linear scaling",
        )
    if scaling == "ReverseLogarithmic" and integer:
        yield AmtFieldError(
            f"{path}.ScalingType",
            scaling,
            "reverse logarithmic scaling is for continuous ranges only",
            "choose Linear or Logarithmic scaling",
        )
    elif scaling == "ReverseLogarithmic" and (least < 0 or most >= 1):
        outside = "MinValue" if least < 0 else "MaxValue"
        yield AmtFieldError(
            f"{path}.{outside}",
            one[outside],
            "reverse logarithmic scaling needs bounds from 0 to below 1",
            "move the bound into this range, or choose Linear scaling",
        )


def parse_bound(text: str, *, integer: bool) -> float | None:
    """Parse the bound of a range, which the API carries as a string; ``None`` if it is no finite number.

    An integer bound may be written as ``"5"`` or ``"5.0"``.
    """
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or (integer and number != int(number)):
        return None
    return number


def _combinations(ranges: Mapping[str, Any]) -> int | None:
    if ranges.get("ContinuousParameterRanges") or ranges.get("AutoParameters"):
        return None
    total = 1
    for one in _mappings(ranges.get("CategoricalParameterRanges")):
        total *= len(set(one.get("Values") or ()))
    for one in _mappings(ranges.get("IntegerParameterRanges")):
        least = parse_bound(str(one.get("MinValue")), integer=True)
        most = parse_bound(str(one.get("MaxValue")), integer=True)
        if least is None or most is None:
            return None
        total *= max(0, int(most) - int(least) + 1)
    return total


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, (list, tuple)) else []


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
