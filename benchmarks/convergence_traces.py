"""Traces that convergence rules are judged on: the objectives of tuning jobs, in the order they ended.

Three sources, of which the first needs nothing but the ``benchmark`` dependency group:

- ``tables``: simulated tuning jobs on the tables of :mod:`benchmarks.search`;
- ``yahpo``: the same on surrogates of YAHPO Gym (LCBench's networks, XGBoost and decision trees on OpenML's
  tasks), from a checkout of GitHub's slds-lmu/yahpo_data;
- ``paper``: the runs that Makarova et al. (arXiv 2104.08166) published, from a checkout of GitHub's
  amazon-science/bo-early-stopping: random forests and XGBoost with cross-validation on 19 tabular data sets,
  and four search engines on FCNet's and NAS-Bench-201's tables.

Simulated tuning jobs are kept in a folder outside the repository, a file each, and are not made again.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airflow_amt.local.search import Combination, Evaluation, Space
from airflow_amt.tuning.criteria import ObjectiveType
from benchmarks import search

#: Training jobs of a simulated tuning job.
JOBS = 200
ENGINES = ("random", "bayesian", "optuna-tpe")
SEEDS = 5
#: Of YAHPO Gym: surrogate tasks of each kind, and seeds.
TASKS, TASK_SEEDS = 16, 2


@dataclass(frozen=True)
class Trace:
    """One tuning job.

    ``combinations`` and ``trainings`` (the objectives of each combination's repeated trainings) are there for
    tables alone: rules that fit a model need them.
    """

    source: str
    family: str
    name: str
    engine: str
    seed: int
    objective_type: ObjectiveType
    objectives: tuple[float, ...]
    combinations: tuple[Combination, ...] = ()
    trainings: tuple[tuple[float, ...], ...] = ()

    @property
    def key(self) -> str:
        """Return what tells it from others."""
        return f"{self.family}/{self.name}/{self.engine}/{self.seed}"

    def first(self, jobs: int) -> Trace:
        """Return the tuning job as if it had ended after so many training jobs."""
        return Trace(
            self.source, self.family, self.name, self.engine, self.seed, self.objective_type,
            self.objectives[:jobs], self.combinations[:jobs], self.trainings[:jobs],
        )  # fmt: skip

    def as_error(self, family: str, perfect: float) -> Trace:
        """Return the same tuning job with an accuracy's distance from the perfect one as its objective.

        The engines look at the order of objectives alone, so they would have tried the same.
        """
        return Trace(
            self.source, family, self.name, self.engine, self.seed, ObjectiveType.MINIMIZE,
            tuple(perfect - one for one in self.objectives),
        )  # fmt: skip


# --- simulated -------------------------------------------------------------------------------------


def _simulate(
    engine: str, seed: int, space: Space, objective_type: ObjectiveType, train: Callable[[Combination], float]
) -> list[Evaluation]:
    """Run a tuning job: with an even seed four training jobs are always pending, with an odd one none."""
    most_pending = 1 if seed % 2 else 4
    engine_of = search.ENGINES[engine](space, objective_type, seed, None)
    history: list[Evaluation] = []
    pending: list[dict[str, str]] = []

    def end() -> None:
        combination = pending.pop(0)
        history.append(Evaluation(hyperparameters=combination, objective=train(combination)))

    for _ in range(JOBS):
        if len(pending) == most_pending:
            end()
        combination = engine_of.propose(tuple(history), tuple(pending))
        if combination is None:
            raise RuntimeError("the space is exhausted")
        pending.append(combination)
    while pending:
        end()
    return history


def _kept(path: Path, make: Callable[[], list[Evaluation]]) -> tuple[list[float], list[Combination]]:
    """Return the objectives and combinations of a file; make it first if it is not there."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([[one.objective, one.hyperparameters] for one in made]))
        partial.replace(path)
    stored = json.loads(path.read_text())
    return [objective for objective, _ in stored], [combination for _, combination in stored]


def tables(cache: Path) -> Iterator[Trace]:
    """Return the tuning jobs on tables; their accuracies (families other than ``hpolib``) also as errors."""
    for seed in range(SEEDS):
        for family, names in search.TABLES.items():
            for name in names:
                for engine in ENGINES:
                    yield from _of_table(family, name, engine, seed, cache)


def _of_table(family: str, name: str, engine: str, seed: int, cache: Path) -> Iterator[Trace]:
    table = search.load(family, name)
    objectives, combinations = _kept(
        cache / family / f"{name}-{engine}-{seed}.json",
        lambda: _simulate(engine, seed, table.space(), table.objective_type, table.objective),
    )
    trace = Trace(
        "tables", family, name, engine, seed, table.objective_type, tuple(objectives), tuple(combinations),
        tuple(table.trainings(one) for one in combinations),
    )  # fmt: skip
    yield trace
    if table.maximise:
        yield trace.as_error(f"{family}-error", {"hpobench": 1.0, "nasbench201": 100.0}[family])


# --- YAHPO Gym -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A surrogate: its inputs in its order, what is held fixed, and which output is the objective."""

    folder: str
    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    fixed: Mapping[str, Any]
    output: int
    objective_type: ObjectiveType


_LCBENCH = (
    "epoch", "batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units",
    "max_dropout",
)  # fmt: skip
_XGBOOST = (
    "nrounds", "eta", "gamma", "lambda", "alpha", "subsample", "max_depth", "min_child_weight",
    "colsample_bytree", "colsample_bylevel", "rate_drop", "skip_drop", "trainsize", "repl",
)  # fmt: skip
#: Trees alone: of the other boosters some hyperparameters have no meaning.
_XGBOOST_FIXED = {"booster": "gbtree", "rate_drop": 0, "skip_drop": 0, "trainsize": 1, "repl": 10}
_TREE = ("cp", "maxdepth", "minbucket", "minsplit", "trainsize", "repl")
_IMPUTE = "num.impute.selected.cpo"

YAHPO = {
    "lcbench-cross-entropy": _Kind(
        "lcbench", ("OpenML_task_id",), _LCBENCH, {"epoch": 52}, 2, ObjectiveType.MINIMIZE
    ),
    "lcbench": _Kind("lcbench", ("OpenML_task_id",), _LCBENCH, {"epoch": 52}, 1, ObjectiveType.MAXIMIZE),
    "xgboost-log-loss": _Kind(
        "rbv2_xgboost", ("task_id", "booster", _IMPUTE), _XGBOOST, _XGBOOST_FIXED, 5, ObjectiveType.MINIMIZE
    ),
    "tree": _Kind(
        "rbv2_rpart", ("task_id", _IMPUTE), _TREE, {"trainsize": 1, "repl": 10}, 1, ObjectiveType.MAXIMIZE
    ),
}

#: Here the objective is 0 whatever is tried, but for the surrogate's rounding.
UNDEFINED = {("tree", "40498")}


class _Surrogate:
    """One surrogate on one OpenML task."""

    def __init__(self, kind: _Kind, folder: Path, session: Any, task: str) -> None:
        self._kind, self._session, self._task = kind, session, task
        self._codes = json.loads((folder / "encoding.json").read_text())
        ranges: dict[str, list[dict[str, Any]]] = {}
        for one in described(folder):
            if one["name"] in kind.fixed or one["name"] == kind.categories[0]:
                continue
            if one["type"] == "categorical":
                ranges.setdefault("CategoricalParameterRanges", []).append(
                    {"Name": one["name"], "Values": list(map(str, one["choices"]))}
                )
                continue
            range_kind = "Integer" if one["type"] == "uniform_int" else "Continuous"
            ranges.setdefault(f"{range_kind}ParameterRanges", []).append(
                {
                    "Name": one["name"],
                    "MinValue": str(one["lower"]),
                    "MaxValue": str(one["upper"]),
                    "ScalingType": "Logarithmic" if one["log"] else "Linear",
                }
            )
        self.space = Space.from_ranges(ranges, "ParameterRanges")

    def objective(self, combination: Combination) -> float:
        given = {**self._kind.fixed, **combination, self._kind.categories[0]: self._task}
        output = self._session.run(
            None,
            {
                "x_cat": np.array([[self._codes[name][given[name]] for name in self._kind.categories]], "i4"),
                "x_cont": np.array([[float(given[name]) for name in self._kind.numbers]], "f4"),
            },
        )[0]
        return float(output[0, self._kind.output])


def described(folder: Path) -> list[dict[str, Any]]:
    """Return the hyperparameters of a surrogate, as YAHPO Gym describes them."""
    given: list[dict[str, Any]] = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
    return given


def yahpo(data: Path, cache: Path) -> Iterator[Trace]:
    """Return the tuning jobs on surrogates; LCBench's accuracy also as error."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for family, kind in YAHPO.items():
        folder = data / kind.folder
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        tasks = sorted(next(one["choices"] for one in described(folder) if one["name"] == kind.categories[0]))
        for task in random.Random(f"tasks of {kind.folder}").sample(tasks, TASKS):
            if (family, task) in UNDEFINED:
                continue
            surrogate = _Surrogate(kind, folder, session, task)
            for seed in range(TASK_SEEDS):
                for engine in ENGINES:
                    objectives, _ = _kept(
                        cache / family / f"{task}-{engine}-{seed}.json",
                        lambda one=surrogate, engine=engine, seed=seed, kind=kind: _simulate(
                            engine, seed, one.space, kind.objective_type, one.objective
                        ),
                    )
                    trace = Trace("yahpo", family, task, engine, seed, kind.objective_type, tuple(objectives))
                    yield trace
                    if family == "lcbench":
                        yield trace.as_error("lcbench-error", 100.0)


# --- the paper's -----------------------------------------------------------------------------------

#: Engines as the paper's folders name them.
_PAPER_ENGINES = {"rs": "random", "tpe": "tpe", "robo": "gp", "emukit_gp_bo": "gp-emukit", "bore": "bore"}


def paper(data: Path) -> Iterator[Trace]:
    """Return the published runs; all of their objectives are losses or error rates."""
    csv.field_size_limit(10**8)
    root = data / "bo_runs"
    for path in sorted(root.glob("bo_runs_cv/*/*.csv")):
        family = "paper-random-forest" if "RandomForest" in path.parent.name else "paper-xgboost"
        yield _published(path, family, path.parent.name.split("_")[0], "gp", "value")
    for path in sorted(root.glob("baselines/*/*/*.csv")):
        data_set, engine = path.parent.parent.name, path.parent.name
        if data_set == "nas201cifar100":  # a copy of nas201_cifar100
            continue
        family = "paper-fcnet" if data_set.startswith("hpobench") else "paper-nasbench201"
        yield _published(path, family, data_set, _PAPER_ENGINES[engine], "feval")


def _published(path: Path, family: str, name: str, engine: str, column: str) -> Trace:
    with path.open(newline="") as file:
        objectives = tuple(float(row[column]) for row in csv.DictReader(file))
    return Trace("paper", family, name, engine, int(path.stem), ObjectiveType.MINIMIZE, objectives)


def objectives_of(traces: Sequence[Trace], jobs: int) -> list[Trace]:
    """Return the tuning jobs that have so many training jobs at least, cut there."""
    return [trace.first(jobs) for trace in traces if len(trace.objectives) >= jobs]
