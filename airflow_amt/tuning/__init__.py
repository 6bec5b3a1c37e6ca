"""The domain of automatic model tuning: plain decisions, without Airflow, boto3, a clock or I/O."""

from __future__ import annotations

from airflow_amt.tuning.builder import (
    AutoParameter,
    CategoricalRange,
    Checkpoint,
    ContinuousRange,
    Hyperband,
    InputChannel,
    IntegerRange,
    MetricDefinition,
    Objective,
    Resources,
    Scaling,
    Strategy,
    TrainingJobDefinition,
    TuningJobRequest,
    Vpc,
    WarmStart,
    WarmStartType,
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
from airflow_amt.tuning.request import (
    check_documented_rules,
    estimated_max_compute,
    search_space_size,
)
from airflow_amt.tuning.warm_start import check_warm_start, prior_evaluations

__all__ = [
    "AutoParameter",
    "CategoricalRange",
    "Checkpoint",
    "CompletionCriteria",
    "CompletionReason",
    "ContinuousRange",
    "ConvergenceRule",
    "CriteriaTracker",
    "CriterionFired",
    "Hyperband",
    "InputChannel",
    "IntegerRange",
    "MetricDefinition",
    "NoSignificantImprovement",
    "Objective",
    "ObjectiveCounters",
    "ObjectiveType",
    "Owner",
    "ReplayReport",
    "Resources",
    "SatisfactoryProgress",
    "Scaling",
    "Strategy",
    "TrainingJobCounters",
    "TrainingJobDefinition",
    "TrainingJobResult",
    "TuningJobRequest",
    "TuningJobStatus",
    "TuningOutcome",
    "TuningProgress",
    "Vpc",
    "WarmStart",
    "WarmStartType",
    "check_documented_rules",
    "check_warm_start",
    "derive_job_name",
    "estimated_max_compute",
    "infer_outcome",
    "prior_evaluations",
    "replay",
    "search_space_size",
]
