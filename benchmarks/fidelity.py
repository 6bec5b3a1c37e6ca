"""What early stopping saves, and what it costs: ``Auto`` and Hyperband on learning curves.

``python -m benchmarks.fidelity --data FOLDER [--methods ...] [--tasks ...] [--seeds 10] [--json]``

Needs the ``benchmark`` dependency group. The curves come from two sources:

- ``lcbench``: validation accuracies of networks on tabular tasks, as YAHPO Gym's surrogate of LCBench
  predicts them. ``FOLDER`` is a checkout of slds-lmu/yahpo_data (Apache 2.0), of which ``lcbench/`` is read;
  without it these tasks are left out. The first of the surrogate's 52 epochs is the network before training,
  which no trainer emits: 51 are left. The tasks to report on are apart from those on which rules are tried
  out (``--tried``, which writes nothing unless ``--output`` names a file).
- ``scikit-learn``: multilayer perceptrons on four bundled data sets, trained here for 300 random combinations
  each (six minutes on one core), which is done once and kept in ``--cache``. A proposal is moved to the
  nearest of them. Accuracy is maximised, the log loss and the squared error are minimised. As the best of
  300 is soon found, what further training jobs can bring is bounded here.

A simulated tuning job runs four training jobs at a time. An epoch takes one unit of time; whenever a training
job has come to the end of one, the rule sees its curve (``report``), and what ends is told to the rule
(``ended``) and to the search before the next one is proposed, as the embedded AMT does. Searches and rules
are made from a request's fields by the embedded AMT's own functions; so a seed gives Random, ``Auto`` with
Random, Hyperband and the peers the same combinations. A training job counts with its latest objective, also
if it was stopped, and the best of these is the objective of the tuning job. Bayesian search proposes other
combinations as soon as one training job is stopped, so that by chance alone half of its cells are worse than
their baseline.

The methods:

- ``random`` and ``bayesian`` run everything to the end; they are what the others are compared with;
- ``auto-random`` and ``auto-bayesian``: the same with ``TrainingJobEarlyStoppingType`` ``Auto``;
- ``hyperband``: the strategy, with the defaults, so ``MinResource`` is one epoch;
- ``optuna-median``, ``optuna-halving``, ``optuna-hyperband``: Optuna's pruners with their defaults (for the
  last two resources of 1 to all epochs and a factor of 3), the combinations as Random draws them.

The figures, of each method and source, where a cell is a task and a seed, and its baseline is what its search
brings with 100 training jobs that all run to the end:

- ``epochs_saved``: the share of the baseline's epochs that 100 training jobs did not need. ``difference`` is
  how much better their best objective is than the baseline's (negative: worse), in units of the interquartile
  range of the final objectives of random combinations; the mean, its standard error, and the median, which is
  not moved by few large ones. ``equal_or_better_share`` and ``within_1_percent_share`` (of the baseline's
  objective) are shares of cells.
- ``with_equal_epochs``: the tuning job goes on with further training jobs until it has used as many epochs as
  the baseline; those that run then are stopped. ``difference`` and the shares as above, after
  ``training_jobs`` (median).
- ``epochs_to_equal``: the epochs that all training jobs had used when one ended with an objective as good as
  the baseline's best, as a share of all the baseline's epochs. ``reached_share`` is the share of cells in
  which this happened before the baseline's epochs were used up; ``median`` is over all cells, where those
  that were not reached count as infinite (``null`` if they are the half). ``against_first`` is the median
  ratio to the epochs that the baseline itself had used when it found its best.

Methods that take long are measured for fewer seeds: ``summary_where_peers_are`` has the same figures for the
tasks and seeds on which every peer was measured.

Cells (method, task, seed) that the results file already has are not measured again, unless ``--again``.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_amt.local.early_stopping import StoppingRule, create_stopping_rule
from airflow_amt.local.search import Combination, Evaluation, Search, create_search
from airflow_amt.tuning.criteria import ObjectiveType
from benchmarks import fidelity_curves
from benchmarks.fidelity_curves import LCBENCH_REPORTED, LCBENCH_TRIED, MADE, Task
from benchmarks.record import FOLDER, save

PENDING = 4
TRAINING_JOBS = 100
#: Most seeds of methods of which a cell takes many seconds.
SLOW_SEEDS = 3

# --- methods ---------------------------------------------------------------------------------------


class OptunaRule:
    """One of Optuna's pruners as a stopping rule."""

    def __init__(self, pruner: Any, objective_type: ObjectiveType, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._states = optuna.trial.TrialState
        self._study = optuna.create_study(
            # The name decides on the brackets.
            study_name=f"fidelity-{seed}",
            direction="maximize" if objective_type is ObjectiveType.MAXIMIZE else "minimize",
            sampler=optuna.samplers.RandomSampler(seed=seed),
            pruner=pruner,
        )
        self._trials: dict[str, Any] = {}
        self._pruned: set[str] = set()

    def report(self, name: str, curve: Sequence[float]) -> bool:
        """See :meth:`StoppingRule.report`."""
        trial = self._trials.get(name) or self._trials.setdefault(name, self._study.ask())
        trial.report(curve[-1], len(curve))
        if not trial.should_prune():
            return False
        self._pruned.add(name)
        return True

    def ended(self, name: str, curve: Sequence[float]) -> None:
        """See :meth:`StoppingRule.ended`."""
        trial = self._trials.pop(name)
        if name in self._pruned:
            self._study.tell(trial, state=self._states.PRUNED)
        else:
            self._study.tell(trial, curve[-1])


def _optuna(name: str, epochs: int) -> Any:
    import optuna

    if name == "optuna-median":
        return optuna.pruners.MedianPruner()
    if name == "optuna-halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)


@dataclass(frozen=True)
class Method:
    """A search and a stopping rule."""

    config: Mapping[str, Any]
    #: What it is compared with, ``None`` for what the others are compared with.
    baseline: str | None = None
    pruner: Callable[[int], Any] | None = None

    @property
    def is_slow(self) -> bool:
        """Whether a cell takes many seconds."""
        return self.pruner is not None or self.config["Strategy"] == "Bayesian"

    def create(self, task: Task, seed: int) -> tuple[Search, StoppingRule | None]:
        """Return its search and its rule for a task."""
        search = create_search(self.config["Strategy"], task.space, task.objective_type, seed)
        if self.pruner is not None:
            return search, OptunaRule(self.pruner(task.epochs), task.objective_type, seed)
        # The trainer of the curves runs as many epochs as it is told, as most do.
        static = {"epochs": str(task.epochs)}
        return search, create_stopping_rule(self.config, static, task.objective_type, seed)


_RANDOM, _BAYESIAN = {"Strategy": "Random"}, {"Strategy": "Bayesian"}
_AUTO = {"TrainingJobEarlyStoppingType": "Auto"}
METHODS: dict[str, Method] = {
    "random": Method(_RANDOM),
    "bayesian": Method(_BAYESIAN),
    "auto-random": Method(_RANDOM | _AUTO, "random"),
    "auto-bayesian": Method(_BAYESIAN | _AUTO, "bayesian"),
    "hyperband": Method({"Strategy": "Hyperband"}, "random"),
    "optuna-median": Method(_RANDOM, "random", lambda epochs: _optuna("optuna-median", epochs)),
    "optuna-halving": Method(_RANDOM, "random", lambda epochs: _optuna("optuna-halving", epochs)),
    "optuna-hyperband": Method(_RANDOM, "random", lambda epochs: _optuna("optuna-hyperband", epochs)),
}

# --- the simulation --------------------------------------------------------------------------------


@dataclass
class TrainingJob:
    """One training job: what it would emit, and how far it is."""

    combination: Combination
    emits: Sequence[float]
    epochs: int = 0

    @property
    def curve(self) -> Sequence[float]:
        """What it has emitted."""
        return self.emits[: self.epochs]


@dataclass
class Outcome:
    """What a simulated tuning job brought."""

    #: Epochs that all training jobs used.
    epochs: int = 0
    #: For each training job in the order of their ends, the epochs used by then, and its objective.
    ends: list[tuple[int, float]] = field(default_factory=list)

    def best(self, objective_type: ObjectiveType) -> float:
        """Return the objective of the tuning job."""
        choose = max if objective_type is ObjectiveType.MAXIMIZE else min
        return choose(objective for _, objective in self.ends)

    def epochs_to(self, objective: float, objective_type: ObjectiveType) -> int | None:
        """Return the epochs used when a training job ended no worse than an objective."""
        good = (
            epochs
            for epochs, reached in self.ends
            if reached == objective or objective_type.better(reached, objective)
        )
        return next(good, None)


def simulate(
    task: Task,
    search: Search,
    rule: StoppingRule | None,
    *,
    most_training_jobs: int | None = None,
    most_epochs: int | None = None,
) -> Outcome:
    """Run a tuning job on a clock that an epoch advances by one, until one of the two limits."""
    outcome = Outcome()
    history: list[Evaluation] = []
    running: dict[int, TrainingJob] = {}
    #: When each running training job ends its next epoch; of those at the same time the earliest launched.
    clock: list[tuple[int, int]] = []
    launched = 0

    def launch(now: int) -> None:
        nonlocal launched
        if launched == most_training_jobs:
            return
        combination = search.propose(history, [one.combination for one in running.values()])
        if combination is None:
            raise RuntimeError(f"the space is exhausted after {launched} training jobs")
        launched += 1
        running[launched] = TrainingJob(combination, task.curve(combination))
        heapq.heappush(clock, (now + 1, launched))

    def end(number: int) -> None:
        job = running.pop(number)
        if not job.epochs:
            return
        objective = job.curve[-1]
        if rule is not None:
            rule.ended(f"{number:03d}", job.curve)
        history.append(Evaluation(hyperparameters=job.combination, objective=objective))
        outcome.ends.append((outcome.epochs, objective))

    for _ in range(PENDING):
        launch(0)
    while clock and outcome.epochs != most_epochs:
        now, number = heapq.heappop(clock)
        job = running[number]
        job.epochs += 1
        outcome.epochs += 1
        is_stopped = rule is not None and rule.report(f"{number:03d}", job.curve)
        if is_stopped or job.epochs == task.epochs:
            end(number)
            launch(now)
        else:
            heapq.heappush(clock, (now + 1, number))
    for number in list(running):
        end(number)
    return outcome


def measure(method: Method, task: Task, seed: int, baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measure a cell.

    :param baseline: the cell that it is compared with; ``None`` for one that others are compared with.
    """
    kind = task.objective_type
    search, rule = method.create(task, seed)
    outcome = simulate(task, search, rule, most_training_jobs=TRAINING_JOBS)
    best = outcome.best(kind)
    figures: dict[str, Any] = {"epochs": outcome.epochs, "best": best}
    if baseline is None:
        return figures | {"found_at": outcome.epochs_to(best, kind)}
    search, rule = method.create(task, seed)
    longer = simulate(task, search, rule, most_epochs=baseline["epochs"])
    return figures | {
        "best_with_equal_epochs": longer.best(kind),
        "training_jobs": len(longer.ends),
        "equal_at": longer.epochs_to(baseline["best"], kind),
    }


# --- figures ---------------------------------------------------------------------------------------


def _differences(
    pairs: Sequence[tuple[float, float]], units: Sequence[float], signs: Sequence[int]
) -> dict[str, Any]:
    """Compare best objectives with those of the baseline."""
    gains = [sign * (ours - theirs) for (ours, theirs), sign in zip(pairs, signs, strict=True)]
    scaled = [gain / unit for gain, unit in zip(gains, units, strict=True)]
    near = [gain >= -0.01 * abs(theirs) for gain, (_, theirs) in zip(gains, pairs, strict=True)]
    return {
        "difference": {
            "mean": round(statistics.fmean(scaled), 4),
            "standard_error": round(statistics.stdev(scaled) / math.sqrt(len(scaled)), 4),
            "median": round(statistics.median(scaled), 4),
        },
        "equal_or_better_share": round(statistics.fmean(gain >= 0 for gain in gains), 3),
        "within_1_percent_share": round(statistics.fmean(near), 3),
    }


def _median_or_none(values: Sequence[float]) -> float | None:
    middle = statistics.median(values)
    return round(middle, 3) if math.isfinite(middle) else None


def compare(
    cells: Sequence[Mapping[str, Any]],
    baselines: Sequence[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return a method's figures over cells, given the baseline and the task of each."""
    units = [task["interquartile_range"] for task in tasks]
    signs = [1 if task["objective_type"] == "Maximize" else -1 for task in tasks]
    paired = list(zip(cells, baselines, strict=True))

    def equal(denominator: str) -> list[float]:
        return [
            math.inf if cell["equal_at"] is None else cell["equal_at"] / baseline[denominator]
            for cell, baseline in paired
        ]

    return {
        "cells": len(cells),
        "epochs_saved": round(
            statistics.fmean(1 - cell["epochs"] / baseline["epochs"] for cell, baseline in paired), 3
        ),
        **_differences([(cell["best"], baseline["best"]) for cell, baseline in paired], units, signs),
        "with_equal_epochs": {
            "training_jobs": statistics.median(cell["training_jobs"] for cell in cells),
            **_differences(
                [(cell["best_with_equal_epochs"], baseline["best"]) for cell, baseline in paired],
                units,
                signs,
            ),
        },
        "epochs_to_equal": {
            "reached_share": round(statistics.fmean(cell["equal_at"] is not None for cell in cells), 3),
            "median": _median_or_none(equal("epochs")),
            "against_first": _median_or_none(equal("found_at")),
        },
    }


def summarise(cells: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of every method on every source."""
    summary: dict[str, Any] = {}
    sources = sorted({name.split("/")[0] for name in tasks})
    for method, described in METHODS.items():
        for source in sources:
            rows = []
            for key, cell in cells.items():
                mine, rest = key.split("/", 1)
                task = rest.rsplit("/", 1)[0]
                baseline = cells.get(f"{described.baseline}/{rest}")
                if mine == method and baseline is not None and task.startswith(source):
                    rows.append((cell, baseline, tasks[task]))
            if len(rows) > 1:
                summary.setdefault(method, {})[source] = compare(*zip(*rows, strict=True))
    return summary


def of_peers(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of the tasks and seeds on which every peer was measured."""
    peers = [name for name, method in METHODS.items() if method.pruner is not None]

    def has_all(key: str) -> bool:
        return all(f"{peer}/{key.split('/', 1)[1]}" in cells for peer in peers)

    return {key: cell for key, cell in cells.items() if has_all(key)}


# --- command ---------------------------------------------------------------------------------------


_FOLDERS = ("--data", "--cache")


def load(names: Sequence[str], data: Path | None, cache: Path) -> list[Task]:
    """Return the tasks of these names."""
    tasks: list[Task] = []
    surrogate = None
    for name in names:
        source, one = name.split("/")
        if source == "scikit-learn":
            tasks.append(fidelity_curves.MadeTask(one, cache))
        elif data is not None:
            surrogate = surrogate or fidelity_curves.Surrogate(data / "lcbench")
            tasks.append(fidelity_curves.LcBenchTask(surrogate, int(one)))
    return tasks


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, and write the figures after every task and seed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity", description=__doc__, allow_abbrev=False
    )
    reported = [*(f"lcbench/{one}" for one in LCBENCH_REPORTED), *(f"scikit-learn/{one}" for one in MADE)]
    tried = [f"lcbench/{one}" for one in LCBENCH_TRIED]
    parser.add_argument("--data", type=Path, help="a checkout of slds-lmu/yahpo_data")
    parser.add_argument("--cache", type=Path, default=fidelity_curves.default_cache())
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", choices=[*reported, *tried], metavar="SOURCE/TASK")
    parser.add_argument("--tried", action="store_true", help="the tasks on which rules are tried out")
    parser.add_argument(
        "--seeds", type=int, default=10, help=f"Bayesian and the peers get at most {SLOW_SEEDS}"
    )
    parser.add_argument("--again", action="store_true", help="measure also what the results file has")
    parser.add_argument("--output", help="name of the results file; fidelity unless --tried")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    output = options.output or (None if options.tried else "fidelity")
    stored = FOLDER / f"{output}.json"
    figures: dict[str, Any] = json.loads(stored.read_text()) if output and stored.exists() else {}
    cells: dict[str, Any] = figures.get("cells", {})
    described: dict[str, Any] = figures.get("tasks", {})
    shown_arguments = _shown(sys.argv[1:] if arguments is None else arguments)
    command = " ".join(["python -m benchmarks.fidelity", *shown_arguments])
    # The file may be the work of several runs.
    commands = list(dict.fromkeys([*figures.get("commands", []), command]))

    def write() -> dict[str, Any]:
        figures = {
            "commands": commands,
            "pending": PENDING,
            "training_jobs": TRAINING_JOBS,
            "summary": summarise(cells, described),
            "summary_where_peers_are": summarise(of_peers(cells), described),
            "tasks": dict(sorted(described.items())),
            "cells": dict(sorted(cells.items())),
        }
        packages = ["airflow-provider-amt", "numpy", "scipy", "optuna", "scikit-learn", "onnxruntime"]
        if output:
            save(output, command, packages, figures)
        return figures

    again = set(cells) if options.again else set()
    # What others are compared with comes first.
    methods = sorted(
        {*options.methods, *(METHODS[one].baseline or one for one in options.methods)},
        key=lambda one: (METHODS[one].baseline is not None, list(METHODS).index(one)),
    )
    tasks = load(options.tasks or (tried if options.tried else reported), options.data, options.cache)
    for seed in range(options.seeds):
        for task in tasks:
            described[task.name] = described.get(task.name) or {
                "objective_type": task.objective_type.value,
                "epochs": task.epochs,
                **fidelity_curves.spread(task),
            }
            for name in methods:
                method, key = METHODS[name], f"{name}/{task.name}/{seed}"
                if (key in cells and key not in again) or (method.is_slow and seed >= SLOW_SEEDS):
                    continue
                baseline = None if method.baseline is None else cells[f"{method.baseline}/{task.name}/{seed}"]
                cells[key] = measure(method, task, seed, baseline)
                again.discard(key)
            write()
    figures = write()
    shown = {key: value for key, value in figures.items() if key != "cells"}
    sys.stdout.write(json.dumps(shown, indent=None if options.json else 2) + "\n")
    return 0


def _shown(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the places of this machine."""
    shown: list[str] = []
    for argument in arguments:
        option, has_value, _ = argument.partition("=")
        if shown and shown[-1] in _FOLDERS:
            shown.append("FOLDER")
        elif has_value and option in _FOLDERS:
            shown.append(f"{option}=FOLDER")
        else:
            shown.append(argument)
    return shown


if __name__ == "__main__":
    sys.exit(main())
