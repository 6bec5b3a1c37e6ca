"""What a tuning job consumes: instance time, billed time and money, so far and at its end.

Facts. ``BillableTimeInSeconds`` (DescribeTrainingJob) is what one instance of a training job is billed for,
by the wall clock; it is to be multiplied by the instances (API, ``DescribeTrainingJob``). With managed spot
training it is less than ``TrainingTimeInSeconds`` by the discount that AWS gave (developer guide, "Managed
Spot Training"), so that billable time at the price on demand is the money in both cases. It is known when a
training job has ended; before that, and where a training job was not described, it is estimated from its
training time.

Prices come from whoever pays: nothing here knows any. Only instances are counted: not storage, not transfer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.history import TrainingJobResult, aware, finite
from airflow_amt.tuning.parameters import NUMBER
from airflow_amt.tuning.request import training_job_definitions

#: Seconds that a training job may take to end once the tuning job is stopped (developer guide: SIGTERM, then
#: 120 s until SIGKILL).
STOP_SECONDS = 120.0

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """What an hour of one instance costs, on demand, in the region and currency of whoever pays.

    :param currency: a word for people, as ``USD`` or ``EUR``.
    :param per_hour: price by instance type (``ml.m5.xlarge``).
    :param spot_discount: share of the price that managed spot training is expected to save, from 0 to below
        1; used for what has not been billed yet. What was billed is known.
    :param source: where the prices come from, for people.
    :param at: as of when they are, for people.
    :raises AmtRequestError: one of them is not accepted; all that is wrong is listed.
    """

    currency: str
    per_hour: Mapping[str, float] = field(default_factory=dict)
    spot_discount: float = 0.0
    source: str = ""
    at: str = ""

    def __post_init__(self) -> None:
        problems = _price_problems(
            {
                "currency": self.currency,
                "per_hour": self.per_hour,
                "spot_discount": self.spot_discount,
                "source": self.source,
                "at": self.at,
            },
            "prices",
        )
        if problems:
            raise AmtRequestError(problems)

    @classmethod
    def parse(cls, value: Any, *, path: str = "prices") -> PriceTable:
        """Read a price table from itself, its dict or the JSON text of that.

        :param value: ``{"currency": "EUR", "per_hour": {"ml.m5.xlarge": 0.26}, "spot_discount": 0.6}``;
            numbers may be text, as AWS's price list has them.
        :param path: how errors name it.
        :raises AmtRequestError: it is none; all that is wrong is listed.
        """
        if isinstance(value, cls):
            return value
        given = _from_json(value) if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise AmtRequestError(
                [
                    AmtFieldError(
                        path,
                        value,
                        "a price table: a dict with currency and per_hour",
                        'give {"currency": "EUR", "per_hour": {"ml.m5.xlarge": 0.26}}',
                    )
                ]
            )
        found = {str(key): one for key, one in given.items() if one is not None}
        per_hour = found.get("per_hour")
        if isinstance(per_hour, Mapping):
            found["per_hour"] = {str(kind): NUMBER.read(price) for kind, price in per_hour.items()}
        found["spot_discount"] = NUMBER.read(found.get("spot_discount", 0.0))
        problems = _price_problems(found, path)
        if problems:
            raise AmtRequestError(problems)
        return cls(
            currency=found["currency"],
            per_hour={kind: float(price) for kind, price in found["per_hour"].items()},
            spot_discount=float(found["spot_discount"]),
            source=found.get("source", ""),
            at=found.get("at", ""),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict, which :meth:`parse` reads back."""
        return {
            "currency": self.currency,
            "per_hour": dict(self.per_hour),
            "spot_discount": self.spot_discount,
            **({"source": self.source} if self.source else {}),
            **({"at": self.at} if self.at else {}),
        }


