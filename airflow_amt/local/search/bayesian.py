"""Bayesian search: a Gaussian process and expected improvement."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from airflow_amt.local.search.gaussian_process import Array, GaussianProcess, fit
from airflow_amt.local.search.space import CategoricalParameter, Combination, Key, Space
from airflow_amt.local.search.strategies import Evaluation, Prior, Tried, untried
from airflow_amt.tuning.criteria import ObjectiveType

#: Combinations that are spread evenly before there is a model.
_SPREAD = 5
#: Fewest objectives that a model is made of.
_FEWEST = 3
#: Most points that the kernel is fitted to, and that the model is conditioned on: they bound the time.
_FITTED, _CONDITIONED = 100, 240
_CANDIDATES = 1000
#: Finite spaces up to this size are looked at in full.
_LISTED = 2000
#: How many of the best combinations new ones are varied from, how often, and in how many rounds.
_CENTRES, _VARIATIONS, _ROUNDS = 5, 60, 3


class BayesianSearch:
    """A Gaussian process over all hyperparameters, and expected improvement over the best objective.

    Purpose: find good combinations in few training jobs.

    How it works: the first few combinations are spread evenly (a low-discrepancy sequence). Then a Gaussian
    process is fitted to the ranks of the objectives (turned into normal scores, so their scale and outliers
    do not matter), and the combination of highest expected improvement is proposed, among random ones and
    variations of the best. Pending training jobs count as if they had brought what the model expects, failed
    ones as the worst so far.

    The same seed, history and pending training jobs give the same proposal, also after a restart. In a finite
    space no combination is tried twice.

    Known limitation: of a long history the model sees the best and an even sample of the rest.

    :param space: the ranges.
    :param objective_type: which direction of the objective is better.
    :param seed: any whole number.
    :param prior: what the parents of a warm start have tried.
    """

    slow = True

    def __init__(
        self, space: Space, objective_type: ObjectiveType, seed: int, prior: Prior | None = None
    ) -> None:
        self._space = space
        self._sign = 1.0 if objective_type is ObjectiveType.MAXIMIZE else -1.0
        self._seed = seed
        self._tried = Tried(space, prior)
        self._transfer = prior is not None and prior.transfer
        self._prior = prior.within(space) if prior is not None else []
        self._categorical = np.array(
            [isinstance(one, CategoricalParameter) for one in space.parameters], dtype=np.bool_
        )
        self._encoded: dict[Key, Array] = {}
        #: The places of a discrete hyperparameter's values, and the edges between them.
        self._grids: dict[int, tuple[Array, Array]] = {}

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`; takes tens of milliseconds."""
        tried = self._tried.update(history, pending)
        number = len(history) + len(pending)
        generator = random.Random(f"{self._seed}/{number}")
        if self._space.size is not None and len(tried) >= self._space.size:
            return None
        own = [*([] if self._transfer else self._prior), *history]
        known = sum(one.objective is not None for one in own)
        started = number + (0 if self._transfer else len(self._prior))
        if started < _SPREAD or known < _FEWEST:
            return self._spread(number, tried, generator)
        return self._best(own, pending, tried, generator)

    def _spread(self, number: int, tried: set[Key], generator: random.Random) -> dict[str, str] | None:
        """Return the n-th point of a Kronecker sequence with the seed's shift, or an untried one."""
        dimensions = len(self._space.parameters)
        shift = np.random.default_rng(random.Random(f"{self._seed}/shift").getrandbits(64)).random(dimensions)
        # The generalised golden ratio: the root of x ** (d + 1) = x + 1, found by iterating.
        ratio = 2.0
        for _ in range(50):
            ratio = (1 + ratio) ** (1 / (dimensions + 1))
        steps = ratio ** -np.arange(1.0, dimensions + 1)
        combination = self._decode((shift + number * steps) % 1.0)
        if self._space.size is not None and self._space.key(combination) in tried:
            return untried(self._space, tried, generator)
        return combination

    def _best(
        self,
        own: Sequence[Evaluation],
        pending: Sequence[Combination],
        tried: set[Key],
        generator: random.Random,
    ) -> dict[str, str] | None:
        random_numbers = np.random.default_rng(generator.getrandbits(64))
        points, values = self._observations(own)
        extra = np.zeros(len(values))
        fitted = _sample(values, _FITTED)
        kernel = fit(points[fitted], values[fitted], extra[fitted], self._categorical)
        kept = _sample(values, _CONDITIONED)
        points, values, extra = points[kept], values[kept], extra[kept]
        model = GaussianProcess(kernel, points, values, extra, self._categorical)
        if pending:
            waiting = np.array([self._encode(one) for one in pending])
            expected, _ = model.predict(waiting)
            points = np.concatenate([points, waiting])
            values = np.concatenate([values, expected])
            extra = np.concatenate([extra, np.zeros(len(waiting))])
            model = GaussianProcess(kernel, points, values, extra, self._categorical)
        best_mean = float(model.predict(points)[0].max())

        def gain(candidates: Array) -> Array:
            mean, deviation = model.predict(candidates)
            return _log_improvement((mean - best_mean) / deviation) + np.log(deviation)

        if self._space.size is not None and self._space.size <= _LISTED:
            left = [
                one
                for one in map(self._space.at, range(self._space.size))
                if self._space.key(one) not in tried
            ]
            return left[int(gain(np.array([self._encode(one) for one in left])).argmax())]
        dimensions = len(self._categorical)
        candidates = self._snap(random_numbers.random((_CANDIDATES, dimensions)))
        gains = gain(candidates)
        for round_ in range(_ROUNDS):
            centres = candidates[np.argsort(-gains, kind="stable")[:_CENTRES]]
            if round_ == 0:
                centres = np.concatenate([centres, points[np.argsort(-values, kind="stable")[:_CENTRES]]])
            varied = self._vary(centres, 0.2 / 2**round_, random_numbers)
            candidates = np.concatenate([candidates, varied])
            gains = np.concatenate([gains, gain(varied)])
        for position in np.argsort(-gains, kind="stable"):
            combination = self._decode(candidates[position])
            if self._space.size is None or self._space.key(combination) not in tried:
                return combination
        return untried(self._space, tried, generator)

    def _observations(self, own: Sequence[Evaluation]) -> tuple[Array, Array]:
        points = np.array([self._encode(one.hyperparameters) for one in own])
        known = [self._sign * one.objective for one in own if one.objective is not None]
        worst = min(known)
        scores = np.array([worst if one.objective is None else self._sign * one.objective for one in own])
        return points, _normal_scores(scores)

    # --- combinations as points -------------------------------------------------------------------
    # A number lies at its place on its scale, a category at the middle of its share of 0 to 1.

    def _encode(self, combination: Combination) -> Array:
        key = self._space.key(combination)
        point = self._encoded.get(key)
        if point is None:
            point = np.array(
                [one.position(text) for one, text in zip(self._space.parameters, key, strict=True)]
            )
            self._encoded[key] = point
        return point

    def _decode(self, point: Array) -> dict[str, str]:
        return {
            one.name: one.value(float(place))
            for one, place in zip(self._space.parameters, point, strict=True)
        }

    def _snap(self, points: Array) -> Array:
        """Move points to where their combinations are: discrete values have one place each."""
        snapped = points.copy()
        for column, one in enumerate(self._space.parameters):
            if one.size is not None and one.size <= _LISTED:
                places, edges = self._places(column)
                snapped[:, column] = places[np.searchsorted(edges, points[:, column], side="right")]
        return snapped

    def _places(self, column: int) -> tuple[Array, Array]:
        if column not in self._grids:
            one = self._space.parameters[column]
            places = np.array([one.position(one.at(position)) for position in range(one.size or 1)])
            self._grids[column] = places, (places[1:] + places[:-1]) / 2
        return self._grids[column]

    def _vary(self, centres: Array, width: float, random_numbers: np.random.Generator) -> Array:
        """Return variations of points: some coordinates moved, or drawn anew where they are categories."""
        count, dimensions = len(centres) * _VARIATIONS, centres.shape[1]
        varied = np.repeat(centres, _VARIATIONS, axis=0)
        change = random_numbers.random((count, dimensions)) < max(0.3, 1.5 / dimensions)
        change[np.arange(count), random_numbers.integers(dimensions, size=count)] = True
        moved = np.clip(varied + width * random_numbers.standard_normal((count, dimensions)), 0.0, 1.0)
        anew = random_numbers.random((count, dimensions))
        return self._snap(np.where(change, np.where(self._categorical, anew, moved), varied))


