"""The one convergence rule: when is a tuning job unlikely to improve its best objective any more.

AMT does not publish its algorithm. The developer guide ("Track and set completion criteria for your tuning
job") defines the event: a tuning job has converged when none of the training jobs return a significant
improvement, 1 % or less, over the objective of the best training job so far. How the rule below was chosen,
and what was measured of it and of others: ``docs/adr/0013-convergence-rule.md``.

Plain lists are enough to call it: :func:`converged` says whether a list of objectives has converged by its
end, :func:`converged_after` says after how many training jobs it had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from airflow_amt.tuning.criteria import ObjectiveType

#: A margin relative to the best objective vanishes where that is zero. It is never smaller than of an
#: objective that is so much of the distance between the best and a good one.
_ZERO = 1e-4
#: Improvements that exceed the margin by a billionth of it are rounding.
_ROUNDING = 1 + 1e-9


class ConvergenceRule(Protocol):
    """Decides from the objectives seen so far whether a tuning job has converged."""

    def converged(self, objectives: Sequence[float], objective_type: ObjectiveType) -> bool:
        """Say whether the tuning job has converged.

        :param objectives: finite objectives of the finished training jobs, in the order they ended; those
            without an objective are left out.
        :param objective_type: which direction of the objective is better.
        """


@dataclass(frozen=True, slots=True)
class ProportionalPatience:
    """Converged when there was no significant improvement for much longer than it took to get there.

    Purpose: tell that going on is unlikely to pay, whatever the length of the tuning job, which the rule is
    not told.

    How it works: among the results so far it looks for the first one that no later result improved on by more
    than ``threshold``. That it came as the ``n``-th of all is what getting there has cost; once ``patience``
    times as many results have followed, and there are ``minimum`` in all, the tuning job has converged.

    Why in proportion: what further results may bring depends on how many they are in proportion to those
    there were; for results of one distribution the chance of a new best is exactly that share. A fixed number
    of results without improvement ends a short tuning job too late and a long one too early.

    What 1 % is of: the best objective, as AMT's guide says. Where zero lies between the best objective and
    the one that a quarter of the results reach, that says little; then it is of the distance between these
    two. The answer is the same for objectives multiplied by any positive number, and for negated ones in the
    other direction; adding a constant changes what 1 % is, and so may change the answer.

    What it does not do: it knows neither the combinations that were tried nor how many training jobs may
    follow. It asks for objectives alone, so that replay and advice can use it on any history.

    Known limitation: it is a bet. Of the tuning jobs that it ends, many would have found something better by
    more than 1 % if they had gone on for long enough (the decision record has the figures), most of all where
    small improvements never cease, as of losses near zero. Tuning jobs of less than ``minimum`` results never
    converge.

    :param patience: results without a significant improvement, in multiples of those it took to get there;
        above 0. More of it saves less, and misses less.
    :param threshold: what is significant, as a share; the guide says 1 %.
    :param minimum: fewest results before it can be true, so that a lucky start does not end the search.
    :raises ValueError: ``patience``, ``threshold`` or ``minimum`` is out of range.
    """

    patience: float = 3.0
    threshold: float = 0.01
    minimum: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.patience < math.inf:
            raise ValueError(f"patience must be above 0 and finite, not {self.patience!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a share from 0 to 1, not {self.threshold!r}")
        if not self.minimum >= 1 or self.minimum % 1:
            raise ValueError(f"minimum must be a whole number from 1 on, not {self.minimum!r}")

    def converged(self, objectives: Sequence[float], objective_type: ObjectiveType) -> bool:
        """See :meth:`ConvergenceRule.converged`; costs O(n log n) for ``n`` objectives."""
        number = len(objectives)
        if number < self.minimum:
            return False
        needed = self.needed(objectives, objective_type)
        return number - needed >= self.patience * needed

    def needed(self, objectives: Sequence[float], objective_type: ObjectiveType) -> int:
        """Return how many results it took until none was to come that is better by a significant amount.

        :param objectives: see :meth:`ConvergenceRule.converged`; at least one.
        :param objective_type: which direction of the objective is better.
        """
        scores = _scores(objectives, objective_type)
        enough = max(scores) - self._margin(scores)
        return next(position for position, score in enumerate(scores, start=1) if score >= enough)

    def _margin(self, scores: Sequence[float]) -> float:
        """Return by how much a result must be better to be so by a significant amount."""
        # A quarter, not half: training jobs that report a huge loss instead of failing say nothing of scale.
        ordered = sorted(scores, reverse=True)
        # Shares of these, since the distance of the largest floats is none.
        best, good = ordered[0] * self.threshold, ordered[len(ordered) // 4] * self.threshold
        distance = best - good
        if good < 0 < best:
            return distance * _ROUNDING
        return max(abs(best), distance * _ZERO) * _ROUNDING


@dataclass(frozen=True, slots=True)
class NoSignificantImprovement:
    """Met when the last ``window`` objectives improved on the best before them by a share at the most.

    A plain plateau, for the stop policy of that name. The margin is ``threshold`` times the magnitude of the
    best objective, or times the typical spread of the objectives (median absolute deviation) where that is
    larger: a margin relative to the best alone vanishes near zero, and then any rounding would count as an
    improvement.

    :param window: how many results in a row must bring no significant improvement.
    :param threshold: what is significant, as a share.
    :param minimum: fewest results before it can be met at all, so that a lucky start does not end the search.

    Known limitation: it looks at the past only. It estimates nothing about what is left to find.
    """

    window: int = 20
    threshold: float = 0.01
    minimum: int = 25

    def converged(self, objectives: Sequence[float], objective_type: ObjectiveType) -> bool:
        """See :meth:`ConvergenceRule.converged`; costs O(n log n) for ``n`` objectives."""
        if len(objectives) < max(self.minimum, self.window + 1):
            return False
        scores = _scores(objectives, objective_type)
        before = max(scores[: -self.window])
        latest = max(scores[-self.window :])
        centre = median(scores)
        spread = median(abs(score - centre) for score in scores)
        return latest - before <= self.threshold * max(abs(before), spread)


#: The rule that the embedded AMT and :func:`airflow_amt.tuning.history.replay` use.
DEFAULT_RULE: ConvergenceRule = ProportionalPatience()


def converged(
    objectives: Iterable[float | None],
    objective_type: ObjectiveType | str,
    *,
    rule: ConvergenceRule = DEFAULT_RULE,
) -> bool:
    """Say whether a tuning job with these results has converged.

    :param objectives: one entry for each finished training job, in the order they ended. ``None`` and numbers
        that are not finite stand for training jobs without an objective: they count for nothing.
    :param objective_type: which direction is better: ``"Maximize"`` or ``"Minimize"``.
    :param rule: the convergence rule.
    :raises TypeError: an entry is neither a number nor ``None``.
    :raises ValueError: the objective type is none.
    """
    direction = ObjectiveType(objective_type)
    known = [number for one in objectives if (number := _number(one)) is not None]
    return rule.converged(known, direction)


def converged_after(
    objectives: Iterable[float | None],
    objective_type: ObjectiveType | str,
    *,
    rule: ConvergenceRule = DEFAULT_RULE,
) -> int | None:
    """Return after how many training jobs convergence was first detected, ``None`` if it never was.

    ``CompleteOnConvergence`` would have ended the tuning job there. Training jobs without an objective are
    counted in what is returned, as they have run, but not by the rule.

    :param objectives: see :func:`converged`.
    :param objective_type: see :func:`converged`.
    :param rule: the convergence rule.
    :raises TypeError: an entry is neither a number nor ``None``.
    :raises ValueError: the objective type is none.
    """
    direction = ObjectiveType(objective_type)
    seen: list[float] = []
    for count, one in enumerate(objectives, start=1):
        number = _number(one)
        if number is None:
            continue
        seen.append(number)
        if rule.converged(seen, direction):
            return count
    return None


def _number(value: Any) -> float | None:
    """Return a finite number as a float, also one of NumPy's, ``None`` for a missing or other one."""
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"an objective must be a number or None, not the text {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int too large for a double
        return None
    return number if math.isfinite(number) else None


def _scores(objectives: Sequence[float], objective_type: ObjectiveType) -> list[float]:
    """Return the objectives such that more is better."""
    sign = 1.0 if objective_type is ObjectiveType.MAXIMIZE else -1.0
    return [sign * objective for objective in objectives]
