"""The statuses of a tuning job: a module of its own, because a DAG file needs no more of its progress."""

from __future__ import annotations

from enum import Enum


class TuningJobStatus(str, Enum):
    """Statuses of a tuning job; values as in the API (``HyperParameterTuningJobStatus``)."""

    COMPLETED = "Completed"
    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    STOPPED = "Stopped"
    STOPPING = "Stopping"
    DELETING = "Deleting"
    DELETE_FAILED = "DeleteFailed"


#: Statuses in which nothing trains any more and nothing will.
TERMINAL_STATUSES = frozenset(
    {
        TuningJobStatus.COMPLETED.value,
        TuningJobStatus.FAILED.value,
        TuningJobStatus.STOPPED.value,
        TuningJobStatus.DELETING.value,
        TuningJobStatus.DELETE_FAILED.value,
    }
)
