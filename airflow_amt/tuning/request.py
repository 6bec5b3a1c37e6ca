"""What AMT's documentation asks of a ``CreateHyperParameterTuningJob`` request beyond the service model.

The service model's own rules (required, lengths, patterns, enums, ranges) are checked by
:mod:`airflow_amt.service_model`; here are those that relate fields to each other, and those limits that the
documentation states in words only. Sources: SageMaker API reference of the structures named, and the
developer guide's pages on automatic model tuning. What AWS is only said to refuse, elsewhere, is not refused
here: a request that AWS takes must pass.

What relates a request to the tuning jobs that it starts from is in :mod:`airflow_amt.tuning.warm_start`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.criteria import CompletionCriteria

#: Most training jobs of one tuning job by strategy (developer guide, "Resource limits for automatic model
#: tuning"), at what the quota can be raised to. The guide excepts Random alone: Grid has the general 750.
MAX_TRAINING_JOBS = {"Bayesian": 750, "Random": 10_000, "Grid": 750, "Hyperband": 750}
#: Most hyperparameters that one tuning job may search over (developer guide, quotas).
MAX_TUNED_HYPERPARAMETERS = 30
#: Most hyperparameters of one training job, static and tuned (developer guide, "Define Hyperparameter
#: Ranges"); :data:`OBJECTIVE_HYPERPARAMETER` counts.
MAX_HYPERPARAMETERS = 100
#: The hyperparameter that AMT adds to each training job: the name of the objective metric.
OBJECTIVE_HYPERPARAMETER = "_tuning_objective_metric"
#: Most resources (as epochs) of Hyperband (API, ``HyperbandStrategyConfig``).
MAX_HYPERBAND_RESOURCE = 20_000
#: Static hyperparameters from which Hyperband's ``MaxResource`` is inferred, in this order (same place).
MAX_RESOURCE_KEYS = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")
#: Longest run of a training job: 28 days (API, ``StoppingCondition``).
MAX_TRAINING_SECONDS = 28 * 24 * 3600
#: How long a training job may run where ``MaxRuntimeInSeconds`` is left out: a day (same place).
DEFAULT_MAX_TRAINING_SECONDS = 24 * 3600
#: Most environment variables of all training job definitions together (API,
#: ``HyperParameterTrainingJobDefinition``).
MAX_ENVIRONMENT_VARIABLES = 48
#: Most tuning jobs that one can start from (API, ``HyperParameterTuningJobWarmStartConfig``).
MAX_PARENTS = 5
#: Keys of tags that begin with it are AWS's own.
RESERVED_TAG_PREFIX = "aws:"
#: The kinds of ranges whose bounds or values are stated.
RANGE_KINDS = ("IntegerParameterRanges", "ContinuousParameterRanges", "CategoricalParameterRanges")

_CONFIG = "HyperParameterTuningJobConfig"
_HYPERBAND = f"{_CONFIG}.StrategyConfig.HyperbandStrategyConfig"


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


def objective(
    request: Mapping[str, Any], definition: Mapping[str, Any], path: str
) -> tuple[str, Mapping[str, Any]]:
    """Return the objective that a definition is tuned for, its own or that of the config, with its path."""
    own = definition.get("TuningObjective")
    if own is not None:
        return f"{path}.TuningObjective", _mapping(own)
    shared = _mapping(request.get(_CONFIG)).get("HyperParameterTuningJobObjective")
    return f"{_CONFIG}.HyperParameterTuningJobObjective", _mapping(shared)


def hyperband_resources(request: Mapping[str, Any], definition: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the least and the most resources (as epochs) that Hyperband gives a training job.

    ``MinResource`` is 1 where it is left out; ``MaxResource`` is inferred from the static hyperparameters
    then (:data:`MAX_RESOURCE_KEYS`).

    :param request: a create request or a description.
    :param definition: one of its training job definitions.
    :return: ``None`` if ``MaxResource`` is neither given nor to be inferred.
    """
    config = _hyperband_config(request)
    most = config.get("MaxResource")
    if not _is_count(most):
        inferred = _inferred_max_resource(definition)
        if inferred is None:
            return None
        _, most = inferred
    least = config.get("MinResource")
    return (least if _is_count(least) else 1), most


