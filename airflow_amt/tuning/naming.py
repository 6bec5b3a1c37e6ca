"""Deterministic names and tags: which task instance a tuning job belongs to, and who stopped it.

A job's name is derived from the task instance and a generation, so that a try that crashed after its
create call finds the job it created; the tags say in plain words whose job it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from airflow_amt.exceptions import AmtFieldError

#: Longest tuning job name (SageMaker API, ``HyperParameterTuningJobName``).
MAX_NAME_LENGTH = 32
MAX_TAG_VALUE_LENGTH = 256

TAG_PREFIX = "airflow-amt:"
STOPPED_BY_TAG = f"{TAG_PREFIX}stopped-by"
STOPPED_DETAIL_TAG = f"{TAG_PREFIX}stopped-by-detail"
#: Who asked for a stop: a task instance, a person or a command.
STOPPED_FOR_TAG = f"{TAG_PREFIX}stopped-for"
#: Of a stop by policy: its code, rule, action and share, and the numbers behind it; ``key=value``.
POLICY_TAG = f"{TAG_PREFIX}policy"
POLICY_EVIDENCE_TAG = f"{TAG_PREFIX}policy-evidence"
#: A stop that is about to be made (:mod:`airflow_amt.tuning.stops`).
INTENT_TAGS = tuple(f"{TAG_PREFIX}stopping-{number}" for number in (1, 2, 3))
#: Which warnings and questions of stop policies people were told; ids, separated by spaces.
POLICY_TOLD_TAG = f"{TAG_PREFIX}policy-told"
#: What people answered; :meth:`airflow_amt.tuning.policies.Answer.encode`, separated by spaces.
POLICY_ANSWERS_TAG = f"{TAG_PREFIX}policy-answers"

#: Which Airflow a job belongs to, where several share an AWS account (``[amt] deployment``).
DEPLOYMENT_TAG = f"{TAG_PREFIX}deployment"
#: Which job of its task instance this is, counted from 1.
GENERATION_TAG = f"{TAG_PREFIX}generation"
#: Try number of the task instance that created the job or, later, adopted it.
TRY_TAG = f"{TAG_PREFIX}try"
#: Id of the task instance's try (Airflow gives every try of every DAG run its own) that created it.
TRY_ID_TAG = f"{TAG_PREFIX}try-id"
#: What the task does about the job: :class:`Waits`.
WAITS_TAG = f"{TAG_PREFIX}waits"
#: Digest of the request, to tell that a task adopts a job that it would create differently now.
REQUEST_TAG = f"{TAG_PREFIX}request"
#: When Airflow accepted the task's success (or skip), ISO 8601: the job's result is not owed to anybody.
DELIVERED_TAG = f"{TAG_PREFIX}delivered"
#: When the task was about to fail with the job's outcome, ISO 8601.
REPORTED_TAG = f"{TAG_PREFIX}reported"

#: Most tags of a tuning job (SageMaker API, ``TagList``).
MAX_TAGS = 50

#: Jobs that one task instance may start, one a failed try, before something is clearly wrong.
MAX_GENERATION = 999

_DIGEST_LENGTH = 10
#: "-" and the generation behind the digest; kept free in every name.
_GENERATION_ROOM = 1 + len(str(MAX_GENERATION))


class Waits(str, Enum):
    """Whether a task waits for its tuning job: values of :data:`WAITS_TAG`."""

    YES = "yes"
    #: It waits, but a kill of the task leaves the job running (``stop_on_kill=False``).
    LEAVE = "leave"
    #: It does not wait (``wait_for_completion=False``).
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The task instance that a tuning job belongs to.

    :param dag_id: DAG id.
    :param run_id: DAG run id.
    :param task_id: task id.
    :param map_index: map index, -1 for a task that is not mapped.
    :param deployment: which Airflow of those that share the AWS account; ``None`` if it has no name.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    deployment: str | None = None

    def tags(self) -> dict[str, str]:
        """Return the ownership tags, with values that AWS accepts."""
        return {
            f"{TAG_PREFIX}dag-id": tag_value(self.dag_id),
            f"{TAG_PREFIX}run-id": tag_value(self.run_id),
            f"{TAG_PREFIX}task-id": tag_value(self.task_id),
            f"{TAG_PREFIX}map-index": str(self.map_index),
            **({DEPLOYMENT_TAG: tag_value(self.deployment)} if self.deployment else {}),
        }

    def owns(self, tags: Mapping[str, str]) -> bool:
        """Say whether a tuning job with these tags belongs to this task instance."""
        mine = self.tags()
        same_deployment = tags.get(DEPLOYMENT_TAG) == mine.get(DEPLOYMENT_TAG)
        return same_deployment and all(tags.get(key) == value for key, value in mine.items())


def task_label(ti: Any) -> str:
    """Return a task instance in one line, as the tags of a tuning job that it stops name it.

    :param ti: anything with ``dag_id``, ``run_id``, ``task_id`` and ``map_index``.
    """
    mapped = "" if ti.map_index is None or ti.map_index < 0 else f"[{ti.map_index}]"
    return f"{ti.dag_id} {ti.run_id} {ti.task_id}{mapped}"


def _owner_keys() -> frozenset[str]:
    return frozenset(Owner(dag_id="", run_id="", task_id="", deployment="any").tags())


def ownership_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Pick the ownership tags out of all tags of a tuning job."""
    names = _owner_keys()
    return {key: value for key, value in tags.items() if key in names}


