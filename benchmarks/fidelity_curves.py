"""Learning curves that early stopping is measured on: LCBench's, by a surrogate, and some made here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from airflow_amt.local.search import Combination, Space
from airflow_amt.tuning.criteria import ObjectiveType
from benchmarks.search_peers import place

#: So many random combinations say what spread the final objectives of a task have.
SAMPLE = 1000


class Task(Protocol):
    """Something to tune: its ranges, and the objectives that a training job emits."""

    name: str
    space: Space
    objective_type: ObjectiveType
    #: What every training job emits when it is left alone.
    epochs: int

    def curve(self, combination: Combination) -> Sequence[float]:
        """Return the objectives of a training job, one per epoch."""

    def sample(self) -> Iterable[float]:
        """Return the final objectives of random combinations."""


def spread(task: Task) -> dict[str, float]:
    """Return the median final objective of random combinations, and their interquartile range."""
    low, middle, high = statistics.quantiles(task.sample(), n=4)
    return {"median": round(middle, 5), "interquartile_range": round(high - low, 5)}


def _space(ranges: Sequence[tuple[str, str, Any]]) -> Space:
    """Return the ranges that a user would write; a range is a kind, a name, and limits or values."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for kind, name, given in ranges:
        if kind == "Categorical":
            grouped.setdefault("CategoricalParameterRanges", []).append({"Name": name, "Values": given})
            continue
        low, high, scaling = given
        one = {"Name": name, "MinValue": str(low), "MaxValue": str(high), "ScalingType": scaling}
        grouped.setdefault(f"{kind}ParameterRanges", []).append(one)
    return Space.from_ranges(grouped, "ParameterRanges")


# --- LCBench ---------------------------------------------------------------------------------------

#: OpenML tasks on which rules are tried out, and those on which figures are reported: every third one of
#: the 34, in the order of their numbers, is of the second kind.
LCBENCH_TRIED = (
    3945, 34539, 126025, 126029, 146212, 167149, 167152, 167168, 167181, 167185, 167190, 167201,
    168329, 168331, 168335, 168908, 168910, 189862, 189865, 189873, 189905, 189908,
)  # fmt: skip
LCBENCH_REPORTED = (
    7593, 126026, 167104, 167161, 167184, 167200, 168330, 168868, 189354, 189866, 189906, 189909,
)  # fmt: skip

_TASK = "OpenML_task_id"
#: Inputs of the surrogate beside the task, in its order, and where validation accuracy is in its output.
_INPUTS = (
    "epoch", "batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units",
    "max_dropout",
)  # fmt: skip
_VALIDATION_ACCURACY = 1
#: In LCBench the first entry is that of the network before training, which a trainer does not emit.
_FIRST, _LAST = 2, 52


