"""The one convergence rule: when is a tuning job unlikely to improve its best objective any more.

AMT does not publish its algorithm. The developer guide ("Track and set completion criteria for your tuning
job") defines the event: a tuning job has converged when none of the training jobs return a significant
improvement, 1 % or less, over the objective of the best training job so far. The rule below is the first,
simple reading of that sentence; see ``docs/adr/0003-first-convergence-rule.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from airflow_amt.tuning.criteria import ObjectiveType


class ConvergenceRule(Protocol):
    """Decides from the objectives seen so far whether a tuning job has converged."""

    def converged(self, objectives: Sequence[float], objective_type: ObjectiveType) -> bool:
        """Say whether the tuning job has converged.

        :param objectives: finite objectives of the finished training jobs, in the order they ended; those
            without an objective are left out.
        :param objective_type: which direction is better.
        """


@dataclass(frozen=True, slots=True)
class NoSignificantImprovement:
    """Converged when the last ``window`` objectives improved on the best before them by 1 % at the most.

    The margin is ``threshold`` times the magnitude of the best objective, or times the typical spread of
    the objectives (median absolute deviation) where that is larger: a margin relative to the best alone
    vanishes near zero, and then any rounding would count as an improvement.

    :param window: how many results in a row must bring no significant improvement.
    :param threshold: what is significant, as a share; the guide says 1 %.
    :param minimum: fewest results before it can fire at all, so that a lucky start does not end the search.

    Known limitation: it looks at the past only. It estimates nothing about what is left to find.
    """

    window: int = 20
    threshold: float = 0.01
    minimum: int = 25

    def converged(self, objectives: Sequence[float], objective_type: ObjectiveType) -> bool:
        """See :meth:`ConvergenceRule.converged`; costs O(n log n) for ``n`` objectives."""
        if len(objectives) < max(self.minimum, self.window + 1):
            return False
        sign = 1.0 if objective_type is ObjectiveType.MAXIMIZE else -1.0
        scores = [sign * value for value in objectives]
        before = max(scores[: -self.window])
        latest = max(scores[-self.window :])
        centre = median(scores)
        spread = median(abs(score - centre) for score in scores)
        return latest - before <= self.threshold * max(abs(before), spread)


#: The rule that the embedded AMT and :func:`airflow_amt.tuning.history.replay` use.
DEFAULT_RULE: ConvergenceRule = NoSignificantImprovement()
