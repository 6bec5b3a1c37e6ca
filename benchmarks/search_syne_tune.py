"""Syne-tune's Bayesian optimisation as a child process, in a Python environment of its own.

``PYTHON -I benchmarks/search_syne_tune.py`` is run by :class:`benchmarks.search_peers.SyneTune` with an
interpreter that has ``syne-tune[gpsearchers]``, and imports nothing else but the standard library. It reads
one JSON object a line and answers each with one:

========================================================= ==========================================
read                                                      answered
========================================================= ==========================================
``{"versions": ["syne-tune", ...]}``                      the versions of these, and Python's
``{"begin": {"space": [...], "mode": "max", "seed": 1}}`` ``{}``
``{"finished": [[number, combination, objective], ...]}`` the next combination, values as strings
========================================================= ==========================================

``begin`` starts a new tuning job. Proposals are numbered from 0; what was tried, but not proposed here, has a
negative number.

The settings are the defaults of ``BayesianOptimization``: Matérn 5/2 with a length scale for each
hyperparameter, no input warping, expected improvement, pending ones by 20 draws from the model
(``num_fantasy_samples``), at most 500 objectives in the model, no combination twice (``allow_duplicates``
off), first the middle of all ranges, then three random combinations (``num_init_random``).
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

with redirect_stdout(sys.stderr):  # it prints which of its extras are missing
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
    from syne_tune.optimizer.baselines import BayesianOptimization

#: How each kind of range is written here.
KINDS: dict[str, Callable[..., Any]] = {
    "integer": randint,
    "logarithmic integer": lograndint,
    "continuous": uniform,
    "logarithmic continuous": loguniform,
}
_METRIC = "objective"


class Job:
    """One tuning job."""

    def __init__(self, space: list[dict[str, Any]], mode: str, seed: int) -> None:
        ranges = {
            one["name"]: choice(one["values"])
            if one["kind"] == "categorical"
            else KINDS[one["kind"]](one["low"], one["high"])
            for one in space
        }
        self._types = {one["name"]: _type(one["kind"]) for one in space}
        self._scheduler = BayesianOptimization(ranges, metric=_METRIC, mode=mode, random_seed=seed)
        self._trials: dict[int, Trial] = {}
        self._begun = 0

    def propose(self, finished: list[tuple[int, dict[str, str], float]]) -> dict[str, str]:
        """Take note of what has finished, and return the next combination."""
        for number, combination, objective in finished:
            trial = self._trials.pop(number, None)
            if trial is None:
                values = {name: self._types[name](text) for name, text in combination.items()}
                trial = _trial(number, values)
            result = {_METRIC: objective}
            self._scheduler.on_trial_result(trial, result)
            self._scheduler.on_trial_complete(trial, result)
        suggestion = self._scheduler.suggest(self._begun)
        if suggestion is None:
            raise RuntimeError("nothing is left to propose")
        trial = _trial(self._begun, suggestion.config)
        self._scheduler.on_trial_add(trial)
        self._trials[self._begun] = trial
        self._begun += 1
        return {name: str(value) for name, value in suggestion.config.items()}


def _type(kind: str) -> Callable[[str], Any]:
    if kind == "categorical":
        return str
    return int if kind.endswith("integer") else float


def _trial(number: int, values: dict[str, Any]) -> Trial:
    return Trial(trial_id=number, config=values, creation_time=datetime.now(timezone.utc))  # noqa: UP017


def main() -> int:
    """Answer each line until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what it prints is no answer
    logging.getLogger().setLevel(logging.ERROR)
    job: Job | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if "versions" in message:
            answer = {"python": platform.python_version()}
            answer.update({name: version(name) for name in message["versions"]})
        elif "begin" in message:
            job = Job(**message["begin"])
            answer = {}
        elif job is None:
            raise RuntimeError("nothing has begun")
        else:
            answer = job.propose(message["finished"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