def _price_problems(given: Mapping[str, Any], path: str) -> list[AmtFieldError]:
    problems = [
        AmtFieldError(f"{path}.{key}", given[key], "not known here", "leave it out")
        for key in given
        if key not in ("currency", "per_hour", "spot_discount", "source", "at")
    ]
    currency = given.get("currency")
    if not isinstance(currency, str) or not currency.strip():
        problems.append(
            AmtFieldError(f"{path}.currency", currency, "a word such as EUR", "say what is paid in")
        )
    per_hour = given.get("per_hour")
    if not isinstance(per_hour, Mapping) or not per_hour:
        problems.append(
            AmtFieldError(
                f"{path}.per_hour",
                per_hour,
                "prices of an hour by instance type",
                'give for example {"ml.m5.xlarge": 0.26}',
            )
        )
        per_hour = {}
    for kind, price in per_hour.items():
        number = finite(price)
        if number is None or not 0 <= number <= _LARGEST_PRICE:
            problems.append(
                AmtFieldError(
                    f"{path}.per_hour[{kind!r}]",
                    price,
                    f"a number from 0 to {_LARGEST_PRICE:g}",
                    "give the hour's price",
                )
            )
    discount = finite(given.get("spot_discount"))
    if discount is None or not 0 <= discount < 1:
        problems.append(
            AmtFieldError(
                f"{path}.spot_discount",
                given.get("spot_discount"),
                "a share from 0 to below 1",
                "give 0.6 for 60 % off",
            )
        )
    problems += [
        AmtFieldError(f"{path}.{key}", given[key], "text for people", "leave it out")
        for key in ("source", "at")
        if not isinstance(given.get(key, ""), str)
    ]
    return problems


