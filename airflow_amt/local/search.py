"""Which combination of hyperparameters to try next.

A search is a narrow thing: :meth:`Search.propose` gets what was tried and what is being tried, and answers
with one more combination, as strings, or ``None`` when a finite space has no untried one left. Random
search needs the standard library only. Bayesian search is Optuna's tree-structured Parzen estimator with a
constant liar for the pending ones (CPU only; its Gaussian-process sampler would need torch).

``Auto`` scaling is read as: logarithmic where the range is positive and spans a factor of 100 or more, else
linear. AMT does not publish its own choice.
"""

from __future__ import annotations

import importlib.util
import math
import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.criteria import ObjectiveType

if TYPE_CHECKING:
    import optuna

STRATEGIES = ("Random", "Bayesian")

#: Most training jobs of one tuning job (developer guide, "Resource limits for automatic model tuning"), at
#: what the quota can be raised to.
MAX_TRAINING_JOBS = {"Bayesian": 750, "Random": 10_000}

#: From this factor between the bounds of a positive range on, ``Auto`` means logarithmic.
AUTO_LOGARITHMIC_FACTOR = 100.0

_ATTEMPTS = 64
#: Larger spaces are never listed in full.
_COUNTABLE = 1_000_000

Combination = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One combination that was tried.

    :param hyperparameters: the combination, values as strings.
    :param objective: its finite objective, ``None`` if it brought none.
    """

    hyperparameters: Combination
    objective: float | None


class Search(Protocol):
    """Decides which combination of hyperparameters to try next."""

    #: Whether :meth:`propose` takes long enough (milliseconds) to be called off the event loop.
    slow: bool

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """Return one untried combination, or ``None`` if a finite space has none left.

        :param history: what was tried, in the order it ended.
        :param pending: what is being tried now.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerParameter:
    """Whole numbers from ``low`` to ``high``, both included."""

    name: str
    low: int
    high: int
    logarithmic: bool

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.high - self.low + 1

    def at(self, position: int) -> str:
        """Return the value at a 0-based position."""
        return str(self.low + position)

    def draw(self, generator: random.Random) -> str:
        """Draw a value, evenly on the parameter's scale."""
        if not self.logarithmic:
            return str(generator.randint(self.low, self.high))
        # The upper edge is high + 1, so that the last whole number gets its share of the scale.
        drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high + 1)))
        return str(min(max(math.floor(drawn), self.low), self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousParameter:
    """Real numbers from ``low`` to ``high``; ``scaling`` is Linear, Logarithmic or ReverseLogarithmic."""

    name: str
    low: float
    high: float
    scaling: str

    @property
    def size(self) -> int | None:
        """``1`` for a range of one point, else ``None``: not countable."""
        return 1 if self.low == self.high else None

    def at(self, position: int) -> str:
        """Return the only value of a range of one point."""
        return repr(self.low)

    def draw(self, generator: random.Random) -> str:
        """Draw a value, evenly on the parameter's scale."""
        if self.scaling == "Logarithmic":
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        elif self.scaling == "ReverseLogarithmic":
            drawn = 1 - math.exp(generator.uniform(math.log(1 - self.high), math.log(1 - self.low)))
        else:
            drawn = generator.uniform(self.low, self.high)
        return repr(min(max(drawn, self.low), self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalParameter:
    """One of some strings."""

    name: str
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def at(self, position: int) -> str:
        """Return the value at a 0-based position."""
        return self.values[position]

    def draw(self, generator: random.Random) -> str:
        """Draw one of the values, all equally likely."""
        return self.values[generator.randrange(len(self.values))]


Parameter = IntegerParameter | ContinuousParameter | CategoricalParameter


class Space:
    """The hyperparameters that are tuned, and their ranges.

    :param parameters: the ranges; their names differ.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        size: int | None = 1
        for parameter in self.parameters:
            size = None if size is None or parameter.size is None else size * parameter.size
        #: Number of combinations; ``None`` if there is a continuous range.
        self.size = size

    @classmethod
    def from_ranges(cls, ranges: Mapping[str, Any], path: str) -> Space:
        """Read the API's ``ParameterRanges``.

        :param path: where they are in the request, for errors.
        :raises AmtFieldError: a bound is not a number of its kind, bounds are the wrong way round or too
            far apart, or a scale does not fit them.
        """
        parameters: list[Parameter] = []
        for position, one in enumerate(ranges.get("IntegerParameterRanges") or ()):
            parameters.append(_integer(one, f"{path}.IntegerParameterRanges[{position}]"))
        for position, one in enumerate(ranges.get("ContinuousParameterRanges") or ()):
            parameters.append(_continuous(one, f"{path}.ContinuousParameterRanges[{position}]"))
        for one in ranges.get("CategoricalParameterRanges") or ():
            # A value that is listed twice is still one value.
            values = tuple(dict.fromkeys(one["Values"]))
            parameters.append(CategoricalParameter(name=one["Name"], values=values))
        return cls(parameters)

    def draw(self, generator: random.Random) -> dict[str, str]:
        """Draw a combination; each hyperparameter evenly on its scale."""
        return {parameter.name: parameter.draw(generator) for parameter in self.parameters}

    def at(self, number: int) -> dict[str, str]:
        """Return a combination of a finite space by its 0-based number."""
        combination = {}
        for parameter in self.parameters:
            number, position = divmod(number, parameter.size or 1)
            combination[parameter.name] = parameter.at(position)
        return combination


def _key(combination: Combination) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(combination.items()))


class RandomSearch:
    """Draws combinations independently; the n-th one depends on the seed and on n alone.

    So a seed gives the same combinations whatever the timing, and after a restart. In a finite space no
    combination is tried twice.

    :param space: the ranges.
    :param seed: any whole number.
    """

    slow = False

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._tried: set[tuple[tuple[str, str], ...]] = set()
        self._seen = 0

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`; costs no more for a long history than for a short one."""
        if self._space.size is not None:
            # The history only grows at its end.
            self._tried.update(_key(one.hyperparameters) for one in history[self._seen :])
            self._tried.update(_key(one) for one in pending)
            self._seen = len(history)
        generator = random.Random(f"{self._seed}/{len(history) + len(pending)}")
        return untried(self._space, self._tried, generator)


def untried(
    space: Space, tried: set[tuple[tuple[str, str], ...]], generator: random.Random
) -> dict[str, str] | None:
    """Draw a combination that is not among the tried ones; ``None`` if the space has no other."""
    if space.size is None:
        return space.draw(generator)
    if len(tried) >= space.size:
        return None
    for _ in range(_ATTEMPTS if space.size <= _COUNTABLE else 1000 * _ATTEMPTS):
        drawn = space.draw(generator)
        if _key(drawn) not in tried:
            return drawn
    # Drawing keeps hitting tried ones: most of the space is used up, or its scale makes the rest rare.
    left = [number for number in range(space.size) if _key(space.at(number)) not in tried]
    return space.at(generator.choice(left))


def bayesian_available() -> bool:
    """Whether the library behind Bayesian search is installed (the ``local`` extra)."""
    return importlib.util.find_spec("optuna") is not None


class BayesianSearch:
    """Optuna's TPE over all hyperparameters jointly, with a constant liar for the pending ones.

    Deterministic for a seed only as far as the order in which training jobs end is. In a finite space no
    combination is tried twice.

    :param space: the ranges.
    :param objective_type: which direction of the objective is better.
    :param seed: any whole number.
    """

    slow = True

    def __init__(self, space: Space, objective_type: ObjectiveType, seed: int) -> None:
        self._space = space
        self._objective_type = objective_type
        self._seed = seed
        self._study: optuna.Study | None = None
        self._distributions: dict[str, Any] = {}
        self._running: dict[tuple[tuple[str, str], ...], optuna.trial.Trial] = {}
        self._tried: set[tuple[tuple[str, str], ...]] = set()
        self._seen = 0

    def propose(self, history: Sequence[Evaluation], pending: Sequence[Combination]) -> dict[str, str] | None:
        """See :meth:`Search.propose`; takes tens of milliseconds (the first call also imports Optuna)."""
        study = self._study or self._open(len(history))
        for one in history[self._seen :]:
            self._tell(study, one)
        self._seen = len(history)
        for combination in pending:
            if _key(combination) not in self._running:
                self._ask_for(study, combination)
        if self._space.size is not None and len(self._tried) >= self._space.size:
            return None
        for _ in range(_ATTEMPTS if self._space.size is not None else 1):
            trial = study.ask(self._distributions)
            proposed = self._to_strings(trial.params)
            key = _key(proposed)
            if self._space.size is None or key not in self._tried:
                self._tried.add(key)
                self._running[key] = trial
                return proposed
            study.tell(trial, state=self._states().FAIL)
        generator = random.Random(f"{self._seed}/{len(self._tried)}")
        fallback = untried(self._space, self._tried, generator)
        if fallback is not None:
            self._ask_for(study, fallback)
        return fallback

    def _open(self, already: int) -> optuna.Study:
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for one in self._space.parameters:
            if isinstance(one, IntegerParameter):
                self._distributions[one.name] = IntDistribution(one.low, one.high, log=one.logarithmic)
            elif isinstance(one, CategoricalParameter):
                self._distributions[one.name] = CategoricalDistribution(one.values)
            elif one.scaling == "ReverseLogarithmic":
                # Optuna has no such scale: 1 - x is searched on a logarithmic one.
                self._distributions[one.name] = FloatDistribution(1 - one.high, 1 - one.low, log=True)
            else:
                log = one.scaling == "Logarithmic"
                self._distributions[one.name] = FloatDistribution(one.low, one.high, log=log)
        with warnings.catch_warnings():
            # Older releases call these two options experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                # After a restart the sampler shall not repeat its first draws.
                seed=(self._seed + already) % 2**32,
                multivariate=True,
                constant_liar=True,
            )
        maximise = self._objective_type is ObjectiveType.MAXIMIZE
        self._study = optuna.create_study(sampler=sampler, direction="maximize" if maximise else "minimize")
        return self._study

    def _states(self) -> Any:
        from optuna.trial import TrialState

        return TrialState

    def _tell(self, study: optuna.Study, one: Evaluation) -> None:
        key = _key(one.hyperparameters)
        trial = self._running.pop(key, None)
        self._tried.add(key)
        states = self._states()
        state = states.FAIL if one.objective is None else states.COMPLETE
        if trial is not None:
            study.tell(trial, one.objective, state=state)
            return
        from optuna.trial import create_trial

        study.add_trial(
            create_trial(
                state=state,
                value=one.objective,
                params=self._from_strings(one.hyperparameters),
                distributions=self._distributions,
            )
        )

    def _ask_for(self, study: optuna.Study, combination: Combination) -> None:
        """Note a combination that is being tried but did not come from the sampler."""
        study.enqueue_trial(self._from_strings(combination))
        key = _key(combination)
        self._tried.add(key)
        self._running[key] = study.ask(self._distributions)

    def _to_strings(self, params: Mapping[str, Any]) -> dict[str, str]:
        combination = {}
        for one in self._space.parameters:
            value = params[one.name]
            if isinstance(one, ContinuousParameter):
                if one.scaling == "ReverseLogarithmic":
                    value = 1 - value
                combination[one.name] = repr(float(min(max(value, one.low), one.high)))
            else:
                combination[one.name] = str(value)
        return combination

    def _from_strings(self, combination: Combination) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for one in self._space.parameters:
            text = combination[one.name]
            if isinstance(one, IntegerParameter):
                params[one.name] = int(text)
            elif isinstance(one, CategoricalParameter):
                params[one.name] = text
            else:
                value = float(text)
                distribution = self._distributions[one.name]
                if one.scaling == "ReverseLogarithmic":
                    value = 1 - value
                params[one.name] = min(max(value, distribution.low), distribution.high)
        return params


def create_search(strategy: str, space: Space, objective_type: ObjectiveType, seed: int) -> Search:
    """Return the search behind an API strategy.

    :param strategy: one of :data:`STRATEGIES`.
    :raises AmtFieldError: the strategy is not offered here, or its library is not installed.
    """
    field = "HyperParameterTuningJobConfig.Strategy"
    if strategy == "Random":
        return RandomSearch(space, seed)
    if strategy == "Bayesian":
        if not bayesian_available():
            raise AmtFieldError(
                field,
                strategy,
                "Bayesian search in the embedded AMT needs Optuna, which is not installed",
                "install the extra: pip install 'airflow-provider-amt[local]', or set Strategy to Random",
            )
        return BayesianSearch(space, objective_type, seed)
    raise AmtFieldError(
        field,
        strategy,
        f"the embedded AMT offers {' and '.join(STRATEGIES)} so far",
        f"set Strategy to {' or '.join(STRATEGIES)}",
    )


def _scaling(one: Mapping[str, Any], low: float, high: float, path: str, allowed: Sequence[str]) -> str:
    scaling: str = one.get("ScalingType") or "Auto"
    if scaling == "Auto":
        return "Logarithmic" if low > 0 and high / low >= AUTO_LOGARITHMIC_FACTOR else "Linear"
    field = f"{path}.ScalingType"
    if scaling not in allowed:
        raise AmtFieldError(field, scaling, f"one of {', '.join(allowed)}", "choose another scale")
    if scaling == "Logarithmic" and low <= 0:
        raise AmtFieldError(field, scaling, "a logarithmic scale needs MinValue above 0", "raise MinValue")
    if scaling == "ReverseLogarithmic" and not (low >= 0 and high < 1):
        raise AmtFieldError(
            field, scaling, "a reverse logarithmic scale needs 0 <= x < 1", "change the range or the scale"
        )
    return scaling


def _integer(one: Mapping[str, Any], path: str) -> IntegerParameter:
    bounds = [_number(one, key, path) for key in ("MinValue", "MaxValue")]
    for key, bound in zip(("MinValue", "MaxValue"), bounds, strict=True):
        if bound != math.floor(bound):
            raise AmtFieldError(f"{path}.{key}", one[key], "a whole number", "round it")
    low, high = (int(bound) for bound in bounds)
    _check_order(low, high, one, path)
    scaling = _scaling(one, low, high, path, ("Auto", "Linear", "Logarithmic"))
    return IntegerParameter(name=one["Name"], low=low, high=high, logarithmic=scaling == "Logarithmic")


def _continuous(one: Mapping[str, Any], path: str) -> ContinuousParameter:
    low, high = (_number(one, key, path) for key in ("MinValue", "MaxValue"))
    _check_order(low, high, one, path)
    scaling = _scaling(one, low, high, path, ("Auto", "Linear", "Logarithmic", "ReverseLogarithmic"))
    # Only a linear scale needs the difference; both searches compute with it, in doubles.
    if scaling == "Linear" and low < high and not sys.float_info.min <= high - low <= sys.float_info.max:
        raise AmtFieldError(
            f"{path}.MaxValue",
            one["MaxValue"],
            f"a range whose width (MaxValue - MinValue, {one['MinValue']}) is a double: "
            f"{sys.float_info.min:.2g} to {sys.float_info.max:.2g}",
            "bring the bounds closer together" if high - low > 1 else "bring the bounds further apart",
        )
    return ContinuousParameter(name=one["Name"], low=low, high=high, scaling=scaling)


def _number(one: Mapping[str, Any], key: str, path: str) -> float:
    try:
        number = float(one[key])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise AmtFieldError(f"{path}.{key}", one[key], "a finite number, as a string", "give a number")
    return number


def _check_order(low: float, high: float, one: Mapping[str, Any], path: str) -> None:
    if low > high:
        raise AmtFieldError(
            f"{path}.MinValue", one["MinValue"], f"at most MaxValue ({one['MaxValue']})", "swap the bounds"
        )
