"""Bayesian search: a Gaussian process and expected improvement."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from threadpoolctl import ThreadpoolController

from airflow_amt.local.search.gaussian_process import Array, GaussianProcess, Layout, fit
from airflow_amt.local.search.space import CategoricalParameter, Combination, Key, Space
from airflow_amt.local.search.strategies import Evaluation, Prior, Tried, untried
from airflow_amt.tuning.criteria import ObjectiveType

#: Combinations that are spread evenly before there is a model.
_SPREAD = 5
#: Fewest objectives that a model is made of.
_FEWEST = 3
#: Most points that the kernel is fitted to, and that the model is conditioned on: they bound the time.
_FITTED, _CONDITIONED = 80, 160
#: Most points of parents with other data, and most own ones beside which they still count; the noise variance
#: (of objectives of variance 1) of each is so much, times the square of the number of own ones.
_TRANSFERRED, _DISTRUST = 40, 0.05
#: In an infinite space a proposal is this far from all that was tried, along one hyperparameter at least. The
#: unit is the distance that so many evenly spread combinations would have.
_APART = 0.2
_CANDIDATES = 500
#: Finite spaces up to this size are looked at in full.
_LISTED = 2000
#: How many of the best combinations new ones are varied from, how often, and in how many rounds.
_CENTRES, _VARIATIONS, _ROUNDS = 5, 60, 3
#: How far a number moves on its scale in the first round; half as far in each further one.
_WIDTH = 0.2

#: Made after the imports above: it knows the libraries that are loaded then.
_BLAS = ThreadpoolController()


class BayesianSearch:
    """A Gaussian process over all hyperparameters, and expected improvement over the best objective.

    Purpose: find good combinations in few training jobs.

    How it works: the first combination is the middle of all ranges, the next few are spread evenly (a
    low-discrepancy sequence). Then a Gaussian process is fitted to the ranks of the objectives (turned into
    normal scores, so their scale and outliers do not matter), and the combination of highest expected
    improvement is proposed, among random ones and variations of the best. Pending training jobs count as if
    they had brought what the model expects, failed ones as the worst so far. A small distance from all that
    was tried is kept, which shrinks as the history grows: next to it a combination would mostly bring the
    same again, but a model that takes differences for noise likes to look there once more.

    Warm start: what parents with identical data and algorithm tried counts as if tried here. The objectives
    of other parents may be on another scale, so only their ranks count: every other one of the first
    combinations is one of their best, and the model takes their ranks as objectives whose noise grows with
    the number of own ones, until these alone matter.

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
        within = prior.within(space) if prior is not None else []
        transfer = prior is not None and prior.transfer
        #: Counts as tried here.
        self._before = [] if transfer else within
        self._ranked = self._rank(within) if transfer else []
        self._layout = Layout(
            [one.size if isinstance(one, CategoricalParameter) else 0 for one in space.parameters]
        )
        self._categorical = np.array(self._layout.categories) > 0
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
        own = [*self._before, *history]
        known = sum(one.objective is not None for one in own)
        if known < _FEWEST or number + len(self._before) < _SPREAD:
            return self._first(number, tried, generator)
        # Matrices this small lose by threads, and on a busy machine a great deal.
        with _BLAS.limit(limits=1, user_api="blas"):
            return self._best(own, pending, tried, generator)

    def _rank(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Return those with an objective, the best first, each combination once."""
        known = [one for one in evaluations if one.objective is not None]
        known.sort(key=lambda one: self._sign * (one.objective or 0.0), reverse=True)
        ranked: dict[Key, Evaluation] = {}
        for one in known:
            ranked.setdefault(self._space.key(one.hyperparameters), one)
        return list(ranked.values())

    def _first(self, number: int, tried: set[Key], generator: random.Random) -> dict[str, str] | None:
        """Return the n-th combination before there is a model."""
        nth, is_spread = divmod(number, 2)
        if nth < len(self._ranked) and not is_spread:
            combination = dict(self._ranked[nth].hyperparameters)
        else:
            combination = self._decode(self._spread(number))
        if self._space.size is not None and self._space.key(combination) in tried:
            return untried(self._space, tried, generator)
        return combination

    def _spread(self, number: int) -> Array:
        """Return the n-th point of a Kronecker sequence with the seed's shift; the first in the middle."""
        dimensions = len(self._space.parameters)
        shift = np.random.default_rng(random.Random(f"{self._seed}/shift").getrandbits(64)).random(dimensions)
        # The generalised golden ratio: the root of x ** (d + 1) = x + 1, found by iterating.
        ratio = 2.0
        for _ in range(50):
            ratio = (1 + ratio) ** (1 / (dimensions + 1))
        point: Array = (shift + number * ratio ** -np.arange(1.0, dimensions + 1)) % 1.0
        # A range is made around what is likely to be good. Categories have no middle.
        return point if number else np.where(self._categorical, point, 0.5)

    def _best(
        self,
        own: Sequence[Evaluation],
        pending: Sequence[Combination],
        tried: set[Key],
        generator: random.Random,
    ) -> dict[str, str] | None:
        """Return the combination of the highest expected improvement."""
        points, values, model = self._fit(own)
        if pending:
            waiting = np.array([self._encode(one) for one in pending])
            model = model.expecting(waiting)
            occupied = np.concatenate([points, waiting])
        else:
            occupied = points
        best = float(model.predict(points)[0].max())

        def gain(candidates: Array) -> Array:
            mean, deviation = model.predict(candidates)
            return _log_improvement((mean - best) / deviation) + np.log(deviation)

        size = self._space.size
        if size is not None and size <= _LISTED:
            left = [one for one in map(self._space.at, range(size)) if self._space.key(one) not in tried]
            return left[int(gain(np.array([self._encode(one) for one in left])).argmax())]
        ordered = self._search(gain, points[np.argsort(-values, kind="stable")[:_CENTRES]], generator)
        if size is None:
            return self._decode(self._first_apart(ordered, occupied))
        for candidate in ordered:
            combination = self._decode(candidate)
            if self._space.key(combination) not in tried:
                return combination
        return untried(self._space, tried, generator)

    def _fit(self, own: Sequence[Evaluation]) -> tuple[Array, Array, GaussianProcess]:
        """Return the own points that the model knows, their scores, and the model."""
        points, values = self._observations(own)
        parents, ranks = self._parents(len(values))
        noise = np.full(len(ranks), _DISTRUST * len(values) ** 2)

        def sample(most: int) -> tuple[NDArray[np.intp], tuple[Array, Array, Array]]:
            kept = _sample(values, most - len(ranks))
            return kept, (
                np.concatenate([points[kept], parents]),
                np.concatenate([values[kept], ranks]),
                np.concatenate([np.zeros(len(kept)), noise]),
            )

        kernel = fit(self._layout, *sample(_FITTED)[1])
        kept, known = sample(_CONDITIONED)
        return points[kept], values[kept], GaussianProcess(self._layout, kernel, *known)

    def _search(self, gain: Callable[[Array], Array], centres: Array, generator: random.Random) -> Array:
        """Return random candidates, and variations of the best and of centres, the highest gain first."""
        random_numbers = np.random.default_rng(generator.getrandbits(64))
        candidates = self._snap(random_numbers.random((_CANDIDATES, len(self._categorical))))
        gains = gain(candidates)
        for round_ in range(_ROUNDS):
            best = candidates[np.argsort(-gains, kind="stable")[:_CENTRES]]
            if round_ == 0:
                best = np.concatenate([best, centres])
            varied = self._vary(best, _WIDTH / 2**round_, random_numbers)
            candidates = np.concatenate([candidates, varied])
            gains = np.concatenate([gains, gain(varied)])
        ordered: Array = candidates[np.argsort(-gains, kind="stable")]
        return ordered

    def _first_apart(self, candidates: Array, occupied: Array) -> Array:
        """Return the first candidate that keeps its distance from all points, or else the first one."""
        apart = _APART * len(occupied) ** (-1 / occupied.shape[1])
        chosen: Array
        for chosen in candidates:
            off = np.abs(occupied - chosen)
            # Another category is far away.
            if not (np.where(self._categorical & (off > 0), 1.0, off) < apart).all(axis=1).any():
                return chosen
        chosen = candidates[0]
        return chosen

    def _observations(self, own: Sequence[Evaluation]) -> tuple[Array, Array]:
        points = np.array([self._encode(one.hyperparameters) for one in own])
        known = [self._sign * one.objective for one in own if one.objective is not None]
        worst = min(known)
        scores = np.array([worst if one.objective is None else self._sign * one.objective for one in own])
        return points, _normal_scores(scores)

    def _parents(self, own: int) -> tuple[Array, Array]:
        """Return the points of parents with other data, and their ranks as normal scores."""
        if not self._ranked or own > _TRANSFERRED:
            return np.empty((0, len(self._categorical))), np.empty(0)
        points, values = self._observations(self._ranked)
        kept = _sample(values, _TRANSFERRED)
        return points[kept], values[kept]

    # --- combinations as points -------------------------------------------------------------------

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
