"""Optuna's terminator as a child process, in a Python environment of its own.

``PYTHON -I benchmarks/convergence_terminator.py`` is run by :mod:`benchmarks.convergence` with an interpreter
that has ``optuna`` and ``torch``, which its Gaussian process is fitted with, and imports nothing else but the
standard library. It reads one JSON object a line and answers each with one:

============================================================= =============================================
read                                                          answered
============================================================= =============================================
``{"versions": ["optuna", ...]}``                             the versions of these
``{"space": [...], "direction": "maximize", "trials": [...]}`` ``{"after": 35}``, ``null`` if it never ended
============================================================= =============================================

A trial is its combination, its objective and the objectives of its repeated trainings, which stand for the
folds of a cross-validation. The terminator has its default settings: the upper bound on the regret by
Makarova et al., compared with the standard error of the best trial's folds, from 20 trials on. It is asked
after every ``every``-th trial, as one question takes up to a second.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.terminator import Terminator, report_cross_validation_scores

optuna.logging.set_verbosity(optuna.logging.WARNING)


def distribution(one: dict[str, Any]) -> Any:
    """Return a hyperparameter's range."""
    if one["kind"] == "categorical":
        return CategoricalDistribution(one["values"])
    kind = IntDistribution if one["kind"].endswith("integer") else FloatDistribution
    return kind(one["low"], one["high"], log=one["kind"].startswith("logarithmic"))


def value(kind: Any, text: str) -> Any:
    """Return a hyperparameter's value in its range's type."""
    if isinstance(kind, CategoricalDistribution):
        return text
    number = float(text)
    return round(number) if isinstance(kind, IntDistribution) else min(max(number, kind.low), kind.high)


def ended_after(message: dict[str, Any]) -> int | None:
    """Return after how many trials the terminator would have ended the study."""
    ranges = {one["name"]: distribution(one) for one in message["space"]}
    study = optuna.create_study(direction=message["direction"])
    terminator = Terminator()
    for number, (combination, objective, trainings) in enumerate(message["trials"], start=1):
        study.enqueue_trial({name: value(kind, combination[name]) for name, kind in ranges.items()})
        trial = study.ask(ranges)
        report_cross_validation_scores(trial, trainings)
        study.tell(trial, objective)
        if number % message["every"] == 0 and terminator.should_terminate(study):
            return number
    return None


def main() -> None:
    """Answer until the input ends."""
    # They are experimental or to be removed, and say so at each use.
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        message = json.loads(line)
        if "versions" in message:
            answer: dict[str, Any] = {name: version(name) for name in message["versions"]}
        else:
            answer = {"after": ended_after(message)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