def _normal_scores(scores: Array) -> Array:
    """Return the ranks as quantiles of the normal distribution, standardised; equals get the same."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # The middle of the ranks that equals share, counted from 0.
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[places]
    result: Array = ndtri((ranks + 0.5) / len(scores))
    spread = result.std()
    return result / spread if spread > 0 else result


def _sample(values: Array, most: int) -> NDArray[np.intp]:
    """Return positions of at most so many values: the best half, and an even sample of the rest by rank."""
    if len(values) <= most:
        return np.arange(len(values))
    order = np.argsort(-values, kind="stable")
    half = most // 2
    rest = np.linspace(half, len(values) - 1, most - half).round().astype(np.intp)
    return np.sort(order[np.concatenate([np.arange(half), rest])])


def _log_improvement(better: Array) -> Array:
    """Return the logarithm of the expected improvement, in standard deviations."""
    density = np.exp(-0.5 * better * better) / np.sqrt(2 * np.pi)
    improvement = density + better * ndtr(better)
    # Far below the best both parts cancel out; there it falls off like the density over the square.
    tail = -0.5 * better * better - 0.5 * np.log(2 * np.pi) - 2 * np.log(np.maximum(-better, 1.0))
    result: Array = np.where(better > -5, np.log(np.maximum(improvement, 1e-300)), tail)
    return result
