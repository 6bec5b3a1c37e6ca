"""Search engines that ours is compared with, behind the same interface."""

from __future__ import annotations

import json
import random
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airflow_amt.local.search import (
    CategoricalParameter,
    Combination,
    ContinuousParameter,
    Evaluation,
    IntegerParameter,
    Parameter,
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
        points = np.array([place(self._space, one.hyperparameters) for one in history])
        values = np.array([self._sign * (one.objective or 0.0) for one in history])
        values = (values - values.mean()) / (values.std() or 1.0)
        kernel = ConstantKernel() * Matern(np.ones(points.shape[1]), (0.05, 20.0), nu=2.5) + WhiteKernel(0.01)
        model = GaussianProcessRegressor(kernel, random_state=generator.getrandbits(32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimiser's convergence
            model.fit(points, values)
            if pending:
                waiting = np.array([place(self._space, one) for one in pending])
                lies = model.predict(waiting)
                fitted = GaussianProcessRegressor(model.kernel_, optimizer=None)
                model = fitted.fit(np.vstack([points, waiting]), np.concatenate([values, lies]))
        drawn = [self._space.draw(generator) for _ in range(1000)]
        mean, deviation = model.predict(np.array([place(self._space, one) for one in drawn]), return_std=True)
        deviation = np.maximum(deviation, 1e-9)
        better = (mean - values.max()) / deviation
        gain = deviation * (norm.pdf(better) + better * norm.cdf(better))
        return drawn[int(gain.argmax())]


def place(space: Space, combination: Combination) -> list[float]:
    """Return where a combination lies: numbers on their scale, categories apart from each other."""
    point: list[float] = []
    for one in space.parameters:
        text = combination[one.name]
        if isinstance(one, CategoricalParameter):
            point.extend(float(text == value) for value in one.values)
        else:
            point.append(one.position(text))
    return point


class SyneTune:
    """Syne-tune's Gaussian process, in a child process: see :mod:`benchmarks.search_syne_tune`.

    All searches of a process share one child, so only the latest one may be used.
    """

    slow = True
    #: The Python that has syne-tune.
    interpreter: str | None = None
    _child: subprocess.Popen[str] | None = None

    @classmethod
    def use(cls, interpreter: str | None) -> None:
        """Say which Python has syne-tune, and start anew: a forked process must not share the child."""
        cls.interpreter = interpreter
        cls._child = None

    @classmethod
    def installed(cls) -> dict[str, str]:
        """Return the versions in its environment."""
        return cls._ask({"versions": ["syne-tune", "numpy", "scipy"]})

    def __init__(
        self, space: Space, objective_type: ObjectiveType, seed: int, prior: Prior | None = None
    ) -> None:
        mode = "max" if objective_type is ObjectiveType.MAXIMIZE else "min"
        begin = {"space": [described(one) for one in space.parameters], "mode": mode, "seed": seed}
        self._ask({"begin": begin})
        self._running: list[tuple[dict[str, str], int]] = []
        self._seen = 0
        self._begun = 0
        self._foreign = 0

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`."""
        finished = [
            [self._number(one.hyperparameters), one.hyperparameters, one.objective]
            for one in history[self._seen :]
        ]
        self._seen = len(history)
        combination = self._ask({"finished": finished})
        self._running.append((combination, self._begun))
        self._begun += 1
        return combination

    def _number(self, combination: Combination) -> int:
        known = next((one for one in self._running if one[0] == combination), None)
        if known is not None:
            self._running.remove(known)
            return known[1]
        self._foreign += 1
        return -self._foreign

    @classmethod
    def _ask(cls, message: dict[str, Any]) -> dict[str, str]:
        if cls._child is None:
            if cls.interpreter is None:
                raise RuntimeError(
                    "syne-tune has an environment of its own: say which with --syne-tune PYTHON"
                )
            # Isolated, because modules next to the script have names of libraries.
            command = [cls.interpreter, "-I", str(Path(__file__).parent / "search_syne_tune.py")]
            cls._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        child = cls._child
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"syne-tune's process has ended with {child.wait()}")
        answer: dict[str, str] = json.loads(line)
        return answer


def described(one: Parameter) -> dict[str, Any]:
    """Return a range as :mod:`benchmarks.search_syne_tune` reads it."""
    if isinstance(one, CategoricalParameter):
        return {"name": one.name, "kind": "categorical", "values": one.values}
    if isinstance(one, IntegerParameter):
        kind, logarithmic = "integer", one.logarithmic
    else:
        kind, logarithmic = "continuous", one.scaling == "Logarithmic"
    return {
        "name": one.name,
        "kind": f"logarithmic {kind}" if logarithmic else kind,
        "low": one.low,
        "high": one.high,
    }
