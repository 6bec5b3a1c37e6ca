"""Search engines that ours is compared with, behind the same interface."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from airflow_amt.local.search import (
    CategoricalParameter,
    Combination,
    ContinuousParameter,
    Evaluation,
    IntegerParameter,
    Prior,
    Search,
    Space,
)
from airflow_amt.tuning.criteria import ObjectiveType

_STARTUP = 10


class OptunaTpe:
    """Optuna's tree-structured Parzen estimator with a constant liar for the pending ones."""

    slow = True

    def __init__(self, space: Space, objective_type: ObjectiveType, seed: int, multivariate: bool) -> None:
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions: dict[str, Any] = {}
        for one in space.parameters:
            if isinstance(one, IntegerParameter):
                self._distributions[one.name] = IntDistribution(one.low, one.high, log=one.logarithmic)
            elif isinstance(one, CategoricalParameter):
                self._distributions[one.name] = CategoricalDistribution(one.values)
            elif isinstance(one, ContinuousParameter):
                log = one.scaling == "Logarithmic"
                self._distributions[one.name] = FloatDistribution(one.low, one.high, log=log)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=multivariate, constant_liar=True)
        maximise = objective_type is ObjectiveType.MAXIMIZE
        self._study = optuna.create_study(sampler=sampler, direction="maximize" if maximise else "minimize")
        self._running: list[tuple[dict[str, str], Any]] = []
        self._seen = 0

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`."""
        for one in history[self._seen :]:
            trial = next((known for known in self._running if known[0] == one.hyperparameters), None)
            if trial is not None:
                self._running.remove(trial)
                self._study.tell(trial[1], one.objective)
                continue
            from optuna.trial import create_trial

            values = {name: self._value(name, text) for name, text in one.hyperparameters.items()}
            self._study.add_trial(
                create_trial(value=one.objective, params=values, distributions=self._distributions)
            )
        self._seen = len(history)
        asked = self._study.ask(self._distributions)
        combination = {name: str(value) for name, value in asked.params.items()}
        self._running.append((combination, asked))
        return combination

    def _value(self, name: str, text: str) -> Any:
        distribution = type(self._distributions[name]).__name__
        return {"IntDistribution": int, "FloatDistribution": float}.get(distribution, str)(text)


def tpe(multivariate: bool) -> Callable[[Space, ObjectiveType, int, Prior | None], Search]:
    """Return an engine: TPE over all hyperparameters jointly, or over each by itself."""
    return lambda space, kind, seed, _prior: OptunaTpe(space, kind, seed, multivariate)


class ScikitLearnGaussianProcess:
    """Scikit-learn's Gaussian process, expected improvement, pending ones at their expected objective."""

    slow = True

    def __init__(
        self, space: Space, objective_type: ObjectiveType, seed: int, prior: Prior | None = None
    ) -> None:
        self._space = space
        self._sign = 1.0 if objective_type is ObjectiveType.MAXIMIZE else -1.0
        self._seed = seed

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`."""
        from scipy.stats import norm
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        generator = random.Random(f"{self._seed}/{len(history) + len(pending)}")
        if len(history) + len(pending) < _STARTUP:
            return self._space.draw(generator)
        points = np.array([self._encode(one.hyperparameters) for one in history])
        values = np.array([self._sign * (one.objective or 0.0) for one in history])
        values = (values - values.mean()) / (values.std() or 1.0)
        kernel = ConstantKernel() * Matern(np.ones(points.shape[1]), (0.05, 20.0), nu=2.5) + WhiteKernel(0.01)
        model = GaussianProcessRegressor(kernel, random_state=generator.getrandbits(32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimiser's convergence
            model.fit(points, values)
            if pending:
                waiting = np.array([self._encode(one) for one in pending])
                lies = model.predict(waiting)
                fitted = GaussianProcessRegressor(model.kernel_, optimizer=None)
                model = fitted.fit(np.vstack([points, waiting]), np.concatenate([values, lies]))
        drawn = [self._space.draw(generator) for _ in range(1000)]
        mean, deviation = model.predict(np.array([self._encode(one) for one in drawn]), return_std=True)
        deviation = np.maximum(deviation, 1e-9)
        better = (mean - values.max()) / deviation
        gain = deviation * (norm.pdf(better) + better * norm.cdf(better))
        return drawn[int(gain.argmax())]

    def _encode(self, combination: Combination) -> list[float]:
        point: list[float] = []
        for one in self._space.parameters:
            text = combination[one.name]
            if isinstance(one, CategoricalParameter):
                point.extend(float(text == value) for value in one.values)
            else:
                point.append(one.position(text))
        return point
