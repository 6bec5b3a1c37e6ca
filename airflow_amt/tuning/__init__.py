"""The domain of automatic model tuning: plain decisions, without Airflow, boto3, a clock or I/O."""

from __future__ import annotations

from airflow_amt.tuning.branching import OutcomeGroup, branch_on_outcome
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
from airflow_amt.tuning.convergence import ConvergenceRule, NoSignificantImprovement
from airflow_amt.tuning.criteria import CompletionCriteria, CompletionReason, ObjectiveType
from airflow_amt.tuning.history import (
    CriteriaTracker,
    CriterionFired,
    ReplayReport,
    TrainingJobResult,
    replay,
)
from airflow_amt.tuning.naming import Owner, derive_job_name
from airflow_amt.tuning.outcome import TuningOutcome, infer_outcome
from airflow_amt.tuning.progress import (
    ObjectiveCounters,
    SatisfactoryProgress,
    TrainingJobCounters,
    TuningJobStatus,
    TuningProgress,
)
from airflow_amt.tuning.ranking import rank_training_jobs
from airflow_amt.tuning.request import (
    check_documented_rules,
    estimated_max_compute,
    search_space_size,
)
from airflow_amt.tuning.warm_start import check_warm_start, prior_evaluations

__all__ = [
    "BudgetShareUsed",
    "CompletionCriteria",
    "CompletionReason",
    "Condition",
    "ConditionResult",
    "Converged",
    "ConvergenceRule",
    "CriteriaTracker",
    "CriterionFired",
    "EstimatedTimeLeftBelow",
    "FailureShareAbove",
    "FirstUsableModel",
    "NoSignificantImprovement",
    "NotImproving",
    "ObjectiveCounters",
    "ObjectiveType",
    "OutcomeGroup",
    "Owner",
    "ReplayReport",
    "RuntimeAbove",
    "SatisfactoryProgress",
    "TargetReached",
    "TrainingJobCounters",
    "TrainingJobResult",
    "TrainingJobsDone",
    "TuningJobStatus",
    "TuningOutcome",
    "TuningProgress",
    "branch_on_outcome",
    "check_documented_rules",
    "check_warm_start",
    "derive_job_name",
    "estimated_max_compute",
    "infer_outcome",
    "parse_condition",
    "prior_evaluations",
    "rank_training_jobs",
    "replay",
    "search_space_size",
]