class Surrogate:
    """YAHPO Gym's model of LCBench: 2,000 networks trained on each of 34 tabular tasks.

    :param folder: ``lcbench`` in a checkout of slds-lmu/yahpo_data.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._codes = json.loads((folder / "encoding.json").read_text())[_TASK]
        described = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
        self.space = _space(
            [
                (
                    "Integer" if one["type"] == "uniform_int" else "Continuous",
                    one["name"],
                    (one["lower"], one["upper"], "Logarithmic" if one["log"] else "Linear"),
                )
                for one in described
                if one["name"] not in (_TASK, "epoch")
            ]
        )

    def curves(self, task: str, combinations: Sequence[Combination], epochs: Sequence[int]) -> np.ndarray:
        """Return validation accuracies, a row for each combination and a column for each epoch."""
        numbers = [
            [float(epoch if name == "epoch" else combination[name]) for name in _INPUTS]
            for combination in combinations
            for epoch in epochs
        ]
        inputs = {
            "x_cat": np.full((len(numbers), 1), self._codes[task], np.int32),
            "x_cont": np.array(numbers, np.float32),
        }
        (output,) = self._session.run(None, inputs)
        return output[:, _VALIDATION_ACCURACY].reshape(len(combinations), len(epochs))


class LcBenchTask:
    """One task of LCBench; the objective is the validation accuracy in per cent."""

    objective_type = ObjectiveType.MAXIMIZE
    epochs = _LAST - _FIRST + 1

    def __init__(self, surrogate: Surrogate, number: int) -> None:
        self.name = f"lcbench/{number}"
        self.space = surrogate.space
        self._surrogate = surrogate
        self._task = str(number)
        #: Methods that draw at random ask for the same ones.
        self._known: dict[tuple[str, ...], Sequence[float]] = {}

    def curve(self, combination: Combination) -> Sequence[float]:
        """See :meth:`Task.curve`."""
        key = self.space.key(combination)
        if key not in self._known:
            row = self._surrogate.curves(self._task, [combination], range(_FIRST, _LAST + 1))[0]
            self._known[key] = row.tolist()
        return self._known[key]

    def sample(self) -> Iterable[float]:
        """See :meth:`Task.sample`."""
        generator = random.Random("sample")
        drawn = [self.space.draw(generator) for _ in range(SAMPLE)]
        final: list[float] = self._surrogate.curves(self._task, drawn, [_LAST])[:, 0].tolist()
        return final


# --- made here -------------------------------------------------------------------------------------

#: So many random combinations are trained on each data set.
POOL = 300

_NETWORK = _space(
    [
        ("Continuous", "learning_rate", (0.00001, 0.3, "Logarithmic")),
        ("Integer", "batch_size", (16, 256, "Logarithmic")),
        ("Integer", "units", (2, 128, "Logarithmic")),
        ("Continuous", "alpha", (0.0000001, 10.0, "Logarithmic")),
        ("Continuous", "beta_1", (0.5, 0.99, "Linear")),
        ("Categorical", "activation", ["relu", "tanh", "logistic"]),
    ]
)


def _accuracy(model: Any, inputs: Any, outputs: Any) -> float:
    return float((model.predict(inputs) == outputs).mean())


def _log_loss(model: Any, inputs: Any, outputs: Any) -> float:
    shares = model.predict_proba(inputs)[np.arange(len(outputs)), np.searchsorted(model.classes_, outputs)]
    return float(-np.log(np.maximum(shares, 1e-12)).mean())


def _squared_error(model: Any, inputs: Any, outputs: Any) -> float:
    return float(((model.predict(inputs) - outputs) ** 2).mean())


MAXIMIZE, MINIMIZE = ObjectiveType.MAXIMIZE, ObjectiveType.MINIMIZE
#: Bundled data sets, what the networks are judged by, which direction of it is better, and how many epochs.
MADE: dict[str, tuple[Callable[[Any, Any, Any], float], ObjectiveType, int]] = {
    "digits": (_accuracy, MAXIMIZE, 27),
    "breast_cancer": (_log_loss, MINIMIZE, 81),
    "wine": (_log_loss, MINIMIZE, 81),
    "diabetes": (_squared_error, MINIMIZE, 81),
}


class MadeTask:
    """Scikit-learn's multilayer perceptron on a bundled data set, trained for :data:`POOL` combinations.

    What is proposed is moved to the nearest of them. A third of the rows is for validation.

    :param name: the data set.
    :param cache: folder for the curves; they are made if it does not have them.
    """

    space = _NETWORK

    def __init__(self, name: str, cache: Path) -> None:
        self.name = f"scikit-learn/{name}"
        _, self.objective_type, self.epochs = MADE[name]
        generator = random.Random(f"pool/{name}")
        pool = [self.space.draw(generator) for _ in range(POOL)]
        self._places = np.array([place(self.space, one) for one in pool])
        digest = hashlib.sha256(json.dumps([self.epochs, pool]).encode()).hexdigest()[:12]
        path = cache / f"fidelity-{name}-{digest}-scikit-learn-{version('scikit-learn')}.json"
        if path.exists():
            self._curves = json.loads(path.read_text())
        else:
            self._curves = _train(name, pool)
            cache.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self._curves))
            part.replace(path)

    def curve(self, combination: Combination) -> Sequence[float]:
        """See :meth:`Task.curve`."""
        distances = ((self._places - place(self.space, combination)) ** 2).sum(axis=1)
        curve: list[float] = self._curves[int(distances.argmin())]
        return curve

    def sample(self) -> Iterable[float]:
        """See :meth:`Task.sample`."""
        return [curve[-1] for curve in self._curves]


def _train(name: str, pool: Sequence[Mapping[str, str]]) -> list[list[float]]:
    """Train a network for each combination, epoch by epoch, and return what it is judged by."""
    import sklearn.datasets
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    measure, _, epochs = MADE[name]
    inputs, outputs = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    regression = measure is _squared_error
    if regression:
        outputs = (outputs - outputs.mean()) / outputs.std()
    fitted, held, targets, held_targets = train_test_split(
        inputs, outputs, test_size=1 / 3, random_state=0, stratify=None if regression else outputs
    )
    scaler = StandardScaler().fit(fitted)
    fitted, held = scaler.transform(fitted), scaler.transform(held)
    curves = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A batch that is larger than the data is as large as the data.
        warnings.filterwarnings("ignore", "Got `batch_size`", UserWarning)
        for number, one in enumerate(pool):
            model = (MLPRegressor if regression else MLPClassifier)(
                hidden_layer_sizes=(int(one["units"]),),
                activation=one["activation"],
                learning_rate_init=float(one["learning_rate"]),
                batch_size=min(int(one["batch_size"]), len(fitted)),
                alpha=float(one["alpha"]),
                beta_1=float(one["beta_1"]),
                random_state=number,
            )
            first = {} if regression else {"classes": np.unique(outputs)}
            curve = []
            for epoch in range(epochs):
                model.partial_fit(fitted, targets, **(first if epoch == 0 else {}))
                curve.append(measure(model, held, held_targets))
            if not all(map(math.isfinite, curve)):
                raise RuntimeError(f"a network for {name} diverged: {one}")
            curves.append(curve)
    return curves


def default_cache() -> Path:
    """Return the folder for what is made here: in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airflow-amt-benchmarks"
