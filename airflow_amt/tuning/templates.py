"""Requests that are not rendered yet: where Jinja templates are, and what can be said in spite of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.request import MAX_RESOURCE_KEYS

#: Members of a request that no documented rule looks at, or only for whether they are there: a template in
#: one of them leaves every rule decided.
_INERT = frozenset(
    {
        "AlgorithmName",
        "AttributeNames",
        "ChannelName",
        "ContentType",
        "DirectoryPath",
        "FileSystemId",
        "HyperParameterTuningJobName",
        "InstanceType",
        "KmsKeyId",
        "LocalPath",
        "MaxParallelTrainingJobs",
        "MaximumRetryAttempts",
        "MaxPendingTimeInSeconds",
        "RandomSeed",
        "RoleArn",
        "S3OutputPath",
        "S3Uri",
        "SecurityGroupIds",
        "Seed",
        "Subnets",
        "TrainingImage",
        "TrainingInputMode",
        "Value",
        "ValueHint",
        "VolumeKmsKeyId",
        "VolumeSizeInGB",
    }
)
#: Parts of a request whose rules look at nothing outside of them.
_SELF_CONTAINED = re.compile(
    r".*(?:ParameterRanges|HyperParameterRanges)\.\w+ParameterRanges\[\d+\]"
    r"|.*\.MetricDefinitions\[\d+\](?=\.Regex)"
    r"|Tags\[\d+\]"
)


def is_template(value: Any) -> bool:
    """Whether a value is text that Jinja would render."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def templated_fields(value: Any, path: str = "") -> list[str]:
    """List the paths of all templates in a request, keys of maps included.

    :param value: a request, or a part of one.
    :param path: where the part is.
    """
    return list(_templated(value, path))


def decided(problems: Sequence[AmtFieldError], request: Mapping[str, Any]) -> list[AmtFieldError]:
    """Return those problems of documented rules that stay, whatever the templates render to.

    In doubt a problem is left out: the operator looks again once everything is rendered.

    :param problems: from :func:`airflow_amt.tuning.check_documented_rules`.
    :param request: the request that was checked, templates included.
    """
    fields = templated_fields(request)
    open_to_rules = [field for field in fields if not _is_inert(field)]
    found = []
    for problem in problems:
        part = _SELF_CONTAINED.match(problem.field)
        if part is None:
            doubtful = bool(open_to_rules)
        else:
            doubtful = any(field.startswith(part.group()) for field in fields)
        if not doubtful and not templated_fields(problem.value):
            found.append(problem)
    return found


def _is_inert(field: str) -> bool:
    parent, _, last = field.rpartition(".")
    if parent.endswith((".StaticHyperParameters", ".Environment")):
        # Which keys there are matters to the rules; of values only those that Hyperband reads.
        return not is_template(last) and last not in MAX_RESOURCE_KEYS
    return last.partition("[")[0] in _INERT


def _templated(value: Any, path: str) -> Iterator[str]:
    if is_template(value):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            below = f"{path}.{key}" if path else str(key)
            if is_template(key):
                yield below
            yield from _templated(item, below)
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _templated(item, f"{path}[{position}]")
