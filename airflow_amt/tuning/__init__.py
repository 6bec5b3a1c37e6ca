"""The domain of automatic model tuning: plain decisions, without Airflow, boto3, a clock or I/O.

The names and the modules are imported when first used: a DAG file that only names an operator pays for what
that needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_amt.tuning import branching as branching
    from airflow_amt.tuning import conditions as conditions
    from airflow_amt.tuning import costs as costs
    from airflow_amt.tuning import custody as custody
    from airflow_amt.tuning import deadlines as deadlines
    from airflow_amt.tuning import history as history
    from airflow_amt.tuning import judgement as judgement
    from airflow_amt.tuning import limits as limits
    from airflow_amt.tuning import naming as naming
    from airflow_amt.tuning import planning as planning
    from airflow_amt.tuning import policies as policies
    from airflow_amt.tuning import reaping as reaping
    from airflow_amt.tuning import report as report
    from airflow_amt.tuning import request as request
    from airflow_amt.tuning import saving as saving
    from airflow_amt.tuning import stops as stops
    from airflow_amt.tuning import values as values
    from airflow_amt.tuning import warm_start as warm_start
    from airflow_amt.tuning.branching import OutcomeGroup, branch_on_outcome
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
    from airflow_amt.tuning.convergence import (
        ConvergenceRule,
        NoSignificantImprovement,
        ProportionalPatience,
        converged,
        converged_after,
    )
    from airflow_amt.tuning.costs import (
        Consumption,
        PriceTable,
        TrainingJobUsage,
    )
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
    from airflow_amt.tuning.policies import (
        Action,
        Answer,
        Budget,
        Custom,
        Deadline,
        Due,
        MaxFailedTrainingJobs,
        MinimumJobs,
        Plateau,
        Policy,
        Rule,
        RunTimes,
        Situation,
        Sla,
        Stalled,
        Step,
        Verdict,
        decide,
        parse_policy,
        parse_sla,
    )
    from airflow_amt.tuning.progress import (
        ObjectiveCounters,
        SatisfactoryProgress,
        TrainingJobCounters,
        TuningProgress,
    )
    from airflow_amt.tuning.ranking import rank_training_jobs
    from airflow_amt.tuning.request import (
        check_documented_rules,
        estimated_max_compute,
        search_space_size,
    )
    from airflow_amt.tuning.status import TuningJobStatus
    from airflow_amt.tuning.warm_start import check_warm_start, prior_evaluations

__all__ = [
    "Action",
    "Answer",
    "AutoParameter",
    "Budget",
    "BudgetShareUsed",
    "CategoricalRange",
    "Checkpoint",
    "CompletionCriteria",
    "CompletionReason",
    "Condition",
    "ConditionResult",
    "Consumption",
    "ContinuousRange",
    "Converged",
    "ConvergenceRule",
    "CriteriaTracker",
    "CriterionFired",
    "Custom",
    "Deadline",
    "Due",
    "EstimatedTimeLeftBelow",
    "FailureShareAbove",
    "FirstUsableModel",
    "Hyperband",
    "InputChannel",
    "IntegerRange",
    "MaxFailedTrainingJobs",
    "MetricDefinition",
    "MinimumJobs",
    "NoSignificantImprovement",
    "NotImproving",
    "Objective",
    "ObjectiveCounters",
    "ObjectiveType",
    "OutcomeGroup",
    "Owner",
    "Plateau",
    "Policy",
    "PriceTable",
    "ProportionalPatience",
    "ReplayReport",
    "Resources",
    "Rule",
    "RunTimes",
    "RuntimeAbove",
    "SatisfactoryProgress",
    "Scaling",
    "Situation",
    "Sla",
    "Stalled",
    "Step",
    "Strategy",
    "TargetReached",
    "TrainingJobCounters",
    "TrainingJobDefinition",
    "TrainingJobResult",
    "TrainingJobUsage",
    "TrainingJobsDone",
    "TuningJobRequest",
    "TuningJobStatus",
    "TuningOutcome",
    "TuningProgress",
    "Verdict",
    "Vpc",
    "WarmStart",
    "WarmStartType",
    "branch_on_outcome",
    "check_documented_rules",
    "check_warm_start",
    "converged",
    "converged_after",
    "decide",
    "derive_job_name",
    "estimated_max_compute",
    "infer_outcome",
    "parse_condition",
    "parse_policy",
    "parse_sla",
    "prior_evaluations",
    "rank_training_jobs",
    "replay",
    "search_space_size",
]

_MODULES = {
    "OutcomeGroup": "airflow_amt.tuning.branching",
    "branch_on_outcome": "airflow_amt.tuning.branching",
    "TuningJobStatus": "airflow_amt.tuning.status",
    "rank_training_jobs": "airflow_amt.tuning.ranking",
    **dict.fromkeys(
        (
            "AutoParameter",
            "CategoricalRange",
            "Checkpoint",
            "ContinuousRange",
            "Hyperband",
            "InputChannel",
            "IntegerRange",
            "MetricDefinition",
            "Objective",
            "Resources",
            "Scaling",
            "Strategy",
            "TrainingJobDefinition",
            "TuningJobRequest",
            "Vpc",
            "WarmStart",
            "WarmStartType",
        ),
        "airflow_amt.tuning.builder",
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
        "airflow_amt.tuning.conditions",
    ),
    **dict.fromkeys(
        (
            "ConvergenceRule",
            "NoSignificantImprovement",
            "ProportionalPatience",
            "converged",
            "converged_after",
        ),
        "airflow_amt.tuning.convergence",
    ),
    **dict.fromkeys(
        (
            "CompletionCriteria",
            "CompletionReason",
            "ObjectiveType",
        ),
        "airflow_amt.tuning.criteria",
    ),
    **dict.fromkeys(
        (
            "CriteriaTracker",
            "CriterionFired",
            "ReplayReport",
            "TrainingJobResult",
            "replay",
        ),
        "airflow_amt.tuning.history",
    ),
    **dict.fromkeys(
        (
            "Owner",
            "derive_job_name",
        ),
        "airflow_amt.tuning.naming",
    ),
    **dict.fromkeys(
        (
            "TuningOutcome",
            "infer_outcome",
        ),
        "airflow_amt.tuning.outcome",
    ),
    **dict.fromkeys(
        (
            "Consumption",
            "PriceTable",
            "TrainingJobUsage",
        ),
        "airflow_amt.tuning.costs",
    ),
    **dict.fromkeys(
        (
            "Action",
            "Answer",
            "Budget",
            "Custom",
            "Deadline",
            "Due",
            "MaxFailedTrainingJobs",
            "MinimumJobs",
            "Plateau",
            "Policy",
            "Rule",
            "RunTimes",
            "Situation",
            "Sla",
            "Stalled",
            "Step",
            "Verdict",
            "decide",
            "parse_policy",
            "parse_sla",
        ),
        "airflow_amt.tuning.policies",
    ),
    **dict.fromkeys(
        (
            "ObjectiveCounters",
            "SatisfactoryProgress",
            "TrainingJobCounters",
            "TuningProgress",
        ),
        "airflow_amt.tuning.progress",
    ),
    **dict.fromkeys(
        (
            "check_documented_rules",
            "estimated_max_compute",
            "search_space_size",
        ),
        "airflow_amt.tuning.request",
    ),
    **dict.fromkeys(
        (
            "check_warm_start",
            "prior_evaluations",
        ),
        "airflow_amt.tuning.warm_start",
    ),
}


#: Modules of this package that others use under its name.
_PARTS = frozenset(
    {
        "branching",
        "conditions",
        "costs",
        "custody",
        "deadlines",
        "history",
        "judgement",
        "limits",
        "naming",
        "planning",
        "policies",
        "reaping",
        "report",
        "request",
        "saving",
        "stops",
        "values",
        "warm_start",
    }
)


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
