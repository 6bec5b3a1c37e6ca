"""What a tuning job can consume at most, told from its create request before anything is paid.

Two things limit a tuning job: the number of its training jobs, each of which may run for its own
``StoppingCondition``, and its own runtime, in which ``MaxParallelTrainingJobs`` run side by side. The upper
bounds here take both together. A training job that is stopped, at either limit, may take another
:data:`airflow_amt.tuning.costs.STOP_SECONDS` to end.

Facts (SageMaker API). ``StoppingCondition.MaxRuntimeInSeconds`` is a day where it is left out, and with a
``RetryStrategy`` it limits all attempts of a training job together. ``MaxWaitTimeInSeconds`` is that time and
the wait for spot capacity, so the former is taken to limit training over all interruptions.
``ResourceLimits.MaxRuntimeInSeconds`` is wall clock. ``TrainingEndTime``, up to which is billed, is when the
model was uploaded; for that, after the limit, the API states no limit but the 30 days of all
(``StoppingCondition``), so it is in no bound here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.costs import (
    STOP_SECONDS,
    UNITS,
    Consumption,
    PriceTable,
    Resources,
    TrainingJobUsage,
)
from airflow_amt.tuning.criteria import (
    API_PATHS,
    MAX_RUNTIME_SECONDS,
    MIN_RUNTIME_SECONDS,
    CompletionCriteria,
    CompletionReason,
)
from airflow_amt.tuning.history import finite
from airflow_amt.tuning.request import (
    DEFAULT_MAX_TRAINING_SECONDS,
    MAX_TRAINING_JOBS,
    estimated_max_compute,
    is_endless,
    search_space_size,
    training_job_definitions,
)

if TYPE_CHECKING:
    from airflow_amt.tuning.policies import Sla

#: Version of :meth:`Plan.to_dict`.
PLAN_VERSION = 1

#: What ends a tuning job that has no number of training jobs of its own; no completion criterion.
QUOTA = "quota"

#: What the bounds leave out, for people.
NOT_COUNTED = (
    "volumes, S3, data transfer and taxes; uploading a model after a training job's limit; waiting for "
    "instances, which delays but is not billed"
)

_CONFIG = "HyperParameterTuningJobConfig"
_JOBS = API_PATHS["max_training_jobs"]
_RUNTIME = API_PATHS["max_runtime"]
_COMPUTE, _BILLABLE, _MONEY = UNITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An upper bound and what it comes from.

    :param value: instance-seconds, money or seconds; ``None`` if it cannot be told.
    :param limited_by: ``training_jobs``, ``runtime`` or ``both``; ``None`` without a value.
    :param because: the same with its numbers, in words.
    """

    value: float | None
    limited_by: str | None
    because: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {"at_most": self.value, "limited_by": self.limited_by, "because": self.because}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """One thing that may end the tuning job, and when, in seconds after its creation.

    :param code: the value of a :class:`airflow_amt.tuning.criteria.CompletionReason`, or ``quota``.
    :param limit: the limit as the request states it.
    :param earliest_seconds: not before; ``None`` if that cannot be told.
    :param expected_seconds: as expected, with ``expected_training_seconds``.
    :param latest_seconds: not after, waiting for instances aside; ``None`` if it may never come.
    :param explanation: the same in words.
    """

    code: str
    limit: Any
    earliest_seconds: float | None = None
    expected_seconds: float | None = None
    latest_seconds: float | None = None
    explanation: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {
            "code": self.code,
            "limit": self.limit,
            "earliest_seconds": self.earliest_seconds,
            "expected_seconds": self.expected_seconds,
            "latest_seconds": self.latest_seconds,
            "explanation": self.explanation,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the tuning job consumes if every training job takes as long as expected.

    AMT's favourite instances, all definitions equally often, and no criterion fires that looks at objectives.

    :param training_seconds: how long a training job takes.
    :param training_jobs: how many are launched.
    :param compute_seconds: instance-seconds.
    :param billable_seconds: billed instance-seconds.
    :param cost: money; ``None`` without prices.
    :param wall_clock_seconds: how long the tuning job takes.
    """

    training_seconds: float
    training_jobs: int
    compute_seconds: float
    billable_seconds: float
    cost: float | None
    wall_clock_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {
            "training_seconds": self.training_seconds,
            "training_jobs": self.training_jobs,
            "compute_seconds": self.compute_seconds,
            "billable_seconds": self.billable_seconds,
            "cost": self.cost,
            "wall_clock_seconds": self.wall_clock_seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWarning:
    """Something about a request that its owner should know before it is paid for.

    :param code: stable: ``endless``, ``default_training_limit``, ``training_limit_too_short``,
        ``overshoot``, ``spot_without_discount``, ``spot_discount_not_promised``, ``no_price``,
        ``cannot_fire``, ``idle_parallelism``, ``warm_pool``.
    :param text: the same in words.
    """

    code: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {"code": self.code, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """The training jobs of one definition.

    :param path: where the definition is in the request.
    :param seconds: its limit of one training job.
    :param waits: the same with the wait for spot capacity.
    :param rates: most that one consumes in a second, by unit, over the alternatives of its instances.
    :param expected_rates: the same of AMT's favourite.
    :param words: its instances, for people.
    :param most: most training jobs of it, if its combinations are counted.
    """

    path: str
    seconds: float
    waits: float
    rates: Mapping[str, float | None]
    expected_rates: Mapping[str, float | None]
    words: str
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """All that the bounds are computed from; changed copies tell what a lower limit would bring."""

    kinds: tuple[_Kind, ...]
    jobs: int
    parallel: int
    runtime: float | None

    @property
    def within(self) -> float:
        """Longest that a place for one training job can be in use."""
        return math.inf if self.runtime is None else self.runtime + STOP_SECONDS

    def longest(self, kind: _Kind) -> float:
        """Longest that one training job can take."""
        return min(kind.seconds + STOP_SECONDS, self.within)

    def most(self, unit: str) -> tuple[float, str] | None:
        """Return the most that is consumed of a unit and which limit says so; ``None`` without a price."""
        rates = [kind.rates[unit] for kind in self.kinds]
        priced = [rate for rate in rates if rate is not None]
        if len(priced) < len(rates):
            return None
        dearest = max(priced)
        bounds = [(self._by_jobs(unit), "training_jobs")]
        if self.runtime is not None:
            longest = max(self.longest(kind) for kind in self.kinds)
            fitting = fitting_seconds(self.jobs, longest, self.parallel, self.within)
            bounds.append((self.parallel * self.within * dearest, "runtime"))
            bounds.append((fitting * dearest, "both"))
        return min(bounds, key=lambda bound: bound[0])  # of equal ones the first, which is simplest to say

    def _by_jobs(self, unit: str) -> float:
        """Return what all training jobs consume if as many as possible are of the dearest definition."""
        left, total = self.jobs, 0.0
        each = [(self.longest(kind) * (kind.rates[unit] or 0.0), kind.most) for kind in self.kinds]
        for amount, most in sorted(each, key=lambda one: one[0], reverse=True):
            count = left if most is None else min(left, most)
            total += count * amount
            left -= count
        return total

    def wall_clock(self) -> tuple[float, str]:
        """Return the longest that the tuning job takes, and which limit says so."""
        by_jobs = _rounds(self) * max(min(kind.waits + STOP_SECONDS, self.within) for kind in self.kinds)
        return (by_jobs, "training_jobs") if by_jobs <= self.within else (self.within, "runtime")


def fitting_seconds(jobs: int, seconds: float, parallel: int, within: float) -> float:
    """Return the most that training jobs of at most so many seconds take together.

    Each of the ``parallel`` places takes one after another until ``within`` is over; the last one on each is
    cut there.
    """
    if math.isinf(within):
        return jobs * seconds
    whole, rest = divmod(within, seconds)
    in_full = min(jobs, parallel * int(whole))
    return in_full * seconds + min(jobs - in_full, parallel) * rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a tuning job can consume at most, and what is likely to end it.

    Compute is training time times instances; billable is billed time times instances, both in
    instance-seconds. For managed spot training, billable seconds and money are less by the price table's
    ``spot_discount``.

    :param name: the tuning job, if the request names it.
    :param strategy: as in the API.
    :param training_jobs: most that are launched; ``because`` says what limits them.
    :param parallel_training_jobs: ``MaxParallelTrainingJobs``.
    :param compute_seconds: most compute.
    :param billable_seconds: most billed compute.
    :param cost: most money; no value without prices, or if one is missing.
    :param wall_clock_seconds: longest duration, waiting for on-demand instances aside.
    :param currency: of the money.
    :param unpriced: instance types without a price.
    :param estimated_max_compute_seconds: the developer guide's estimate, without the time that stopping
        takes.
    :param endings: what may end it; those that are sure to come first.
    :param first: code of the one that is likely to end it; ``None`` if that cannot be told.
    :param first_because: why.
    :param expected: with ``expected_training_seconds``, what is to be expected.
    :param warnings: what its owner should know.
    """

    name: str | None
    strategy: str
    training_jobs: Bound
    parallel_training_jobs: int
    compute_seconds: Bound
    billable_seconds: Bound
    cost: Bound
    wall_clock_seconds: Bound
    currency: str | None
    unpriced: tuple[str, ...]
    estimated_max_compute_seconds: int | None
    endings: tuple[Ending, ...]
    first: str | None
    first_because: str
    expected: Expectation | None
    warnings: tuple[PlanWarning, ...]
    _terms: _Terms = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON-safe dict."""
        return {
            "version": PLAN_VERSION,
            "tuning_job_name": self.name,
            "strategy": self.strategy,
            "parallel_training_jobs": self.parallel_training_jobs,
            "training_jobs": self.training_jobs.to_dict(),
            "compute_seconds": self.compute_seconds.to_dict(),
            "billable_seconds": self.billable_seconds.to_dict(),
            "cost": {**self.cost.to_dict(), "currency": self.currency, "unpriced": list(self.unpriced)},
            "wall_clock_seconds": self.wall_clock_seconds.to_dict(),
            "estimated_max_compute_seconds": self.estimated_max_compute_seconds,
            "first": self.first,
            "first_because": self.first_because,
            "endings": [one.to_dict() for one in self.endings],
            "expected": None if self.expected is None else self.expected.to_dict(),
            "warnings": [one.to_dict() for one in self.warnings],
            "not_counted": NOT_COUNTED,
        }

    def lines(self) -> list[str]:
        """Return the plan as a table for people, line by line."""
        billable = _row(self.billable_seconds, _instance_time)
        if self.billable_seconds == self.compute_seconds:
            billable = "the same as compute"
        rows = [
            ("training jobs", f"at most {self.training_jobs.value:.0f}: {self.training_jobs.because}"),
            ("compute", _row(self.compute_seconds, _instance_time)),
            ("billable", billable),
            ("cost", _row(self.cost, self._money)),
            ("wall clock", _row(self.wall_clock_seconds, _time)),
        ]
        if self.expected is not None:
            one = self.expected
            cost = "" if one.cost is None else f"{self._money(one.cost)}, "
            rows.append(
                (
                    "expected",
                    f"{cost}{_instance_time(one.compute_seconds)}, {one.training_jobs} training jobs, "
                    f"{_time(one.wall_clock_seconds)}, if each takes {_time(one.training_seconds)}",
                )
            )
        rows.append(("ends by", f"{self.first or 'cannot be told'}: {self.first_because}"))
        rows += [(one.code, one.explanation) for one in self.endings]
        rows += [("warning", one.text) for one in self.warnings]
        rows.append(("not counted", NOT_COUNTED))
        width = max(len(label) for label, _ in rows)
        title = f"Plan of tuning job {self.name or '(name to be derived)'} ({self.strategy})"
        return [title, *(f"  {label:<{width}}  {text}" for label, text in rows)]

    def summary(self) -> str:
        """Return the plan in one line, for a log."""
        cost = "" if self.cost.value is None else f"{self._money(self.cost.value)}, "
        compute = self.compute_seconds.value or 0.0
        return (
            f"Plan: at most {cost}{_instance_time(compute)} of compute, {self.training_jobs.value:.0f} "
            f"training jobs, {_time(self.wall_clock_seconds.value or 0.0)}; likely to end by "
            f"{self.first or 'a criterion that cannot be told'} ({self.first_because})."
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _money(self, value: float) -> str:
        return _money(value, self.currency)


def plan(
    request: Mapping[str, Any],
    *,
    prices: PriceTable | None = None,
    expected_training_seconds: float | None = None,
) -> Plan:
    """Tell from a create request what the tuning job can consume at most, and what is likely to end it.

    :param request: ``CreateHyperParameterTuningJob`` parameters; check them first, here only what is needed
        is looked at.
    :param prices: for the money, and the discount of spot training.
    :param expected_training_seconds: how long one training job is expected to take.
    :raises AmtRequestError: what the plan needs is missing or out of range.
    """
    criteria, parallel = _checked(request, expected_training_seconds)
    config = request[_CONFIG]
    strategy = str(config.get("Strategy") or "")
    definitions = training_job_definitions(request)
    jobs, jobs_code, jobs_words = _most_training_jobs(request, criteria, strategy)
    counted = strategy == "Grid" and jobs_code == CompletionReason.SEARCH_SPACE_EXHAUSTED.value
    unpriced: set[str] = set()
    kinds = tuple(
        _kind(request, path, definition, prices, unpriced, counted=counted)
        for path, definition in definitions
    )
    runtime = criteria.max_runtime_seconds
    terms = _Terms(kinds=kinds, jobs=jobs, parallel=parallel, runtime=runtime)
    currency = None if prices is None else prices.currency
    missing = tuple(sorted(unpriced))
    wall_clock, wall_clock_by = terms.wall_clock()
    endings = _endings(terms, criteria, jobs_code, jobs_words, expected_training_seconds)
    first, first_because = _first(terms, jobs_code, expected_training_seconds)
    made = Plan(
        name=request.get("HyperParameterTuningJobName") or None,
        strategy=strategy,
        training_jobs=Bound(value=jobs, limited_by="training_jobs", because=jobs_words),
        parallel_training_jobs=parallel,
        compute_seconds=_bound(terms, _COMPUTE),
        billable_seconds=_bound(terms, _BILLABLE),
        cost=_cost(terms, prices, missing),
        wall_clock_seconds=Bound(
            value=wall_clock,
            limited_by=wall_clock_by,
            because=(
                f"{_time(terms.within - STOP_SECONDS)} (max_runtime) + {STOP_SECONDS:.0f} s to stop"
                if wall_clock_by == "runtime"
                else f"{_rounds(terms)} rounds of {min(parallel, jobs)} training jobs, each at most "
                f"{_time(wall_clock / _rounds(terms))}"
            ),
        ),
        currency=currency,
        unpriced=missing,
        estimated_max_compute_seconds=estimated_max_compute(request),
        endings=endings,
        first=first,
        first_because=first_because,
        expected=_expectation(terms, expected_training_seconds),
        warnings=(),
        _terms=terms,
    )
    return replace(
        made, warnings=tuple(_warnings(request, made, criteria, prices, expected_training_seconds))
    )


def check_plan(
    plan: Plan,
    *,
    max_compute_seconds: float | None = None,
    max_billable_seconds: float | None = None,
    max_cost: float | None = None,
) -> list[AmtFieldError]:
    """List the limits that a plan's upper bound exceeds, each with what would keep it.

    :param max_compute_seconds: most instance-seconds.
    :param max_billable_seconds: most billed instance-seconds.
    :param max_cost: most money, in the currency of the price table.
    :return: the problems; empty if all limits are kept.
    :raises AmtRequestError: a limit is no number above 0.
    """
    limits = {
        "max_compute_seconds": (max_compute_seconds, _COMPUTE, plan.compute_seconds),
        "max_billable_seconds": (max_billable_seconds, _BILLABLE, plan.billable_seconds),
        "max_cost": (max_cost, _MONEY, plan.cost),
    }
    wrong = [
        AmtFieldError(name, limit, "a number above 0", "give the most that the tuning job may consume")
        for name, (limit, _, _) in limits.items()
        if limit is not None and not (finite(limit) or 0) > 0
    ]
    if wrong:
        raise AmtRequestError(wrong)
    return [
        _exceeded(plan, name, limit, unit, bound)
        for name, (limit, unit, bound) in limits.items()
        if limit is not None and (bound.value is None or bound.value > limit)
    ]


def planned(
    request: Mapping[str, Any],
    *,
    prices: PriceTable | None = None,
    max_cost: float | None = None,
    max_compute_seconds: float | None = None,
    max_billable_seconds: float | None = None,
    expected_training_seconds: float | None = None,
) -> Plan:
    """Plan a tuning job, and refuse it if its upper bound exceeds a limit.

    :return: the plan; :meth:`Plan.summary` is for the log.
    :raises AmtRequestError: a limit is exceeded, each with the fix, or the request cannot be planned.
    """
    made = plan(request, prices=prices, expected_training_seconds=expected_training_seconds)
    problems = check_plan(
        made,
        max_compute_seconds=max_compute_seconds,
        max_billable_seconds=max_billable_seconds,
        max_cost=max_cost,
    )
    if problems:
        raise AmtRequestError(problems)
    return made


def unpriced(request: Mapping[str, Any], sla: Sla) -> list[AmtFieldError]:
    """List what is wrong if a rule counts money and an instance type of the request has no price.

    :param request: a ``CreateHyperParameterTuningJob`` request.
    :param sla: the rules that its tuning job is to be held to.
    """
    prices = sla.prices
    if prices is None or not any(
        part.uses_costs and getattr(part, "unit", "") == "money"
        for rule in sla.rules
        for part in rule.policy.parts
    ):
        return []
    missing = [kind for kind in instance_types(request) if kind not in prices.per_hour]
    if not missing:
        return []
    return [
        AmtFieldError(
            "policies.prices.per_hour",
            ", ".join(sorted(prices.per_hour)),
            f"a price of {', '.join(missing)}, on which training jobs may run: without it a budget in money "
            "cannot be told",
            "add it (`airflow-amt prices --request` makes the table), or use billable_seconds",
        )
    ]


def instance_types(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return all instance types that a request's training jobs may run on, sorted."""
    return tuple(
        sorted(
            {
                kind
                for _, definition in training_job_definitions(request)
                for choice in _alternatives(definition)
                for kind, _ in choice.instances
                if kind
            }
        )
    )


# --- reading the request -----------------------------------------------------------------------------


def _checked(request: Mapping[str, Any], expected: float | None) -> tuple[CompletionCriteria, int]:
    """Return criteria and parallelism; raise for all that keeps the request from being planned."""
    problems: list[AmtFieldError] = []
    config = request.get(_CONFIG)
    config = config if isinstance(config, Mapping) else {}
    limits = config.get("ResourceLimits")
    parallel = limits.get("MaxParallelTrainingJobs") if isinstance(limits, Mapping) else None
    criteria = CompletionCriteria()
    try:
        criteria = CompletionCriteria.from_request(config)
    except AmtRequestError as error:
        problems += error.problems
    if not _is_count(parallel):
        problems.append(
            AmtFieldError(
                f"{_CONFIG}.ResourceLimits.MaxParallelTrainingJobs",
                parallel,
                "a whole number, at least 1",
                "say how many training jobs run side by side",
            )
        )
    definitions = training_job_definitions(request)
    if not definitions:
        problems.append(
            AmtFieldError(
                "TrainingJobDefinition", None, "what training jobs run on is read from it", "add one"
            )
        )
    for path, definition in definitions:
        problems += _definition_problems(path, definition)
    if expected is not None and not (finite(expected) or 0) > 0:
        problems.append(
            AmtFieldError(
                "expected_training_seconds", expected, "seconds, above 0", "give what one training job takes"
            )
        )
    if problems:
        raise AmtRequestError(problems)
    return criteria, int(parallel or 1)


def _definition_problems(path: str, definition: Mapping[str, Any]) -> list[AmtFieldError]:
    problems = []
    stopping = definition.get("StoppingCondition")
    if stopping is not None and not isinstance(stopping, Mapping):
        return [
            AmtFieldError(f"{path}.StoppingCondition", stopping, "a structure", "give MaxRuntimeInSeconds")
        ]
    for key in ("MaxRuntimeInSeconds", "MaxWaitTimeInSeconds"):
        value = (stopping or {}).get(key)
        if value is not None and not _is_count(value):
            problems.append(
                AmtFieldError(
                    f"{path}.StoppingCondition.{key}", value, "whole seconds, at least 1", "correct it"
                )
            )
    if not any(
        isinstance(definition.get(key), Mapping)
        for key in ("ResourceConfig", "HyperParameterTuningResourceConfig")
    ):
        problems.append(
            AmtFieldError(
                f"{path}.ResourceConfig",
                definition.get("ResourceConfig"),
                "what training jobs run on is read from it",
                "give InstanceType and InstanceCount",
            )
        )
    return problems


def _most_training_jobs(
    request: Mapping[str, Any], criteria: CompletionCriteria, strategy: str
) -> tuple[int, str, str]:
    """Return the most training jobs, the code of what ends the tuning job then, and the same in words."""
    grid = search_space_size(request) if strategy == "Grid" else None
    if grid is not None and criteria.max_training_jobs in (None, grid):
        return (
            grid,
            CompletionReason.SEARCH_SPACE_EXHAUSTED.value,
            f"the grid has {grid} combinations",
        )
    if criteria.max_training_jobs is not None:
        return (
            criteria.max_training_jobs,
            CompletionReason.MAX_TRAINING_JOBS.value,
            "MaxNumberOfTrainingJobs (max_training_jobs)",
        )
    # Autotune may choose another strategy.
    quotas = MAX_TRAINING_JOBS.values() if request.get("Autotune") is not None else ()
    quota = max((*quotas, MAX_TRAINING_JOBS.get(strategy, max(MAX_TRAINING_JOBS.values()))))
    why = "no limit is given" if request.get("Autotune") is None else "Autotune sets the limit"
    return quota, QUOTA, f"the account's quota for {strategy or 'any strategy'} at its highest: {why}"


def _kind(
    request: Mapping[str, Any],
    path: str,
    definition: Mapping[str, Any],
    prices: PriceTable | None,
    unpriced: set[str],
    *,
    counted: bool,
) -> _Kind:
    stopping = definition.get("StoppingCondition") or {}
    seconds = stopping.get("MaxRuntimeInSeconds") or DEFAULT_MAX_TRAINING_SECONDS
    spot = bool(definition.get("EnableManagedSpotTraining"))
    waits = stopping.get("MaxWaitTimeInSeconds") if spot else None
    choices = _alternatives(definition)
    measured = [_rates(choice, prices) for choice in choices]
    for _, missing in measured:
        unpriced.update(missing)
    rates: dict[str, float | None] = {}
    for unit in UNITS:
        values = [one[unit] for one, _ in measured]
        known = [value for value in values if value is not None]
        rates[unit] = max(known) if len(known) == len(values) else None
    single = {"TrainingJobDefinition": definition, _CONFIG: request[_CONFIG]}
    return _Kind(
        path=path,
        seconds=float(seconds),
        waits=float(max(seconds, waits or 0)),
        rates=rates,
        expected_rates=measured[0][0],
        words=" or ".join(" + ".join(f"{count} {kind}" for kind, count in one.instances) for one in choices),
        most=search_space_size(single) if counted else None,
    )


def _alternatives(definition: Mapping[str, Any]) -> list[Resources]:
    """Return all that a training job of a definition may run on, the favourite first."""
    config = definition.get("ResourceConfig") or definition.get("HyperParameterTuningResourceConfig") or {}
    spot = bool(definition.get("EnableManagedSpotTraining"))
    for key in ("InstanceConfigs", "InstancePreferences"):
        choices = [one for one in config.get(key) or () if isinstance(one, Mapping)]
        if choices:
            # A preference may leave its count to the config.
            shared = {name: config[name] for name in ("InstanceCount",) if config.get(name) is not None}
            return [Resources.from_config({**shared, **one}, spot=spot) for one in choices]
    return [Resources.from_config(config, spot=spot)]


def _rates(
    resources: Resources, prices: PriceTable | None
) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """Return what a training job consumes in a second, by unit, and the types without a price."""
    usage = TrainingJobUsage(name="", resources=resources, training_seconds=0.0, running=True)
    consumption = Consumption.measure([usage], prices)
    return {unit: consumption.rate_of(unit) for unit in UNITS}, consumption.unpriced


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# --- bounds ------------------------------------------------------------------------------------------


def _bound(terms: _Terms, unit: str) -> Bound:
    found = terms.most(unit)
    if found is None:
        return Bound(value=None, limited_by=None, because="a price is missing")
    value, limited_by = found
    because = _because(terms, limited_by)
    if unit != _COMPUTE and any(kind.rates[_BILLABLE] != kind.rates[_COMPUTE] for kind in terms.kinds):
        because += ", less the spot discount"
    return Bound(value=value, limited_by=limited_by, because=because)


def _cost(terms: _Terms, prices: PriceTable | None, missing: Sequence[str]) -> Bound:
    if prices is None:
        return Bound(value=None, limited_by=None, because="not known: no prices given")
    if missing:
        names = ", ".join(one or "(no instance type)" for one in missing)
        return Bound(value=None, limited_by=None, because=f"not known: no price of {names}")
    bound = _bound(terms, _MONEY)
    # Of several definitions the dearest one is meant wherever a bound takes one.
    hourly = max(kind.rates[_MONEY] or 0.0 for kind in terms.kinds) * 3600
    return replace(
        bound, because=f"{bound.because}, {_money(hourly, prices.currency)} an hour of a training job"
    )


def _rounds(terms: _Terms) -> int:
    """Return how many training jobs one place for them takes, one after another."""
    return math.ceil(terms.jobs / terms.parallel)


def _because(terms: _Terms, limited_by: str) -> str:
    stop = f"{STOP_SECONDS:.0f} s to stop"
    seconds = max(kind.seconds for kind in terms.kinds)
    instances = max(kind.rates[_COMPUTE] or 0.0 for kind in terms.kinds)
    on = f"{instances:.0f} instance{'s' if instances > 1 else ''}"
    if len(terms.kinds) > 1:
        on += ", the dearest definitions"
    runtime = "" if terms.runtime is None else f"({terms.runtime:.0f} s of max_runtime + {stop})"
    each = f"({seconds:.0f} s of StoppingCondition + {stop})"
    if terms.runtime is not None and terms.runtime <= seconds:
        each = runtime
    if limited_by == "training_jobs":
        return f"{terms.jobs} training jobs x {each} x {on}"
    if limited_by == "runtime":
        return f"{runtime} x {terms.parallel} in parallel x {on}"
    fit = f"as far as {terms.parallel} in parallel fit into {runtime}"
    return f"{terms.jobs} training jobs x {each}, {fit}, x {on}"


def _expectation(terms: _Terms, expected: float | None) -> Expectation | None:
    if expected is None:
        return None
    seconds = _taken(terms, expected)
    within = math.inf if terms.runtime is None else terms.runtime
    total = fitting_seconds(terms.jobs, seconds, terms.parallel, within)
    jobs = terms.jobs
    if terms.runtime is not None:
        jobs = min(jobs, terms.parallel * math.ceil(within / seconds))

    def mean(unit: str) -> float | None:
        rates = [kind.expected_rates[unit] for kind in terms.kinds]
        known = [rate for rate in rates if rate is not None]
        return sum(known) / len(known) if len(known) == len(rates) else None

    cost = mean(_MONEY)
    return Expectation(
        training_seconds=seconds,
        training_jobs=jobs,
        compute_seconds=total * (mean(_COMPUTE) or 0.0),
        billable_seconds=total * (mean(_BILLABLE) or 0.0),
        cost=None if cost is None else total * cost,
        wall_clock_seconds=min(within, _rounds(terms) * seconds),
    )


def _taken(terms: _Terms, expected: float) -> float:
    """Return how long a training job takes if it is to take that long: its limit may be shorter."""
    return min(expected, max(kind.seconds for kind in terms.kinds))


# --- what ends it ------------------------------------------------------------------------------------


def _endings(
    terms: _Terms,
    criteria: CompletionCriteria,
    jobs_code: str,
    jobs_words: str,
    expected: float | None,
) -> tuple[Ending, ...]:
    rounds = _rounds(terms)
    seconds = None if expected is None else _taken(terms, expected)
    in_all = None if seconds is None else rounds * seconds
    latest = rounds * max(kind.waits + STOP_SECONDS for kind in terms.kinds)
    told = "" if in_all is None else f", after about {_time(in_all)}"
    found = [
        Ending(
            code=jobs_code,
            limit=terms.jobs,
            expected_seconds=in_all,
            latest_seconds=latest,
            explanation=f"{terms.jobs} training jobs{told}, after at most {_time(latest)}: {jobs_words}",
        )
    ]
    if terms.runtime is not None:
        found.append(
            Ending(
                code=CompletionReason.MAX_RUNTIME.value,
                limit=int(terms.runtime),
                earliest_seconds=terms.runtime,
                expected_seconds=terms.runtime,
                latest_seconds=terms.runtime + STOP_SECONDS,
                explanation=f"after {_time(terms.runtime)}, and at most {STOP_SECONDS:.0f} s to stop",
            )
        )
    patience = criteria.max_training_jobs_not_improving
    if patience is not None:
        found.append(_not_improving(terms, patience, seconds))
    cannot = "cannot be predicted: it depends on the objectives"
    if criteria.target_objective_value is not None:
        found.append(
            Ending(
                code=CompletionReason.TARGET_REACHED.value,
                limit=criteria.target_objective_value,
                explanation=f"{cannot}; from the first training job on",
            )
        )
    if criteria.complete_on_convergence:
        found.append(
            Ending(
                code=CompletionReason.CONVERGED.value, limit=True, explanation=f"{cannot}; how is AMT's own"
            )
        )
    return tuple(found)


def _not_improving(terms: _Terms, patience: int, seconds: float | None) -> Ending:
    least = patience + 1  # the first one is the best so far, as airflow_amt.tuning.history counts
    earliest = None if seconds is None else math.ceil(least / terms.parallel) * seconds
    when = "" if earliest is None else f", about {_time(earliest)}"
    return Ending(
        code=CompletionReason.NOT_IMPROVING.value,
        limit=patience,
        earliest_seconds=earliest,
        explanation=f"cannot be predicted; not before {least} training jobs have ended{when}",
    )


def _first(terms: _Terms, jobs_code: str, expected: float | None) -> tuple[str | None, str]:
    """Return which of the two limits that are sure to come comes first, as far as that can be told."""
    if terms.runtime is None:
        return jobs_code, "nothing else is sure to end it"
    rounds = _rounds(terms)
    even = terms.runtime / rounds
    runtime = CompletionReason.MAX_RUNTIME.value
    if rounds * max(kind.waits + STOP_SECONDS for kind in terms.kinds) <= terms.runtime:
        return jobs_code, "even if each training job runs to its own limit, all are over before max_runtime"
    if expected is not None:
        seconds = _taken(terms, expected)
        all_jobs = f"{rounds} rounds of training jobs that take {_time(seconds)}"
        if rounds * seconds <= terms.runtime:
            return jobs_code, f"{all_jobs} are over before max_runtime ({_time(terms.runtime)})"
        return runtime, f"{all_jobs} take longer than max_runtime ({_time(terms.runtime)})"
    return None, (
        f"{jobs_code} if a training job takes less than {_time(even)} on average, {runtime} if it takes more"
    )


# --- warnings ----------------------------------------------------------------------------------------


def _warnings(
    request: Mapping[str, Any],
    made: Plan,
    criteria: CompletionCriteria,
    prices: PriceTable | None,
    expected: float | None,
) -> list[PlanWarning]:
    terms = made._terms
    found: list[PlanWarning] = []

    def warn(code: str, text: str) -> None:
        found.append(PlanWarning(code=code, text=text))

    if is_endless(request):
        warn(
            "endless",
            "neither max_training_jobs nor max_runtime limits this tuning job: only the account's quota "
            "does, other criteria may never be met",
        )
    definitions = training_job_definitions(request)
    unlimited = [
        path
        for path, definition in definitions
        if not (definition.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds")
    ]
    if unlimited:
        paths = ", ".join(f"{path}.StoppingCondition.MaxRuntimeInSeconds" for path in unlimited)
        warn(
            "default_training_limit",
            f"{paths} is left out: each training job may run for a day ({DEFAULT_MAX_TRAINING_SECONDS} s)",
        )
    too_short = [kind for kind in terms.kinds if expected is not None and expected > kind.seconds]
    for kind in too_short:
        warn(
            "training_limit_too_short",
            f"{kind.path}: a training job is expected to take {_time(expected or 0)}, but is stopped after "
            f"{_time(kind.seconds)}",
        )
    _warn_of_overshoot(made, warn)
    _warn_of_spot(request, made, prices, warn)
    if made.unpriced:
        names = ", ".join(one or "(no instance type)" for one in made.unpriced)
        warn("no_price", f"the price table lacks {names}: there is no upper bound of the cost")
    patience = criteria.max_training_jobs_not_improving
    if patience is not None and patience + 1 >= terms.jobs:
        warn(
            "cannot_fire",
            f"max_training_jobs_not_improving={patience} cannot end it before its {terms.jobs} training "
            "jobs do",
        )
    for one in made.endings:
        if terms.runtime is not None and (one.earliest_seconds or 0) > terms.runtime:
            warn("cannot_fire", f"{one.code} {one.explanation}: that is after max_runtime")
    if terms.parallel > terms.jobs:
        warn(
            "idle_parallelism",
            f"MaxParallelTrainingJobs ({terms.parallel}) is more than the training jobs ({terms.jobs})",
        )
    for path, definition in definitions:
        kept = finite((definition.get("ResourceConfig") or {}).get("KeepAlivePeriodInSeconds"))
        if kept:
            warn(
                "warm_pool",
                f"{path}.ResourceConfig.KeepAlivePeriodInSeconds: instances are billed for up to "
                f"{kept:.0f} s after each training job, which is not counted",
            )
    return found


def _warn_of_overshoot(made: Plan, warn: Callable[[str, str], None]) -> None:
    terms = made._terms
    if terms.runtime is None or made.compute_seconds.limited_by == "training_jobs":
        return
    running = min(terms.parallel, terms.jobs)
    rate = max(kind.rates[_COMPUTE] or 0.0 for kind in terms.kinds)
    money = [kind.rates[_MONEY] for kind in terms.kinds]
    most = max((one for one in money if one is not None), default=None)
    cost = (
        f", {_money(running * STOP_SECONDS * most, made.currency)}"
        if most is not None and None not in money
        else ""
    )
    warn(
        "overshoot",
        f"when max_runtime ends it, up to {running} training jobs are stopped and may go on for "
        f"{STOP_SECONDS:.0f} s: {_instance_time(running * STOP_SECONDS * rate)}{cost} beyond the developer "
        "guide's estimate, included above; AMT may also be a little late",
    )


def _warn_of_spot(
    request: Mapping[str, Any],
    made: Plan,
    prices: PriceTable | None,
    warn: Callable[[str, str], None],
) -> None:
    on_spot = any(
        definition.get("EnableManagedSpotTraining") for _, definition in training_job_definitions(request)
    )
    if not on_spot or prices is None:
        return
    if prices.spot_discount == 0:
        warn(
            "spot_without_discount",
            "training is on spot instances, but the price table has no spot_discount: counted at the full "
            "price",
        )
        return
    unpriced: set[str] = set()
    full = replace(prices, spot_discount=0.0)
    kinds = tuple(
        replace(_kind(request, path, definition, full, unpriced, counted=False), most=kind.most)
        for (path, definition), kind in zip(training_job_definitions(request), made._terms.kinds, strict=True)
    )
    undiscounted = _bound(replace(made._terms, kinds=kinds), _MONEY).value
    told = "" if undiscounted is None else f"; without it at most {_money(undiscounted, made.currency)}"
    warn(
        "spot_discount_not_promised",
        f"billable seconds and cost count on a spot discount of {prices.spot_discount:.0%}, which AWS does "
        f"not promise{told}",
    )


# --- limits ------------------------------------------------------------------------------------------


def _exceeded(plan: Plan, name: str, limit: float, unit: str, bound: Bound) -> AmtFieldError:
    show: Callable[[float], str] = plan._money if unit == _MONEY else _instance_time
    what = {_COMPUTE: "compute_seconds", _BILLABLE: "billable_seconds", _MONEY: "cost"}[unit]
    if bound.value is None:
        missing = ", ".join(one or "(no instance type)" for one in plan.unpriced)
        fix = f"add {missing} to the price table" if missing else "give a price table"
        return AmtFieldError(what, None, f"{name}={limit:g} needs the price of each instance type", fix)
    return AmtFieldError(
        what,
        f"at most {show(bound.value)}",
        f"{name} allows {show(limit)}, and it may become {bound.because}",
        _fix(plan, unit, limit),
    )


def _fix(plan: Plan, unit: str, limit: float) -> str:
    terms = plan._terms

    def kept(changed: _Terms) -> bool:
        found = changed.most(unit)
        return found is not None and found[0] <= limit

    ways = []
    # A grid is tried in full.
    if all(kind.most is None for kind in terms.kinds):
        jobs = _largest(1, terms.jobs - 1, lambda count: kept(replace(terms, jobs=count)))
        if jobs is not None:
            ways.append(f"set max_training_jobs ({_JOBS}) to at most {jobs}")
    top = MAX_RUNTIME_SECONDS if terms.runtime is None else int(terms.runtime) - 1
    runtime = _largest(MIN_RUNTIME_SECONDS, top, lambda seconds: kept(replace(terms, runtime=float(seconds))))
    if runtime is not None:
        ways.append(f"set max_runtime ({_RUNTIME}) to at most {runtime} s")

    def cut(seconds: int) -> _Terms:
        return replace(
            terms, kinds=tuple(replace(kind, seconds=min(kind.seconds, seconds)) for kind in terms.kinds)
        )

    longest = int(max(kind.seconds for kind in terms.kinds))
    each = _largest(1, longest - 1, lambda seconds: kept(cut(seconds)))
    if each is not None:
        ways.append(f"set StoppingCondition.MaxRuntimeInSeconds of the training jobs to at most {each}")
    return ", or ".join(ways) if ways else "take fewer or smaller instances, or raise the limit"


def _largest(least: int, most: int, holds: Callable[[int], bool]) -> int | None:
    """Return the largest number for which it holds, if it holds for all smaller ones too."""
    if most < least or not holds(least):
        return None
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


# --- words -------------------------------------------------------------------------------------------


def _row(bound: Bound, show: Callable[[float], str]) -> str:
    return bound.because if bound.value is None else f"at most {show(bound.value)}: {bound.because}"


def _money(value: float, currency: str | None) -> str:
    text = f"{value:,.2f}" if value >= 0.01 or value == 0 else f"{value:.2g}"
    return f"{text} {currency or ''}".strip()


def _instance_time(seconds: float) -> str:
    return f"{_number(seconds)} instance-seconds = {seconds / 3600:,.1f} h"


def _time(seconds: float) -> str:
    return f"{_number(seconds)} s" + (f" = {seconds / 3600:,.1f} h" if seconds >= 3600 else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
