"""Which running training jobs are stopped early: the median rule of AMT, and Hyperband.

A rule sees the curve of a training job: one objective per emission, which AMT counts as one per epoch. It is
pure: the same calls in the same order give the same answers, and :meth:`StoppingRule.ended` alone, called for
the training jobs that have ended in the order of their ends, brings a new rule to where an old one was.

An objective that is not finite is worse than every finite one. Objectives that differ by less than rounding
(a billionth of their size) are equal.
"""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning import request
from airflow_amt.tuning.criteria import ObjectiveType
from airflow_amt.tuning.request import MAX_RESOURCE_KEYS

#: Fewest previous training jobs that the median rule compares with. AMT does not publish its own.
MIN_PREVIOUS_TRAINING_JOBS = 3

#: One in so many training jobs goes on from a rung to the next, which lies so many times higher.
ETA = 3

#: Most epochs of Hyperband (API reference, ``HyperbandStrategyConfig``).
MAX_RESOURCE = 20_000

_HYPERBAND = "HyperParameterTuningJobConfig.StrategyConfig.HyperbandStrategyConfig"
_SAME = 1e-9


class StoppingRule(Protocol):
    """Decides which running training jobs are stopped early."""

    def report(self, name: str, curve: Sequence[float]) -> bool:
        """Return whether a running training job is to be stopped now.

        :param name: the training job.
        :param curve: its objectives so far, one per epoch; it only grows at its end, by one or several.
        """

    def ended(self, name: str, curve: Sequence[float]) -> None:
        """Note that a training job has ended, however it did.

        :param name: the training job.
        :param curve: all its objectives.
        """


class MedianRule:
    """Stops a training job that is worse than the median of the previous ones (``Auto``).

    Purpose: AMT's early stopping (developer guide, "How Early Stopping Works").

    How it works: after each epoch, the running average of the objective up to the same epoch is taken for
    every previous training job, and the median of these averages. A training job whose objective is worse is
    stopped.

    What the guide leaves open: previous training jobs are those that have ended, however, and got as far as
    this epoch; nothing is stopped before there are :data:`MIN_PREVIOUS_TRAINING_JOBS` of them. When several
    epochs are reported at once, the last one decides.

    :param objective_type: which direction of the objective is better.
    """

    def __init__(self, objective_type: ObjectiveType) -> None:
        self._objective_type = objective_type
        #: For each epoch, the running averages of the losses of those who got there.
        self._averages: list[list[float]] = []

    def report(self, name: str, curve: Sequence[float]) -> bool:
        """See :meth:`StoppingRule.report`."""
        if not curve or len(curve) > len(self._averages):
            return False
        averages = self._averages[len(curve) - 1]
        if len(averages) < MIN_PREVIOUS_TRAINING_JOBS:
            return False
        return _worse(_loss(curve[-1], self._objective_type), statistics.median(averages))

    def ended(self, name: str, curve: Sequence[float]) -> None:
        """See :meth:`StoppingRule.ended`."""
        average = 0.0
        for position, objective in enumerate(curve):
            # In this form no sum can overflow.
            share = 1 / (position + 1)
            average = average * (1 - share) + _loss(objective, self._objective_type) * share
            if position == len(self._averages):
                self._averages.append([])
            self._averages[position].append(average)