#: No price of an hour is above this in any currency.
_LARGEST_PRICE = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one training job of a definition runs on.

    :param instances: instance types and how many of each; more than one for a heterogeneous cluster.
    :param alternatives: whether AMT may choose another type (``HyperParameterTuningResourceConfig``): then
        the first one, its favourite, is in ``instances``.
    :param spot: managed spot training.
    :param max_runtime_seconds: its own time limit (``StoppingCondition.MaxRuntimeInSeconds``).
    """

    instances: tuple[tuple[str, int], ...]
    alternatives: bool = False
    spot: bool = False
    max_runtime_seconds: float | None = None

    @property
    def count(self) -> int:
        """Instances in all."""
        return sum(count for _, count in self.instances)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, spot: bool = False, stopping: Mapping[str, Any] | None = None
    ) -> Resources:
        """Read a ``ResourceConfig`` or ``HyperParameterTuningResourceConfig`` of the API.

        :param config: that.
        :param spot: ``EnableManagedSpotTraining``.
        :param stopping: ``StoppingCondition``.
        """
        groups = [one for one in config.get("InstanceGroups") or () if isinstance(one, Mapping)]
        choices = [one for one in config.get("InstanceConfigs") or () if isinstance(one, Mapping)]
        holders = groups or choices[:1] or [config]
        instances = tuple(
            (str(one.get("InstanceType") or ""), max(1, int(finite(one.get("InstanceCount")) or 1)))
            for one in holders
        )
        return cls(
            instances=instances,
            alternatives=len(choices) > 1,
            spot=spot,
            max_runtime_seconds=finite((stopping or {}).get("MaxRuntimeInSeconds")),
        )


def resources_of(description: Mapping[str, Any]) -> dict[str | None, Resources]:
    """Return what the training jobs of a request or description run on, by the name of their definition."""
    found: dict[str | None, Resources] = {}
    for _, definition in training_job_definitions(description):
        config = (
            definition.get("ResourceConfig") or definition.get("HyperParameterTuningResourceConfig") or {}
        )
        found[definition.get("DefinitionName")] = Resources.from_config(
            config,
            spot=bool(definition.get("EnableManagedSpotTraining")),
            stopping=definition.get("StoppingCondition"),
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJobUsage:
    """What one training job has consumed by now.

    :param name: its name.
    :param resources: what it runs on.
    :param training_seconds: wall clock of training so far.
    :param billable_seconds: what AWS bills for one instance; ``None`` while that is not known.
    :param running: whether it still consumes.
    """

    name: str
    resources: Resources
    training_seconds: float
    billable_seconds: float | None = None
    running: bool = False

    @classmethod
    def from_describe(cls, description: Mapping[str, Any], *, now: datetime) -> TrainingJobUsage:
        """Read the answer of ``DescribeTrainingJob``."""
        result = TrainingJobResult(
            name=str(description.get("TrainingJobName") or ""),
            status=str(description.get("TrainingJobStatus") or ""),
            started_at=aware(description.get("TrainingStartTime")),
            ended_at=aware(description.get("TrainingEndTime")),
        )
        resources = Resources.from_config(
            description.get("ResourceConfig") or {},
            spot=bool(description.get("EnableManagedSpotTraining")),
            stopping=description.get("StoppingCondition"),
        )
        estimated = cls.from_result(result, resources, now=now)
        told = finite(description.get("TrainingTimeInSeconds"))
        return cls(
            name=estimated.name,
            resources=resources,
            training_seconds=estimated.training_seconds if told is None else max(0.0, told),
            billable_seconds=finite(description.get("BillableTimeInSeconds")),
            running=estimated.running,
        )

    @classmethod
    def from_result(
        cls, result: TrainingJobResult, resources: Resources, *, now: datetime
    ) -> TrainingJobUsage:
        """Estimate from a summary of the list: its training time, at what its definition runs on."""
        running = not result.has_ended
        seconds = result.training_seconds
        if seconds is None and running and result.started_at is not None:
            # In UTC: two times in one time zone subtract as clocks on a wall do.
            seconds = max(0.0, (now.astimezone(UTC) - result.started_at.astimezone(UTC)).total_seconds())
        return cls(name=result.name, resources=resources, training_seconds=seconds or 0.0, running=running)

    @property
    def seconds_left(self) -> float | None:
        """For how long its own time limit lets it train on; ``None`` if that is not known."""
        limit = self.resources.max_runtime_seconds
        return None if limit is None else max(0.0, limit - self.training_seconds)

    def billed_seconds(self, spot_discount: float) -> float:
        """Return what one instance is billed for, as AWS says it or as expected."""
        if self.billable_seconds is not None and not self.running:
            return max(0.0, self.billable_seconds)
        return self.training_seconds * (1 - spot_discount if self.resources.spot else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What a tuning job has consumed by now, and how fast it consumes.

    Compute is training time times instances; billable is billed time times instances, both in
    instance-seconds. Money is ``None`` without prices, or if the price of an instance type is missing.

    :param compute_seconds: compute.
    :param billable_seconds: billed compute.
    :param cost: money.
    :param cost_at_least: money for what has a price.
    :param rate: how much of each the running training jobs consume in a second: compute, billable, money.
    :param typical: of each running training job or, if none runs, of each, its rate and its own time limit in
        seconds, ``None`` if that is not known: what a training job to come may be like.
    :param running: of each running training job its rate, and for how many seconds its own time limit lets it
        run on, ``None`` if that is not known.
    :param mean: how much of each an ended training job consumed on average; ``None`` before the first ended.
    :param left_of_running: how much of each the running ones are expected to consume until they end.
    :param currency: of the money.
    :param unpriced: instance types without a price.
    """

    compute_seconds: float
    billable_seconds: float
    cost: float | None
    cost_at_least: float
    rate: tuple[float, float, float | None]
    typical: tuple[tuple[tuple[float, float, float | None], float | None], ...]
    running: tuple[tuple[tuple[float, float, float | None], float | None], ...]
    mean: tuple[float, float, float | None] | None
    left_of_running: tuple[float, float, float | None]
    currency: str | None = None
    unpriced: tuple[str, ...] = ()

    @classmethod
    def measure(cls, usages: Iterable[TrainingJobUsage], prices: PriceTable | None = None) -> Consumption:
        """Add up what training jobs have consumed."""
        discount = 0.0 if prices is None else prices.spot_discount
        amounts = [(one, _amounts(one, one.training_seconds, discount, prices)) for one in usages]
        ended = [amount for one, amount in amounts if not one.running and one.training_seconds > 0]
        running = [(one, amount, _rate(one, discount, prices)) for one, amount in amounts if one.running]
        mean = None if not ended else _shared(_sum(ended), len(ended))
        like = [one for one, _, _ in running] or [one for one, _ in amounts]
        left = _sum(_NOTHING if mean is None else _left(mean, amount) for _, amount, _ in running)
        total = _sum(amount for _, amount in amounts)
        return cls(
            compute_seconds=total[0],
            billable_seconds=total[1],
            cost=None if prices is None else total[2],
            cost_at_least=sum(amount[2] or 0.0 for _, amount in amounts),
            rate=_sum(rate for _, _, rate in running),
            typical=tuple((_rate(one, discount, prices), one.resources.max_runtime_seconds) for one in like),
            running=tuple((rate, one.seconds_left) for one, _, rate in running),
            mean=mean,
            left_of_running=left,
            currency=None if prices is None else prices.currency,
            unpriced=() if prices is None else _unpriced((one for one, _ in amounts), prices),
        )

    def of(self, unit: str) -> float | None:
        """Return what was consumed in a unit: ``compute_seconds``, ``billable_seconds`` or ``money``."""
        return (self.compute_seconds, self.billable_seconds, self.cost)[UNITS.index(unit)]

    def rate_of(self, unit: str) -> float | None:
        """Return what is consumed in a second."""
        return self.rate[UNITS.index(unit)]

    def after_stop(self, unit: str, seconds: float = STOP_SECONDS) -> float | None:
        """Return what will have been consumed if the tuning job is stopped now, at most.

        :param seconds: how long each running training job may take to end; its own time limit can be sooner.
        """
        spent, reserve = self.of(unit), self.reserve(unit, seconds)
        return None if spent is None or reserve is None else spent + reserve

    def reserve(
        self, unit: str, seconds: float, *, slots: int | None = None, launches_left: int | None = None
    ) -> float | None:
        """Return what training jobs still consume once the tuning job is stopped, at most.

        :param seconds: how long each may take to end; its own time limit can be sooner.
        :param slots: how many training jobs run at once. Those that are free now may be filled before the
            stop with training jobs that consume as much as the most hungry typical one.
        :param launches_left: training jobs that are still to be launched; ``None`` if there is no limit.
        """
        index = UNITS.index(unit)
        busy = [_for(rates[index], seconds, left) for rates, left in self.running]
        like = [_for(rates[index], seconds, limit) for rates, limit in self.typical]
        known = [one for one in (*busy, *like) if one is not None]
        if len(known) < len(busy) + len(like):
            return None
        free = max(0, (slots or 0) - len(self.running))
        free = free if launches_left is None else min(free, launches_left)
        return sum(known[: len(busy)]) + free * max(known[len(busy) :], default=0.0)

    def at_completion(
        self,
        unit: str,
        launches_left: int | None,
        *,
        seconds_left: float | None = None,
        slots: int | None = None,
    ) -> float | None:
        """Project what will have been consumed when the tuning job comes to its own end.

        The smaller of two: by the number of training jobs, the running ones and those still to be launched
        consume as much as an ended one did on average; by the time limit, all slots consume until then. The
        other criteria can end the tuning job earlier.

        :param launches_left: training jobs that are still to be launched; ``None`` if there is no limit.
        :param seconds_left: until the tuning job's own time limit; ``None`` if there is none.
        :param slots: how many training jobs run at once; by default, as many as run now.
        :return: ``None`` before the first training job ended, or without either limit.
        """
        index, spent = UNITS.index(unit), self.of(unit)
        if self.mean is None or spent is None:
            return None
        projections: list[float] = []
        left, each = self.left_of_running[index], self.mean[index]
        if launches_left is not None and left is not None and each is not None:
            projections.append(spent + left + each * launches_left)
        rates = [rate for one, _ in self.typical if (rate := one[index]) is not None]
        if seconds_left is not None and rates:
            at_once = max(len(self.running), slots or 1)
            projections.append(spent + sum(rates) / len(rates) * at_once * seconds_left)
        return min(projections, default=None)


