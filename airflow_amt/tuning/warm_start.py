"""Warm start: which tuning jobs a new one may start from, and what it learns from them.

Source: developer guide, "Run a Warm Start Hyperparameter Tuning Job" (restrictions), and API,
``HyperParameterTuningJobWarmStartConfig``. What the request alone can tell (strategy, one definition, no
parent twice) is also among the documented rules of :mod:`airflow_amt.tuning.request`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.history import finite
from airflow_amt.tuning.request import (
    MAX_TRAINING_JOBS,
    OBJECTIVE_HYPERPARAMETER,
    RANGE_KINDS,
    objective,
    parameter_ranges,
    parent_problems,
    parse_bound,
    training_job_definitions,
    tuned_names,
    unquoted,
)

#: Statuses that a parent may be in.
TERMINAL_STATUSES = ("Completed", "Stopped", "Failed")
#: Most changes between the parents and the new tuning job: tuned hyperparameters that became static, and
#: static ones with another value.
MAX_CHANGES = 10
#: Script mode's own static hyperparameters begin with it: ``sagemaker_program``, ``sagemaker_job_name``.
SCRIPT_MODE_PREFIX = "sagemaker_"

_PARENTS = "WarmStartConfig.ParentHyperParameterTuningJobs"


def check_warm_start(
    request: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any] | None]
) -> list[AmtFieldError]:
    """List the reasons why a tuning job cannot start from the parents that its request names.

    A parent must exist and be over, must have one training job definition and the same objective (metric
    and type); its hyperparameters, static and tuned together, must be those of the new tuning job, a tuned
    one must keep its type, and there is a limit to the number of changes. With
    ``IdenticalDataAndAlgorithm`` the training image and the input data must be the same, too.

    Not counted as hyperparameters are the one that AMT adds (``_tuning_objective_metric``: only a
    description has it) and those of script mode (``sagemaker_*``: the SageMaker SDK writes them, and the
    address of the uploaded script and the name of the job are other ones in each tuning job).

    :param request: ``CreateHyperParameterTuningJob`` parameters that fit the service model.
    :param parents: what ``DescribeHyperParameterTuningJob`` answers for each name in the request's
        ``ParentHyperParameterTuningJobs``; ``None`` for a tuning job that does not exist.
    :return: the problems, in the order of the parents; empty if there are none, or no ``WarmStartConfig``.
    """
    return list(_problems(request, parents))


def prior_evaluations(
    request: Mapping[str, Any], parents: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]
) -> list[tuple[dict[str, str], float]]:
    """Return what the parents of a warm start found out, in terms of the hyperparameters tuned now.

    A hyperparameter that was static in a parent has its static value in all of that parent's training jobs.
    Left out are training jobs without a finite objective, and those in which a hyperparameter that is tuned
    now has no value of its type. Values may lie outside the ranges of the new tuning job, which may be
    other ones than the parents'. Warm start is not recursive: what the parents learned from theirs is not
    among it.

    :param request: ``CreateHyperParameterTuningJob`` parameters with one training job definition.
    :param parents: for each parent what ``DescribeHyperParameterTuningJob`` answers and the
        ``TrainingJobSummaries`` of ``ListTrainingJobsForHyperParameterTuningJob``.
    :return: hyperparameters, as the API writes them, and final objective; in the order given.
    """
    path, definition = training_job_definitions(request)[0]
    _, ranges = parameter_ranges(request, definition, path)
    kinds = _kinds(ranges)
    found: list[tuple[dict[str, str], float]] = []
    for description, summaries in parents:
        static = {
            name: value
            for _, parent in training_job_definitions(description)
            for name, value in (parent.get("StaticHyperParameters") or {}).items()
        }
        for summary in summaries:
            metric = summary.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
            value = finite(metric.get("Value"))
            known = {**static, **(summary.get("TunedHyperParameters") or {})}
            combination = {
                name: text
                for name, kind in kinds.items()
                if (text := _value(known.get(name), kind)) is not None
            }
            if value is not None and len(combination) == len(kinds):
                found.append((combination, value))
    return found


def launched_training_jobs(description: Mapping[str, Any]) -> int:
    """Return how many training jobs a tuning job has launched, from its description.

    Those of all parents count against the limit of training jobs of the new tuning job (API,
    ``HyperParameterTuningJobWarmStartConfig``).
    """
    counters = description.get("TrainingJobStatusCounters") or {}
    return sum(count for count in counters.values() if count is not None)


def check_training_job_limit(
    request: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any] | None]
) -> list[AmtFieldError]:
    """Say whether the training jobs of the parents and of the new tuning job are more than AMT allows.

    AWS refuses that with ``ResourceLimitExceeded``, which no waiting mends. An account may have another
    limit: what is checked is the highest that the developer guide knows.

    :param request: the request, with its warm start.
    :param parents: descriptions by name, as for :func:`check_warm_start`.
    """
    config = request.get("HyperParameterTuningJobConfig") or {}
    most = MAX_TRAINING_JOBS.get(str(config.get("Strategy")))
    wanted = (config.get("ResourceLimits") or {}).get("MaxNumberOfTrainingJobs")
    if most is None or not isinstance(wanted, int):
        return []
    before = sum(launched_training_jobs(one) for one in parents.values() if one is not None)
    if before + wanted <= most:
        return []
    return [
        AmtFieldError(
            "HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs",
            wanted,
            f"at most {max(0, most - before)}: those of all parents ({before}) count towards the limit of "
            f"{most} training jobs",
            "ask for fewer, or start anew",
        )
    ]


def _problems(
    request: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any] | None]
) -> Iterator[AmtFieldError]:
    config = request.get("WarmStartConfig")
    if config is None:
        return
    yield from parent_problems(request)
    fit: list[tuple[str, Mapping[str, Any]]] = []
    for position, parent in enumerate(config["ParentHyperParameterTuningJobs"]):
        name = parent.get("HyperParameterTuningJobName")
        if name is None:
            continue  # named above
        description = parents.get(name)
        problem = _unfit(f"{_PARENTS}[{position}].HyperParameterTuningJobName", name, description)
        if problem is not None:
            yield problem
        elif description is not None and name.lower() not in [known.lower() for known, _ in fit]:
            fit.append((name, description))
    definitions = training_job_definitions(request)
    if len(definitions) != 1:
        return  # refused by the documented rules; there is nothing to compare
    path, definition = definitions[0]
    for name, description in fit:
        parent_path, parent_definition = training_job_definitions(description)[0]
        yield from _objective_problems(
            name,
            objective(request, definition, path),
            objective(description, parent_definition, parent_path)[1],
        )
        yield from _hyperparameter_problems(
            name, path, _Space(request, definition, path), _Space(description, parent_definition, parent_path)
        )
        if config.get("WarmStartType") == "IdenticalDataAndAlgorithm":
            yield from _identity_problems(name, path, definition, parent_definition)
    yield from _change_problems(request, path, definition, fit)


def _unfit(path: str, name: str, description: Mapping[str, Any] | None) -> AmtFieldError | None:
    """Return why a tuning job can be nobody's parent, or ``None``."""
    if description is None:
        return AmtFieldError(
            path,
            name,
            "there is no tuning job of this name in this account and region",
            "name a tuning job that exists",
        )
    status = description["HyperParameterTuningJobStatus"]
    if status not in TERMINAL_STATUSES:
        return AmtFieldError(
            path,
            f"{name} ({status})",
            f"a parent must be {', '.join(TERMINAL_STATUSES[:-1])} or {TERMINAL_STATUSES[-1]}",
            "wait for its end, or stop it",
        )
    count = len(training_job_definitions(description))
    if count != 1:
        return AmtFieldError(
            path,
            f"{name} ({count} training job definitions)",
            "warm start is available with one training job definition only",
            "name a tuning job of one algorithm",
        )
    return None