def unquoted(text: str) -> str:
    """Return what a static hyperparameter says: clients of script mode write text as JSON, in quotes."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


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


def is_endless(request: Mapping[str, Any]) -> bool:
    """Whether neither a number of training jobs nor a runtime limits the tuning job.

    Other criteria may never be met. AMT computes the number for a grid, and with Autotune it sets the limits
    itself.
    """
    config = _mapping(request.get(_CONFIG))
    limits = _mapping(config.get("ResourceLimits"))
    limited = any(limits.get(key) is not None for key in ("MaxNumberOfTrainingJobs", "MaxRuntimeInSeconds"))
    return not limited and config.get("Strategy") != "Grid" and request.get("Autotune") is None


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
    problems += _time_limit_problems("", request)
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
        yield from _definition_problems(request, path, definition, builtin_algorithms)
    yield from tag_problems(request.get("Tags"))


def tag_problems(tags: Any, path: str = "Tags") -> Iterator[AmtFieldError]:
    """List what is wrong with tags: a reserved key, or one that is given twice.

    Keys are unique per resource (API, ``Tag``) and those that begin with ``aws:``, in any case, are AWS's
    own (AWS General Reference, tagging). How many there may be, how long and of what characters is in the
    service model.

    :param tags: a list of ``Tag`` structures.
    :param path: where they are in the request.
    """
    seen: set[str] = set()
    for position, tag in enumerate(_mappings(tags)):
        key = tag.get("Key")
        if not isinstance(key, str):
            continue
        if key.lower().startswith(RESERVED_TAG_PREFIX):
            yield AmtFieldError(
                f"{path}[{position}].Key",
                key,
                f"keys that begin with {RESERVED_TAG_PREFIX!r} are reserved",
                "choose another key",
            )
        if key in seen:
            yield AmtFieldError(
                f"{path}[{position}].Key", key, "each key may be given once", "remove the duplicate"
            )
        seen.add(key)


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
    yield from _hyperband_problems(request, strategy)
    if strategy == "Grid":
        yield from _grid_problems(request, config)
    if request.get("WarmStartConfig") is not None and strategy not in (None, "Bayesian", "Random"):
        yield AmtFieldError(
            "WarmStartConfig",
            f"Strategy {strategy}",
            "warm start works with the Bayesian and Random strategies only",
            "choose one of these strategies, or remove WarmStartConfig",
        )
    yield from parent_problems(request)


def parent_problems(request: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    """List what is wrong with the parents of a warm start, as far as the request alone can tell.

    Names are not case-sensitive. (API, ``HyperParameterTuningJobWarmStartConfig``.)
    """
    parents = _mapping(request.get("WarmStartConfig")).get("ParentHyperParameterTuningJobs")
    path = "WarmStartConfig.ParentHyperParameterTuningJobs"
    seen: set[str] = set()
    for position, parent in enumerate(_mappings(parents)):
        name = parent.get("HyperParameterTuningJobName")
        if name is None:
            yield AmtFieldError(
                f"{path}[{position}].HyperParameterTuningJobName",
                None,
                "a parent is named by it",
                "give the name of the tuning job to start from",
            )
        elif isinstance(name, str) and name.lower() in seen:
            yield AmtFieldError(
                f"{path}[{position}].HyperParameterTuningJobName",
                name,
                "each parent may be given once",
                "remove the duplicate",
            )
        elif isinstance(name, str):
            seen.add(name.lower())
    if isinstance(parents, (list, tuple)) and len(parents) > MAX_PARENTS:
        yield AmtFieldError(
            path,
            f"{len(parents)} parents",
            f"at most {MAX_PARENTS} tuning jobs can be started from",
            "keep the most useful ones",
        )


def _hyperband_problems(request: Mapping[str, Any], strategy: Any) -> Iterator[AmtFieldError]:
    config = _hyperband_config(request)
    least, most = config.get("MinResource"), config.get("MaxResource")
    for key, value in (("MinResource", least), ("MaxResource", most)):
        if _is_count(value) and value > MAX_HYPERBAND_RESOURCE:
            yield AmtFieldError(
                f"{_HYPERBAND}.{key}",
                value,
                f"it must be {MAX_HYPERBAND_RESOURCE} or less",
                f"set it to {MAX_HYPERBAND_RESOURCE} or less",
            )
    sources = [("MaxResource", most)] if _is_count(most) else []
    if strategy == "Hyperband" and most is None:
        for path, definition in training_job_definitions(request):
            inferred = _inferred_max_resource(definition)
            if inferred is None:
                yield AmtFieldError(
                    f"{_HYPERBAND}.MaxResource",
                    None,
                    "the Hyperband strategy needs it where it cannot be inferred from a positive whole "
                    f"number in {path}.StaticHyperParameters ({', '.join(MAX_RESOURCE_KEYS)})",
                    "set it to the most epochs that a training job may run",
                )
                continue
            key, epochs = inferred
            sources.append((f"{path}.StaticHyperParameters.{key}", epochs))
            if epochs > MAX_HYPERBAND_RESOURCE:
                yield AmtFieldError(
                    f"{path}.StaticHyperParameters.{key}",
                    epochs,
                    "Hyperband's MaxResource is inferred from it and must be "
                    f"{MAX_HYPERBAND_RESOURCE} or less",
                    f"lower it, or set MaxResource to {MAX_HYPERBAND_RESOURCE} or less",
                )
    for source, limit in sources:
        if _is_count(least) and limit <= least <= MAX_HYPERBAND_RESOURCE:
            yield AmtFieldError(
                f"{_HYPERBAND}.MinResource",
                least,
                f"it must be below {source} ({limit})",
                f"lower MinResource or raise {source}",
            )


def _hyperband_config(request: Mapping[str, Any]) -> Mapping[str, Any]:
    config = _mapping(request.get(_CONFIG))
    return _mapping(_mapping(config.get("StrategyConfig")).get("HyperbandStrategyConfig"))


def _inferred_max_resource(definition: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the static hyperparameter that Hyperband's ``MaxResource`` is inferred from, and its value."""
    static = _mapping(definition.get("StaticHyperParameters"))
    for key in MAX_RESOURCE_KEYS:
        text = static.get(key)
        number = parse_bound(unquoted(text), integer=True) if isinstance(text, str) else None
        if number is not None and number >= 1:
            return key, int(number)
    return None


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
    several = [pair for pair in definitions if pair[0] != "TrainingJobDefinition"]
    for path, definition in several:
        for key in ("DefinitionName", "TuningObjective", "HyperParameterRanges"):
            if definition.get(key) is None:
                yield AmtFieldError(
                    f"{path}.{key}",
                    None,
                    "it is required in each of several training job definitions",
                    f"add {key} to this definition",
                )
    if len(several) <= 1:  # one algorithm, in a list of its own: nothing below is about that
        return
    names = Counter(
        name for _, definition in several if isinstance(name := definition.get("DefinitionName"), str)
    )
    for name, count in names.items():
        if count > 1:
            yield AmtFieldError(
                "TrainingJobDefinitions", name, "each DefinitionName must be unique", "rename one of them"
            )
    yield from _shared_objective_problems(several)
    variables = sum(len(_mapping(definition.get("Environment"))) for _, definition in several)
    if variables > MAX_ENVIRONMENT_VARIABLES:
        yield AmtFieldError(
            "TrainingJobDefinitions",
            f"{variables} environment variables",
            f"all definitions together may have {MAX_ENVIRONMENT_VARIABLES} entries in Environment",
            "remove some",
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


def _shared_objective_problems(
    several: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[AmtFieldError]:
    """List the objectives whose direction is another than that of the first definition.

    The tuning job has one best training job over all definitions; which is better must be decidable.
    """
    first: tuple[str, str] | None = None
    for path, definition in several:
        kind = _mapping(definition.get("TuningObjective")).get("Type")
        if not isinstance(kind, str):
            continue
        if first is None:
            first = (path, kind)
        elif kind != first[1]:
            yield AmtFieldError(
                f"{path}.TuningObjective.Type",
                kind,
                f"it must be that of {first[0]} ({first[1]}), so that one best training job can be told",
                "give all definitions one Type, or tune them in two tuning jobs",
            )


def _definition_problems(
    request: Mapping[str, Any],
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
        yield from _metric_problems(request, path, definition, builtin_algorithms)
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
    yield from _instance_config_problems(path, definition)
    yield from _time_limit_problems(f"{path}.", definition)
    ranges_path, ranges = parameter_ranges(request, definition, path)
    static = _mapping(definition.get("StaticHyperParameters"))
    yield from _range_problems(ranges_path, ranges, static, f"{path}.StaticHyperParameters")
    autotune = _mapping(request.get("Autotune")).get("Mode") == "Enabled"
    if ranges.get("AutoParameters") and not autotune:
        yield AmtFieldError(
            f"{ranges_path}.AutoParameters",
            [one.get("Name") for one in _mappings(ranges["AutoParameters"])],
            "only Autotune finds ranges by itself",
            "set Autotune.Mode to Enabled, or give these hyperparameters ranges",
        )
    if not autotune and not any(ranges.get(kind) for kind in (*RANGE_KINDS, "AutoParameters")):
        yield AmtFieldError(
            ranges_path,
            dict(ranges) or None,
            "at least one hyperparameter to tune is required",
            "add an integer, continuous or categorical range",
        )
    names = {*static, *tuned_names(ranges), OBJECTIVE_HYPERPARAMETER}
    if len(names) > MAX_HYPERPARAMETERS:
        yield AmtFieldError(
            f"{path}.StaticHyperParameters",
            f"{len(names)} hyperparameters",
            f"static and tuned ones together, with AMT's own {OBJECTIVE_HYPERPARAMETER}, may be "
            f"{MAX_HYPERPARAMETERS} at most",
            "remove some",
        )


def tuned_names(ranges: Mapping[str, Any]) -> list[str]:
    """Return the names of the hyperparameters in ``ParameterRanges``, those of Autotune included."""
    return [
        one["Name"]
        for kind in (*RANGE_KINDS, "AutoParameters")
        for one in _mappings(ranges.get(kind))
        if isinstance(one.get("Name"), str)
    ]


def _metric_problems(
    request: Mapping[str, Any], path: str, definition: Mapping[str, Any], builtin_algorithms: bool
) -> Iterator[AmtFieldError]:
    algorithm = _mapping(definition.get("AlgorithmSpecification"))
    objective_path, wanted = objective(request, definition, path)
    metric = wanted.get("MetricName")
    if not wanted and path == "TrainingJobDefinition":
        yield AmtFieldError(
            objective_path, None, "an objective metric is required", "give its Type and MetricName"
        )
    definitions = _mappings(algorithm.get("MetricDefinitions"))
    yield from _regex_problems(f"{path}.", algorithm)
    names = [one.get("Name") for one in definitions]
    # An algorithm resource, like AWS's own algorithms, brings its metrics along.
    brings_metrics = builtin_algorithms or bool(algorithm.get("AlgorithmName"))
    if isinstance(metric, str) and metric not in names and (names or not brings_metrics):
        yield AmtFieldError(
            f"{objective_path}.MetricName",
            metric,
            f"the objective must be one of the MetricDefinitions ({', '.join(map(str, names)) or 'none'})",
            f"add a metric definition named {metric} to {path}.AlgorithmSpecification.MetricDefinitions",
        )


def _instance_config_problems(path: str, definition: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    """List what ``InstanceConfigs`` excludes (API, ``HyperParameterTuningResourceConfig``)."""
    resources = _mapping(definition.get("HyperParameterTuningResourceConfig"))
    if resources.get("InstanceConfigs") is None:
        return
    for key in ("InstanceType", "InstanceCount", "VolumeSizeInGB"):
        if resources.get(key) is not None:
            yield AmtFieldError(
                f"{path}.HyperParameterTuningResourceConfig.{key}",
                resources[key],
                "it must be left out where InstanceConfigs is given",
                f"keep {key} in each of InstanceConfigs only",
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


def _time_limit_problems(prefix: str, definition: Mapping[str, Any]) -> Iterator[AmtFieldError]:
    stopping = _mapping(definition.get("StoppingCondition"))
    runtime, wait = stopping.get("MaxRuntimeInSeconds"), stopping.get("MaxWaitTimeInSeconds")
    if _is_count(runtime) and runtime > MAX_TRAINING_SECONDS:
        yield AmtFieldError(
            f"{prefix}StoppingCondition.MaxRuntimeInSeconds",
            runtime,
            f"a training job may run for {MAX_TRAINING_SECONDS} seconds (28 days) at most",
            f"set it to {MAX_TRAINING_SECONDS} or less",
        )
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
    for kind in RANGE_KINDS:
        for position, one in enumerate(_mappings(ranges.get(kind))):
            where = f"{path}.{kind}[{position}]"
            if kind == "CategoricalParameterRanges":
                yield from _categorical_problems(where, one)
            else:
                yield from _numeric_problems(where, one, integer=kind == "IntegerParameterRanges")
    for name, count in Counter(tuned_names(ranges)).items():
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
    stated = sum(len(_mappings(ranges.get(kind))) for kind in RANGE_KINDS)
    if stated > MAX_TUNED_HYPERPARAMETERS:
        yield AmtFieldError(
            path,
            f"{stated} ranges",
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
    if "_" in text:  # Python's own way to group digits
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
