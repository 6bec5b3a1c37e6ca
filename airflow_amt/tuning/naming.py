"""Deterministic names and tags: which task instance a tuning job belongs to, and who stopped it.

A job's name is derived from the task instance and a generation, so that a try that crashed after its
create call finds the job it created; the tags say in plain words whose job it is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Longest tuning job name (SageMaker API, ``HyperParameterTuningJobName``).
MAX_NAME_LENGTH = 32
MAX_TAG_VALUE_LENGTH = 256

TAG_PREFIX = "airflow-amt:"
STOPPED_BY_TAG = f"{TAG_PREFIX}stopped-by"
STOPPED_DETAIL_TAG = f"{TAG_PREFIX}stopped-by-detail"

_DIGEST_LENGTH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The task instance that a tuning job belongs to.

    :param dag_id: DAG id.
    :param run_id: DAG run id.
    :param task_id: task id.
    :param map_index: map index, -1 for a task that is not mapped.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    def tags(self) -> dict[str, str]:
        """Return the ownership tags, with values that AWS accepts."""
        return {
            f"{TAG_PREFIX}dag-id": tag_value(self.dag_id),
            f"{TAG_PREFIX}run-id": tag_value(self.run_id),
            f"{TAG_PREFIX}task-id": tag_value(self.task_id),
            f"{TAG_PREFIX}map-index": str(self.map_index),
        }

    def owns(self, tags: Mapping[str, str]) -> bool:
        """Say whether a tuning job with these tags belongs to this task instance."""
        return all(tags.get(key) == value for key, value in self.tags().items())


def ownership_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Pick the ownership tags out of all tags of a tuning job."""
    names = Owner(dag_id="", run_id="", task_id="").tags()
    return {key: value for key, value in tags.items() if key in names}


def derive_job_name(owner: Owner, *, prefix: str | None = None, generation: int = 1) -> str:
    """Derive a tuning job name from its owner: the same one every time, another for every generation.

    :param owner: the task instance.
    :param prefix: readable start of the name; the task id if left out. It is cut and cleaned to fit.
    :param generation: 1 for the first job of this task instance, then counting up.
    :return: at most 32 characters that match the API's pattern.
    """
    identity = "\0".join((owner.dag_id, owner.run_id, owner.task_id, str(owner.map_index), str(generation)))
    digest = base64.b32encode(hashlib.sha256(identity.encode()).digest()).decode().lower()[:_DIGEST_LENGTH]
    room = MAX_NAME_LENGTH - _DIGEST_LENGTH - 1
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", prefix if prefix is not None else owner.task_id)
    readable = readable.strip("-")[:room].strip("-")
    return f"{readable}-{digest}" if readable else digest


def tag_value(text: str) -> str:
    """Return text as an AWS tag value: allowed characters only, 256 at most, distinct when it was cut."""
    clean = re.sub(r"[^\w .:/=+\-@]", "_", text)
    if len(clean) <= MAX_TAG_VALUE_LENGTH:
        return clean
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{clean[: MAX_TAG_VALUE_LENGTH - 13]}-{digest}"


def to_tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags in the API's form, a list of ``Key`` and ``Value``."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def from_tag_list(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return tags of the API's form as a dict."""
    return {tag["Key"]: tag.get("Value", "") for tag in tags if tag.get("Key")}