class _Space:
    """The hyperparameters of one training job definition, without those that are nobody's to choose."""

    def __init__(self, request: Mapping[str, Any], definition: Mapping[str, Any], path: str) -> None:
        self.ranges_path, ranges = parameter_ranges(request, definition, path)
        self.kinds = _kinds(ranges)
        self.values = {
            one["Name"]: len(set(one["Values"])) for one in ranges.get("CategoricalParameterRanges") or ()
        }
        self.tuned = set(tuned_names(ranges))
        self.static = {
            name: value
            for name, value in (definition.get("StaticHyperParameters") or {}).items()
            if name != OBJECTIVE_HYPERPARAMETER and not name.startswith(SCRIPT_MODE_PREFIX)
        }
        self.names = self.tuned | set(self.static)


def _objective_problems(
    name: str, own: tuple[str, Mapping[str, Any]], theirs: Mapping[str, Any]
) -> Iterator[AmtFieldError]:
    path, wanted = own
    for key in ("Type", "MetricName"):
        if wanted.get(key) != theirs.get(key):
            yield AmtFieldError(
                f"{path}.{key}",
                wanted.get(key),
                f"it must be that of the parent {name}, {theirs.get(key)}",
                f"set it to {theirs.get(key)}, or choose other parents",
            )


def _hyperparameter_problems(name: str, path: str, own: _Space, theirs: _Space) -> Iterator[AmtFieldError]:
    added, missing = sorted(own.names - theirs.names), sorted(theirs.names - own.names)
    if added or missing:
        differences = [
            f"{word} {', '.join(names)}"
            for word, names in (("added:", added), ("missing:", missing))
            if names
        ]
        yield AmtFieldError(
            f"{path}.StaticHyperParameters",
            "; ".join(differences),
            f"static and tuned hyperparameters together must be those of the parent {name}",
            "tune, or give a static value to, exactly these: " + (", ".join(sorted(theirs.names)) or "none"),
        )
    for hyperparameter, kind in own.kinds.items():
        before = theirs.kinds.get(hyperparameter, kind)
        if kind != before:
            yield AmtFieldError(
                f"{own.ranges_path}.{kind}",
                hyperparameter,
                f"a tuned hyperparameter must keep its type: it is in {before} of the parent {name}",
                f"move it to {before}",
            )


