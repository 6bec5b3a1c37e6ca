"""A small Gaussian process over the unit cube and categories, fitted by maximum a posteriori.

Matérn 5/2 with one length scale for each hyperparameter. The priors on the length scales, the amplitude and
the noise keep the fit sensible with a handful of points, where a maximum-likelihood one runs away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

_ROOT5 = 5**0.5
_JITTER = 1e-8
#: Bounds of the logarithms of length scales, amplitude and noise variance.
_SCALE_BOUNDS, _AMPLITUDE_BOUNDS, _NOISE_BOUNDS = (-4.0, 5.0), (-3.0, 3.0), (-10.0, 0.5)
#: Means and standard deviations of the normal priors on the same logarithms. Length scales have theirs
#: shifted with the dimension, so that distances matter equally much whatever it is.
_SCALE_PRIOR, _AMPLITUDE_PRIOR, _NOISE_PRIOR = (-0.7, 1.0), (0.0, 0.7), (-4.0, 1.5)


class Layout:
    """Which columns of a point are numbers and which are categories.

    A number is its place on its scale, 0 to 1. A category is the middle of its share of 0 to 1.

    :param categories: for each column how many categories it has, 0 if it is a number.
    """

    def __init__(self, categories: Sequence[int]) -> None:
        self.categories = tuple(categories)
        #: The column that each feature comes from.
        self.owners = np.repeat(np.arange(len(self.categories)), [max(one, 1) for one in self.categories])

    def features(self, points: Array) -> Array:
        """Return points with categories one-hot, such that different ones are at distance 1."""
        columns = []
        for column, count in enumerate(self.categories):
            places = points[:, column : column + 1]
            if count:
                places = (np.floor(places * count) == np.arange(count)) * 0.5**0.5
            columns.append(places)
        return np.hstack(columns)


def _distances(left: Array, right: Array) -> Array:
    squared: Array = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.maximum(squared, 0.0)


def _matern(scaled: Array) -> tuple[Array, Array]:
    """Return the correlation for summed squared distances, and the factor of its derivative."""
    root = _ROOT5 * np.sqrt(scaled)
    decay = np.exp(-root)
    return (1 + root + 5 / 3 * scaled) * decay, 5 / 3 * (1 + root) * decay


@dataclass(frozen=True, slots=True)
class Kernel:
    """What was fitted: logarithms of the length scales, the amplitude and the noise variance."""

    scales: Array
    amplitude: float
    noise: float


def fit(layout: Layout, points: Array, values: Array, extra_noise: Array) -> Kernel:
    """Return the most probable kernel for what was observed.

    :param layout: what the columns of the points are.
    :param points: shape (n, columns).
    :param values: shape (n,), of mean 0 and standard deviation about 1.
    :param extra_noise: shape (n,), noise variance of each value beside the fitted one.
    """
    dimensions, count = points.shape[1], len(points)
    features = layout.features(points)
    squared = np.array(
        [_distances(part, part) for part in (features[:, layout.owners == one] for one in range(dimensions))]
    )
    scale_mean = _SCALE_PRIOR[0] + 0.5 * np.log(max(dimensions, 1))
    means = np.array([scale_mean] * dimensions + [_AMPLITUDE_PRIOR[0], _NOISE_PRIOR[0]])
    deviations = np.array([_SCALE_PRIOR[1]] * dimensions + [_AMPLITUDE_PRIOR[1], _NOISE_PRIOR[1]])
    bounds = [_SCALE_BOUNDS] * dimensions + [_AMPLITUDE_BOUNDS, _NOISE_BOUNDS]

    def loss(logarithms: Array) -> tuple[float, Array]:
        weights = np.exp(-2 * logarithms[:dimensions])
        amplitude, noise = np.exp(logarithms[dimensions:])
        correlation, slope = _matern(np.tensordot(weights, squared, axes=1))
        covariance = amplitude * correlation
        total = covariance + np.diag(noise + extra_noise + _JITTER)
        lower = cholesky(total, lower=True, check_finite=False)
        solved = cho_solve((lower, True), values, check_finite=False)
        inverse = cho_solve((lower, True), np.eye(count), check_finite=False)
        centred = (logarithms - means) / deviations
        result = 0.5 * values @ solved + np.log(np.diag(lower)).sum() + 0.5 * centred @ centred
        inner = inverse - np.outer(solved, solved)
        gradient = centred / deviations
        by_distance = (0.5 * amplitude) * inner * slope
        gradient[:dimensions] += weights * np.tensordot(squared, by_distance, axes=2)
        gradient[dimensions] += 0.5 * np.sum(inner * covariance)
        gradient[dimensions + 1] += 0.5 * noise * np.trace(inner)
        return float(result), gradient

    found = minimize(loss, means, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}).x
    return Kernel(found[:dimensions], float(found[dimensions]), float(found[dimensions + 1]))


class GaussianProcess:
    """A kernel conditioned on observations.

    :param layout: what the columns of the points are.
    :param kernel: what was fitted, maybe to fewer points.
    :param points: shape (n, columns).
    :param values: shape (n,).
    :param extra_noise: shape (n,).
    """

    def __init__(
        self, layout: Layout, kernel: Kernel, points: Array, values: Array, extra_noise: Array
    ) -> None:
        self._layout, self._kernel = layout, kernel
        self._points, self._values, self._extra_noise = points, values, extra_noise
        self._weights = np.exp(-kernel.scales)[layout.owners]
        self._amplitude = np.exp(kernel.amplitude)
        self._features = self._weighted(points)
        noise = np.exp(kernel.noise) + extra_noise + _JITTER
        covariance = self._covariance(self._features) + np.diag(noise)
        self._lower = cholesky(covariance, lower=True, check_finite=False)
        self._solved = cho_solve((self._lower, True), values, check_finite=False)

    def expecting(self, points: Array) -> GaussianProcess:
        """Return the process that has also observed, at points, what this one expects there."""
        mean, _ = self.predict(points)
        return GaussianProcess(
            self._layout,
            self._kernel,
            np.concatenate([self._points, points]),
            np.concatenate([self._values, mean]),
            np.concatenate([self._extra_noise, np.zeros(len(points))]),
        )

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at points, without the noise."""
        cross = self._covariance(self._weighted(points))
        mean: Array = cross.T @ self._solved
        half = solve_triangular(self._lower, cross, lower=True, check_finite=False)
        variance = self._amplitude - np.einsum("ij,ij->j", half, half)
        deviation: Array = np.sqrt(np.maximum(variance, 1e-12))
        return mean, deviation

    def _weighted(self, points: Array) -> Array:
        weighted: Array = self._layout.features(points) * self._weights
        return weighted

    def _covariance(self, features: Array) -> Array:
        covariance: Array = self._amplitude * _matern(_distances(self._features, features))[0]
        return covariance
