"""A small Gaussian process over the unit cube and categories, fitted by maximum a posteriori.

Matérn 5/2 with one length scale for each hyperparameter; a categorical one contributes 1 to the squared
distance where the category differs. The priors on the length scales, the amplitude and the noise keep the fit
sensible with a handful of points, where a maximum-likelihood one runs away.
"""

from __future__ import annotations

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


def squared_distances(left: Array, right: Array, categorical: NDArray[np.bool_]) -> Array:
    """Return the squared distances along each dimension, shape (dimensions, len(left), len(right))."""
    difference = left.T[:, :, None] - right.T[:, None, :]
    squared: Array = np.where(categorical[:, None, None], difference != 0.0, difference * difference)
    return squared


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

    def covariance(self, squared: Array) -> Array:
        """Return the covariances for squared distances along each dimension."""
        weights = np.exp(-2 * self.scales)
        correlation, _ = _matern(np.tensordot(weights, squared, axes=1))
        covariance: Array = np.exp(self.amplitude) * correlation
        return covariance


def fit(points: Array, values: Array, extra_noise: Array, categorical: NDArray[np.bool_]) -> Kernel:
    """Return the most probable kernel for what was observed.

    :param points: shape (n, dimensions).
    :param values: shape (n,), of mean 0 and standard deviation about 1.
    :param extra_noise: shape (n,), noise variance of each value beside the fitted one.
    :param categorical: which dimensions hold categories instead of numbers.
    """
    squared = squared_distances(points, points, categorical)
    dimensions, count = len(categorical), len(points)
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

    :param kernel: what was fitted, maybe to fewer points.
    :param points: shape (n, dimensions).
    :param values: shape (n,).
    :param extra_noise: shape (n,).
    :param categorical: which dimensions hold categories instead of numbers.
    """

    def __init__(
        self, kernel: Kernel, points: Array, values: Array, extra_noise: Array, categorical: NDArray[np.bool_]
    ) -> None:
        self._kernel = kernel
        self._points = points
        self._categorical = categorical
        covariance = kernel.covariance(squared_distances(points, points, categorical))
        noise = np.exp(kernel.noise) + extra_noise + _JITTER
        self._lower = cholesky(covariance + np.diag(noise), lower=True, check_finite=False)
        self._solved = cho_solve((self._lower, True), values, check_finite=False)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at points, without the noise."""
        cross = self._kernel.covariance(squared_distances(self._points, points, self._categorical))
        mean: Array = cross.T @ self._solved
        half = solve_triangular(self._lower, cross, lower=True, check_finite=False)
        variance = np.exp(self._kernel.amplitude) - np.einsum("ij,ij->j", half, half)
        deviation: Array = np.sqrt(np.maximum(variance, 1e-12))
        return mean, deviation