class HyperbandRule:
    """Asynchronous successive halving that stops, with several brackets (``Hyperband``).

    Purpose: the part of AMT's Hyperband that ends training jobs; AMT does not publish its algorithm.

    How it works: rungs lie at ``min_resource`` epochs and at every :data:`ETA` times more, below
    ``max_resource``. A training job that reaches a rung must be among the best 1 / :data:`ETA` of all that
    have reached it so far (at least the best one; equals go on), or it is stopped. It is judged once on each
    rung, on its objective there. How early this begins depends on its bracket: in the first one at the lowest
    rung, in each further one a rung later, in the last one never. The bracket is drawn from the seed and the
    name, in the proportions of Hyperband, whose first bracket is the largest. What reached a rung counts
    there whatever its bracket.

    When several epochs are reported at once, only the highest new rung is judged: what came before is spent.

    :param objective_type: which direction of the objective is better.
    :param min_resource: epochs before which nothing is stopped, at least 1.
    :param max_resource: epochs at which a training job is stopped, at least ``min_resource``.
    :param ends_by_itself: whether the trainer itself ends after ``max_resource`` epochs; then it is left to.
    :param seed: any whole number.
    """

    def __init__(
        self,
        objective_type: ObjectiveType,
        *,
        min_resource: int,
        max_resource: int,
        ends_by_itself: bool,
        seed: int,
    ) -> None:
        self._objective_type = objective_type
        self._max_resource = max_resource
        self._ends_by_itself = ends_by_itself
        self._seed = seed
        self.rungs: list[int] = []
        rung = min_resource
        while rung < max_resource:
            self.rungs.append(rung)
            rung *= ETA
        brackets = len(self.rungs) + 1
        halvings = range(brackets - 1, -1, -1)
        self._weights = [math.ceil(brackets / (count + 1) * ETA**count) for count in halvings]
        #: For each rung, the losses there.
        self._losses: list[list[float]] = [[] for _ in self.rungs]
        #: How many rungs each training job has reached.
        self._reached: dict[str, int] = {}

    def bracket(self, name: str) -> int:
        """Return a training job's bracket: the number of rungs that it passes without being judged."""
        generator = random.Random(f"{self._seed}/{name}")
        return generator.choices(range(len(self._weights)), self._weights)[0]

    def report(self, name: str, curve: Sequence[float]) -> bool:
        """See :meth:`StoppingRule.report`."""
        if len(curve) >= self._max_resource:
            self._note(name, curve)
            return not self._ends_by_itself
        highest = self._note(name, curve)
        if highest is None or highest < self.bracket(name):
            return False
        losses = self._losses[highest]
        loss = _loss(curve[self.rungs[highest] - 1], self._objective_type)
        better = sum(_worse(loss, other) for other in losses)
        return better >= max(1, len(losses) // ETA)

    def ended(self, name: str, curve: Sequence[float]) -> None:
        """See :meth:`StoppingRule.ended`."""
        self._note(name, curve)

    def _note(self, name: str, curve: Sequence[float]) -> int | None:
        """Enter a training job on the rungs that it has newly reached, and return the highest of these."""
        before = self._reached.get(name, 0)
        now = bisect_right(self.rungs, len(curve))
        for position in range(before, now):
            self._losses[position].append(_loss(curve[self.rungs[position] - 1], self._objective_type))
        self._reached[name] = max(before, now)
        return now - 1 if now > before else None


def create_stopping_rule(
    config: Mapping[str, Any],
    static_hyperparameters: Mapping[str, str],
    objective_type: ObjectiveType,
    seed: int,
) -> StoppingRule | None:
    """Return the rule that a tuning job asks for, ``None`` if it stops no training job early.

    :param config: the API's ``HyperParameterTuningJobConfig``.
    :param static_hyperparameters: of its training job definition.
    :param objective_type: which direction of the objective is better.
    :param seed: any whole number.
    :raises AmtFieldError: Hyperband's resources are missing or wrong.
    """
    if config["Strategy"] == "Hyperband":
        low, high = hyperband_resources(config, static_hyperparameters)
        return HyperbandRule(
            objective_type,
            min_resource=low,
            max_resource=high,
            ends_by_itself=high == _inferred(static_hyperparameters)[1],
            seed=seed,
        )
    if config.get("TrainingJobEarlyStoppingType") == "Auto":
        return MedianRule(objective_type)
    return None


def hyperband_resources(config: Mapping[str, Any], static: Mapping[str, str]) -> tuple[int, int]:
    """Return Hyperband's ``MinResource`` and ``MaxResource``, in epochs.

    ``MinResource`` defaults to 1, ``MaxResource`` to what requests are checked with
    (:func:`airflow_amt.tuning.request.hyperband_resources`).

    :param config: the API's ``HyperParameterTuningJobConfig``.
    :param static: the static hyperparameters, also in JSON's quotes as the SageMaker SDK writes them.
    :raises AmtFieldError: there is no ``MaxResource`` and nothing to infer it from, a value is not within
        1 to :data:`MAX_RESOURCE`, or ``MinResource`` is above ``MaxResource``.
    """
    given = (config.get("StrategyConfig") or {}).get("HyperbandStrategyConfig") or {}
    high: int | None = given.get("MaxResource")
    found: object = high
    field = f"{_HYPERBAND}.MaxResource"
    if high is None:
        name, high = _inferred(static)
        if name is None:
            raise AmtFieldError(
                field,
                None,
                "Hyperband needs the most epochs of a training job, and no static hyperparameter tells them "
                f"({', '.join(MAX_RESOURCE_KEYS)})",
                "set MaxResource",
            )
        field, found = f"StaticHyperParameters.{name}", static[name]
    if high is None or not 1 <= high <= MAX_RESOURCE:
        raise AmtFieldError(field, found, f"a whole number of epochs, 1 to {MAX_RESOURCE}", "set MaxResource")
    low: int = given.get("MinResource", 1)
    if not 1 <= low <= high:
        raise AmtFieldError(
            f"{_HYPERBAND}.MinResource", low, f"1 to MaxResource ({high})", "lower MinResource"
        )
    return low, high


def _inferred(static: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Return the static hyperparameter that says how many epochs the trainer runs, and how many these are.

    It is the first one that says so; the first one that is there if none does, with no number.
    """
    there = [name for name in MAX_RESOURCE_KEYS if name in static]
    for name in there:
        resources = request.hyperband_resources({}, {"StaticHyperParameters": {name: static[name]}})
        if resources is not None:
            return name, resources[1]
    return (there[0] if there else None), None


def _loss(objective: float, objective_type: ObjectiveType) -> float:
    if not math.isfinite(objective):
        return math.inf
    return -objective if objective_type is ObjectiveType.MAXIMIZE else objective


def _worse(loss: float, other: float) -> bool:
    return loss > other and not math.isclose(loss, other, rel_tol=_SAME)
