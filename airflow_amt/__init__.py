"""Apache Airflow provider for Amazon SageMaker automatic model tuning (AMT).

The public names are imported when first used: ``import airflow_amt`` alone imports neither Airflow nor
boto3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_amt.callbacks import stop_tuning_jobs, stop_tuning_jobs_sync, tuning_deadline
    from airflow_amt.exceptions import (
        AmtAccessDeniedError,
        AmtAwsError,
        AmtDeadlineError,
        AmtError,
        AmtFieldError,
        AmtJobExistsError,
        AmtRequestError,
        AmtResourceInUseError,
        AmtResourceLimitExceededError,
        AmtResourceNotFoundError,
        AmtThrottledError,
        AmtUnknownOwnerError,
        AmtValidationError,
    )
    from airflow_amt.hooks.sla import AmtSlaHook
    from airflow_amt.hooks.tuning import AmtHook
    from airflow_amt.links.tuning import AmtTuningJobLink
    from airflow_amt.operators.ask import AmtAskOperator
    from airflow_amt.operators.best import AmtBestTrainingJobOperator
    from airflow_amt.operators.branch import AmtOutcomeBranchOperator
    from airflow_amt.operators.enforce import AmtEnforcePolicyOperator
    from airflow_amt.operators.export import AmtExportTrainingJobsOperator
    from airflow_amt.operators.reap import AmtReapTuningJobsOperator
    from airflow_amt.operators.stop import AmtStopTuningJobOperator
    from airflow_amt.operators.tuning import AmtTuningJobOperator
    from airflow_amt.sensors.progress import AmtTuningProgressSensor
    from airflow_amt.sensors.tuning import AmtTuningJobSensor
    from airflow_amt.task_exceptions import (
        AmtAwaitedJobFailed,
        AmtAwaitedJobStopped,
        AmtConditionNotMet,
        AmtEnforceError,
        AmtNoUsableTrainingJob,
        AmtOwnJobEndedError,
        AmtPolicyBroken,
        AmtReapError,
        AmtTaskKilled,
        AmtTuningJobError,
        AmtTuningJobFailed,
        AmtTuningJobStopped,
        AmtTuningJobTimeout,
    )
    from airflow_amt.triggers.answer import AmtAnswerTrigger
    from airflow_amt.triggers.ended import AmtTuningJobEndedTrigger
    from airflow_amt.triggers.progress import AmtTuningProgressTrigger
    from airflow_amt.triggers.tuning import AmtTuningJobTrigger
    from airflow_amt.tuning import (
        Answer,
        Budget,
        CompletionCriteria,
        CompletionReason,
        Custom,
        Deadline,
        MaxFailedTrainingJobs,
        MinimumJobs,
        ObjectiveType,
        Plateau,
        PriceTable,
        Rule,
        Sla,
        Stalled,
        TuningJobRequest,
        TuningOutcome,
        TuningProgress,
        Verdict,
        branch_on_outcome,
        infer_outcome,
        parse_sla,
    )
    from airflow_amt.tuning.conditions import (
        BudgetShareUsed,
        Condition,
        ConditionResult,
        Converged,
        EstimatedTimeLeftBelow,
        FailureShareAbove,
        FirstUsableModel,
        NotImproving,
        RuntimeAbove,
        TargetReached,
        TrainingJobsDone,
        parse_condition,
    )

__version__ = "0.1.0"

__all__ = [
    "AmtAccessDeniedError",
    "AmtAnswerTrigger",
    "AmtAskOperator",
    "AmtAwaitedJobFailed",
    "AmtAwaitedJobStopped",
    "AmtAwsError",
    "AmtBestTrainingJobOperator",
    "AmtConditionNotMet",
    "AmtDeadlineError",
    "AmtEnforceError",
    "AmtEnforcePolicyOperator",
    "AmtError",
    "AmtExportTrainingJobsOperator",
    "AmtFieldError",
    "AmtHook",
    "AmtJobExistsError",
    "AmtNoUsableTrainingJob",
    "AmtOutcomeBranchOperator",
    "AmtOwnJobEndedError",
    "AmtPolicyBroken",
    "AmtReapError",
    "AmtReapTuningJobsOperator",
    "AmtRequestError",
    "AmtResourceInUseError",
    "AmtResourceLimitExceededError",
    "AmtResourceNotFoundError",
    "AmtSlaHook",
    "AmtStopTuningJobOperator",
    "AmtTaskKilled",
    "AmtThrottledError",
    "AmtTuningJobEndedTrigger",
    "AmtTuningJobError",
    "AmtTuningJobFailed",
    "AmtTuningJobLink",
    "AmtTuningJobOperator",
    "AmtTuningJobSensor",
    "AmtTuningJobStopped",
    "AmtTuningJobTimeout",
    "AmtTuningJobTrigger",
    "AmtTuningProgressSensor",
    "AmtTuningProgressTrigger",
    "AmtUnknownOwnerError",
    "AmtValidationError",
    "Answer",
    "Budget",
    "BudgetShareUsed",
    "CompletionCriteria",
    "CompletionReason",
    "Condition",
    "ConditionResult",
    "Converged",
    "Custom",
    "Deadline",
    "EstimatedTimeLeftBelow",
    "FailureShareAbove",
    "FirstUsableModel",
    "MaxFailedTrainingJobs",
    "MinimumJobs",
    "NotImproving",
    "ObjectiveType",
    "Plateau",
    "PriceTable",
    "Rule",
    "RuntimeAbove",
    "Sla",
    "Stalled",
    "TargetReached",
    "TrainingJobsDone",
    "TuningJobRequest",
    "TuningOutcome",
    "TuningProgress",
    "Verdict",
    "__version__",
    "branch_on_outcome",
    "infer_outcome",
    "parse_condition",
    "parse_sla",
    "stop_tuning_jobs",
    "stop_tuning_jobs_sync",
    "tuning_deadline",
]

_MODULES = {
    **dict.fromkeys(
        (
            "AmtAccessDeniedError",
            "AmtAwsError",
            "AmtDeadlineError",
            "AmtError",
            "AmtFieldError",
            "AmtJobExistsError",
            "AmtRequestError",
            "AmtResourceInUseError",
            "AmtResourceLimitExceededError",
            "AmtResourceNotFoundError",
            "AmtThrottledError",
            "AmtUnknownOwnerError",
            "AmtValidationError",
        ),
        "airflow_amt.exceptions",
    ),
    **dict.fromkeys(
        (
            "AmtAwaitedJobFailed",
            "AmtAwaitedJobStopped",
            "AmtConditionNotMet",
            "AmtEnforceError",
            "AmtNoUsableTrainingJob",
            "AmtOwnJobEndedError",
            "AmtPolicyBroken",
            "AmtReapError",
            "AmtTaskKilled",
            "AmtTuningJobError",
            "AmtTuningJobFailed",
            "AmtTuningJobStopped",
            "AmtTuningJobTimeout",
        ),
        "airflow_amt.task_exceptions",
    ),
    **dict.fromkeys(
        (
            "Answer",
            "Budget",
            "Custom",
            "Deadline",
            "MaxFailedTrainingJobs",
            "MinimumJobs",
            "Plateau",
            "PriceTable",
            "Rule",
            "Sla",
            "Stalled",
            "Verdict",
            "parse_sla",
            "CompletionCriteria",
            "CompletionReason",
            "ObjectiveType",
            "TuningJobRequest",
            "TuningOutcome",
            "TuningProgress",
            "branch_on_outcome",
            "infer_outcome",
        ),
        "airflow_amt.tuning",
    ),
    **dict.fromkeys(
        (
            "BudgetShareUsed",
            "Condition",
            "ConditionResult",
            "Converged",
            "EstimatedTimeLeftBelow",
            "FailureShareAbove",
            "FirstUsableModel",
            "NotImproving",
            "RuntimeAbove",
            "TargetReached",
            "TrainingJobsDone",
            "parse_condition",
        ),
        "airflow_amt.tuning",
    ),
    "AmtAnswerTrigger": "airflow_amt.triggers.answer",
    "AmtAskOperator": "airflow_amt.operators.ask",
    **dict.fromkeys(
        ("stop_tuning_jobs", "stop_tuning_jobs_sync", "tuning_deadline"), "airflow_amt.callbacks"
    ),
    "AmtBestTrainingJobOperator": "airflow_amt.operators.best",
    "AmtEnforcePolicyOperator": "airflow_amt.operators.enforce",
    "AmtExportTrainingJobsOperator": "airflow_amt.operators.export",
    "AmtHook": "airflow_amt.hooks.tuning",
    "AmtOutcomeBranchOperator": "airflow_amt.operators.branch",
    "AmtReapTuningJobsOperator": "airflow_amt.operators.reap",
    "AmtSlaHook": "airflow_amt.hooks.sla",
    "AmtStopTuningJobOperator": "airflow_amt.operators.stop",
    "AmtTuningJobEndedTrigger": "airflow_amt.triggers.ended",
    "AmtTuningJobLink": "airflow_amt.links.tuning",
    "AmtTuningJobOperator": "airflow_amt.operators.tuning",
    "AmtTuningJobSensor": "airflow_amt.sensors.tuning",
    "AmtTuningJobTrigger": "airflow_amt.triggers.tuning",
    "AmtTuningProgressSensor": "airflow_amt.sensors.progress",
    "AmtTuningProgressTrigger": "airflow_amt.triggers.progress",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