#: In what a budget can be given.
UNITS = ("compute_seconds", "billable_seconds", "money")

_Amount = tuple[float, float, float | None]
_NOTHING: _Amount = (0.0, 0.0, 0.0)


def _amounts(
    usage: TrainingJobUsage, training_seconds: float, discount: float, prices: PriceTable | None
) -> _Amount:
    billed = usage.billed_seconds(discount)
    count = usage.resources.count
    return training_seconds * count, billed * count, _money(usage.resources, billed, prices)


def _rate(usage: TrainingJobUsage, discount: float, prices: PriceTable | None) -> _Amount:
    billed = 1 - discount if usage.resources.spot else 1.0
    count = usage.resources.count
    return float(count), billed * count, _money(usage.resources, billed, prices)


def _money(resources: Resources, seconds: float, prices: PriceTable | None) -> float | None:
    if prices is None or any(kind not in prices.per_hour for kind, _ in resources.instances):
        return None
    return sum(prices.per_hour[kind] * count for kind, count in resources.instances) * seconds / _HOUR


def _for(rate: float | None, seconds: float, limit: float | None) -> float | None:
    return None if rate is None else rate * (seconds if limit is None else min(seconds, max(0.0, limit)))


def _left(mean: _Amount, amount: _Amount) -> _Amount:
    money = None if mean[2] is None or amount[2] is None else max(0.0, mean[2] - amount[2])
    return max(0.0, mean[0] - amount[0]), max(0.0, mean[1] - amount[1]), money


def _sum(amounts: Iterable[_Amount]) -> _Amount:
    compute = billable = 0.0
    money: float | None = 0.0
    for one in amounts:
        compute += one[0]
        billable += one[1]
        money = None if money is None or one[2] is None else money + one[2]
    return compute, billable, money


def _shared(amount: _Amount, by: int) -> _Amount:
    return amount[0] / by, amount[1] / by, None if amount[2] is None else amount[2] / by


def _unpriced(usages: Iterable[TrainingJobUsage], prices: PriceTable) -> tuple[str, ...]:
    kinds = {kind for one in usages for kind, _ in one.resources.instances}
    return tuple(sorted(kinds - set(prices.per_hour)))


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