def _identity_problems(
    name: str, path: str, own: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[AmtFieldError]:
    fix = "use the parent's, or set WarmStartType to TransferLearning"
    for key in ("TrainingImage", "AlgorithmName"):
        mine, other = (definition["AlgorithmSpecification"].get(key) for definition in (own, theirs))
        if mine != other:
            yield AmtFieldError(
                f"{path}.AlgorithmSpecification.{key}",
                mine,
                f"with IdenticalDataAndAlgorithm it must be that of the parent {name}, {other}",
                fix,
            )
    mine, other = _sources(own), _sources(theirs)
    for channel in sorted({*mine, *other}):
        if mine.get(channel) != other.get(channel):
            yield AmtFieldError(
                f"{path}.InputDataConfig",
                f"channel {channel}: {mine.get(channel)}",
                f"with IdenticalDataAndAlgorithm the input data must be that of the parent {name}, "
                f"{other.get(channel)}",
                fix,
            )


def _sources(definition: Mapping[str, Any]) -> dict[str, str]:
    """Return where the data of each channel are. How they are delivered may change (developer guide)."""
    found = {}
    for channel in definition.get("InputDataConfig") or ():
        source = {key: value for key, value in channel["DataSource"].items() if value is not None}
        s3 = source.get("S3DataSource")
        found[channel["ChannelName"]] = f"{s3['S3DataType']} {s3['S3Uri']}" if s3 else str(source)
    return found


def _change_problems(
    request: Mapping[str, Any],
    path: str,
    definition: Mapping[str, Any],
    parents: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[AmtFieldError]:
    """Count the changes over all parents, as the developer guide does.

    Each value of a categorical hyperparameter counts: one with the values red and blue that becomes static
    is two changes, and so is a static red that becomes blue. (A number that becomes another one is one.)
    What was static and is tuned now is no change.
    """
    own = _Space(request, definition, path)
    changes: list[str] = []
    total = 0
    for name, description in parents:
        theirs_path, theirs_definition = training_job_definitions(description)[0]
        theirs = _Space(description, theirs_definition, theirs_path)
        for hyperparameter, value in own.static.items():
            if hyperparameter in theirs.tuned:
                count = theirs.values.get(hyperparameter, 1)
            elif value != theirs.static.get(hyperparameter, value):
                texts = (unquoted(value), unquoted(theirs.static[hyperparameter]))
                count = 1 if all(parse_bound(text, integer=False) is not None for text in texts) else 2
            else:
                continue
            total += count
            changes.append(f"{hyperparameter} ({count}, {name})")
    if total > MAX_CHANGES:
        yield AmtFieldError(
            f"{path}.StaticHyperParameters",
            f"{total} changes: {', '.join(changes)}",
            f"at most {MAX_CHANGES} changes to static values are allowed over all parents; each value of a "
            "categorical hyperparameter counts",
            "keep more hyperparameters tuned, or their static values as they were",
        )


def _kinds(ranges: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of range of each tuned hyperparameter; what Autotune is to choose has none yet."""
    return {one["Name"]: kind for kind in RANGE_KINDS for one in ranges.get(kind) or ()}


def _value(text: str | None, kind: str) -> str | None:
    """Return a value in the form that the kind of range has, ``None`` if it is none of that kind."""
    if text is None or kind == "CategoricalParameterRanges":
        return text
    plain = unquoted(text)
    return plain if parse_bound(plain, integer=kind == "IntegerParameterRanges") is not None else None
