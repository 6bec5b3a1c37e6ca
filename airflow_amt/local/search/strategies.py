"""What a search is, and the ones that build no model: Random, Grid, and the draws of Hyperband."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow_amt.local.search.space import Combination, Key, Space

_ATTEMPTS = 64
#: Larger spaces are never listed in full.
_COUNTABLE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One combination that was tried.

    :param hyperparameters: the combination, values as strings.
    :param objective: its finite objective, ``None`` if it brought none.
    """

    hyperparameters: Combination
    objective: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What the parents of a warm start have tried.

    :param evaluations: their combinations; those outside the new ranges are left out of account.
    :param transfer: whether data or algorithm differ (``TransferLearning``), so that their objectives are
        on another scale; else (``IdenticalDataAndAlgorithm``) they are as good as own ones.
    """

    evaluations: Sequence[Evaluation]
    transfer: bool

    def within(self, space: Space) -> list[Evaluation]:
        """Return the evaluations that lie in a space, with the values as it writes them."""
        read = ((space.read(one.hyperparameters), one.objective) for one in self.evaluations)
        return [
            Evaluation(hyperparameters=combination, objective=objective)
            for combination, objective in read
            if combination is not None
        ]


class Search(Protocol):
    """Decides which combination of hyperparameters to try next."""

    #: Whether :meth:`propose` takes long enough (milliseconds) to be called off the event loop.
    slow: bool

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """Return one untried combination, or ``None`` if a finite space has none left.

        :param history: what was tried, in the order it ended.
        :param pending: what is being tried now.
        """


class Tried:
    """The combinations of a finite space that need not be tried again; of another space, none.

    :param space: the ranges.
    :param prior: combinations of parents with identical data and algorithm count as tried.
    """

    def __init__(self, space: Space, prior: Prior | None) -> None:
        self._space = space
        self._keys: set[Key] = set()
        self._seen = 0
        if space.size is not None and prior is not None and not prior.transfer:
            self._add(one.hyperparameters for one in prior.within(space))

    def update(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> set[Key]:
        """Return all keys; the history only grows at its end, so that the old part costs nothing."""
        if self._space.size is not None:
            self._add(one.hyperparameters for one in history[self._seen :])
            self._add(pending)
            self._seen = len(history)
        return self._keys

    def _add(self, combinations: Iterable[Combination]) -> None:
        self._keys.update(map(self._space.key, combinations))


class RandomSearch:
    """Draws combinations independently; the n-th one depends on the seed and on n alone.

    So a seed gives the same combinations whatever the timing, and after a restart. In a finite space no
    combination is tried twice.

    :param space: the ranges.
    :param seed: any whole number.
    :param prior: only keeps a finite space's combinations from being tried again.
    """

    slow = False

    def __init__(self, space: Space, seed: int, prior: Prior | None = None) -> None:
        self._space = space
        self._seed = seed
        self._tried = Tried(space, prior)

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`; costs no more for a long history than for a short one."""
        generator = random.Random(f"{self._seed}/{len(history) + len(pending)}")
        return untried(self._space, self._tried.update(history, pending), generator)


class GridSearch:
    """Goes through all combinations of categorical ranges, in the order of the ranges and their values.

    The first range changes fastest. Each combination is tried once: what is proposed is the first one that is
    neither in the history nor pending, so a restart and the order of ends change nothing.

    :param space: the ranges; it must be finite.
    """

    slow = False

    def __init__(self, space: Space) -> None:
        if space.size is None:
            raise ValueError("a grid needs a finite space")
        self._space = space
        self._size = space.size
        self._tried = Tried(space, None)
        self._next = 0

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`; goes on from where the last call found one."""
        tried = self._tried.update(history, pending)
        while self._next < self._size:
            combination = self._space.at(self._next)
            if self._space.key(combination) not in tried:
                return combination
            self._next += 1
        return None


def untried(space: Space, tried: set[Key], generator: random.Random) -> dict[str, str] | None:
    """Draw a combination that is not among the tried ones; ``None`` if the space has no other."""
    if space.size is None:
        return space.draw(generator)
    if len(tried) >= space.size:
        return None
    for _ in range(_ATTEMPTS if space.size <= _COUNTABLE else 1000 * _ATTEMPTS):
        drawn = space.draw(generator)
        if space.key(drawn) not in tried:
            return drawn
    # Drawing keeps hitting tried ones: most of the space is used up, or its scale makes the rest rare.
    left = [number for number in range(space.size) if space.key(space.at(number)) not in tried]
    return space.at(generator.choice(left))