def owner_digest(owner: Owner) -> str:
    """Return the part of a derived name that stands for its owner: the same in every generation."""
    identity = "\0".join(
        (owner.dag_id, owner.run_id, owner.task_id, str(owner.map_index), owner.deployment or "")
    )
    return base64.b32encode(hashlib.sha256(identity.encode()).digest()).decode().lower()[:_DIGEST_LENGTH]


def derive_job_name(owner: Owner, *, prefix: str | None = None, generation: int = 1) -> str:
    """Derive a tuning job name from its owner: the same one every time, another for every generation.

    ``<prefix>-<digest of the owner>`` for the first job, ``<prefix>-<digest>-<generation>`` for later ones:
    all jobs of a task instance are found by the digest, whatever became of the prefix.

    :param owner: the task instance.
    :param prefix: readable start of the name; the task id if left out. It is cut and cleaned to fit.
    :param generation: 1 for the first job of this task instance, then counting up.
    :return: at most 32 characters that match the API's pattern.
    """
    room = MAX_NAME_LENGTH - _DIGEST_LENGTH - 1 - _GENERATION_ROOM
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", prefix if prefix is not None else owner.task_id)
    readable = readable.strip("-")[:room].strip("-")
    digest = owner_digest(owner)
    name = f"{readable}-{digest}" if readable else digest
    return name if generation == 1 else f"{name}-{generation}"


def generation_of(name: str, owner: Owner) -> int | None:
    """Return which generation a name derived from this owner stands for; ``None`` for any other name."""
    found = re.fullmatch(rf"(?:.*-)?{owner_digest(owner)}(?:-([1-9][0-9]*))?", name)
    if found is None:
        return None
    return int(found[1] or 1)


def request_digest(request: Mapping[str, Any]) -> str:
    """Return a digest of what a create request asks for: all of it but the name and the tags."""
    asked = {
        key: value for key, value in request.items() if key not in ("HyperParameterTuningJobName", "Tags")
    }
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tag_value(text: str) -> str:
    """Return text as an AWS tag value: allowed characters only, 256 at most, distinct when it was cut."""
    clean = re.sub(r"[^\w .:/=+\-@]", "_", text)
    if len(clean) <= MAX_TAG_VALUE_LENGTH:
        return clean
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{clean[: MAX_TAG_VALUE_LENGTH - 13]}-{digest}"


def tag_text(text: str) -> str:
    """Return a sentence as an AWS tag value, without the marks that AWS does not accept."""
    readable = re.sub(r"[,'\"`()\[\]*]", "", text.replace(";", " -").replace("%", " percent"))
    return tag_value(" ".join(readable.split()))


def to_tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags in the API's form, a list of ``Key`` and ``Value``."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def from_tag_list(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return tags of the API's form as a dict."""
    return {tag["Key"]: tag.get("Value", "") for tag in tags if tag.get("Key")}


def with_tags(tags: list[Any], ours: Mapping[str, str]) -> list[Any]:
    """Return the tags, in the API's form, with ours in place of others of the same key."""
    return [*_without(tags, ours), *to_tag_list(ours)]


def _without(tags: Iterable[Any], keys: Container[str]) -> list[Any]:
    return [tag for tag in tags if not (isinstance(tag, Mapping) and tag.get("Key") in keys)]


def own_tags() -> frozenset[str]:
    """Return the keys of all tags that this provider gives a tuning job in its life."""
    return frozenset(
        {
            *_owner_keys(),
            GENERATION_TAG,
            TRY_TAG,
            TRY_ID_TAG,
            WAITS_TAG,
            REQUEST_TAG,
            STOPPED_BY_TAG,
            STOPPED_DETAIL_TAG,
            STOPPED_FOR_TAG,
            POLICY_TAG,
            POLICY_EVIDENCE_TAG,
            *INTENT_TAGS,
            POLICY_TOLD_TAG,
            POLICY_ANSWERS_TAG,
            DELIVERED_TAG,
            REPORTED_TAG,
        }
    )


def check_room_for_tags(tags: Iterable[Any]) -> list[AmtFieldError]:
    """List what is wrong if a request's own tags leave no room for this provider's.

    :param tags: tags in the API's form; what is no tag is somebody else's to find fault with.
    """
    ours = own_tags()
    theirs, room = len(_without(tags, ours)), MAX_TAGS - len(ours)
    if theirs <= room:
        return []
    return [
        AmtFieldError(
            "Tags",
            f"{theirs} tags",
            f"at most {room}: AWS allows {MAX_TAGS}, and this provider writes up to {len(ours)}",
            "leave some out",
        )
    ]
