"""What the cells of :mod:`benchmarks.search` say: mean regrets, ranks, and differences with their errors.

A comparison takes the cells (table, pending, seed) that all of its engines have, and ranks the engines in
each by their regret after so many training jobs: 1 is the best, equals share the mean of their ranks.

Seeds of one table are not independent: what is easy or hard about a table is so with every seed. So each
figure is averaged over the seeds of a table first, and the standard errors are those of the mean over tables:
they say how far the mean over other tables of this kind may be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Mapping, Sequence
from typing import Any

BUDGETS = (10, 20, 50, 100)
OURS = "bayesian"
BASELINE = "random"
_CHEAP = (BASELINE, OURS, "optuna-tpe", "optuna-tpe-univariate")

#: Tables that settings of ours were chosen on: most of them on eight tables (with seeds 0 to 3), how the
#: search begins on seven (with other seeds than those of the results).
CHOSEN_ON = frozenset(
    {
        "hpobench/australian",
        "hpobench/car",
        "hpobench/kc1",
        "hpobench/segment",
        "hpolib/naval_propulsion",
        "hpolib/parkinsons_telemonitoring",
        "hpolib/slice_localization",
        "nasbench201/cifar10",
        "nasbench201/cifar100",
        "nasbench201/imagenet",
    }
)
_OTHERS = "cheap engines, on tables that nothing was chosen on"

#: The engines that are ranked together; those without any cells yet are left out.
COMPARISONS: dict[str, tuple[str, ...]] = {
    "cheap engines": _CHEAP,
    _OTHERS: _CHEAP,
    "with syne-tune": (*_CHEAP, "syne-tune-gp"),
    "with scikit-learn": (*_CHEAP, "scikit-learn-gp"),
    "warm starts": (BASELINE, OURS, "bayesian-transfer", "bayesian-identical"),
}

Cells = Mapping[str, Sequence[float]]


def summarise(cells: Cells) -> dict[str, Any]:
    """Return every comparison, by pending and training jobs."""
    engines: dict[tuple[str, str], dict[tuple[str, str], Sequence[float]]] = {}
    for key, regrets in cells.items():
        engine, family, name, pending, seed = key.split("/")
        engines.setdefault((engine, pending), {})[f"{family}/{name}", seed] = regrets
    summary: dict[str, Any] = {}
    for title, names in COMPARISONS.items():
        for pending in sorted({pending for _, pending in engines}):
            measured = {name: engines[name, pending] for name in names if (name, pending) in engines}
            # A comparison is nothing without the engine that it has beside the others.
            if names[-1] in measured or (names == _CHEAP and measured):
                compared = _compare(measured, CHOSEN_ON if title == _OTHERS else frozenset())
                summary.setdefault(title, {})[f"pending {pending}"] = compared
    return summary


def _compare(
    measured: Mapping[str, Mapping[tuple[str, str], Sequence[float]]], without: Container[str]
) -> dict[str, Any]:
    shared = set.intersection(*(set(one) for one in measured.values()))
    common = sorted(cell for cell in shared if cell[0] not in without)
    tables = sorted({table for table, _ in common})
    compared: dict[str, Any] = {"tables": len(tables), "cells": len(common)}
    if not common:
        return compared
    for position, budget in enumerate(BUDGETS):
        regrets = {name: [one[cell][position] for cell in common] for name, one in measured.items()}
        ranks = dict(
            zip(regrets, zip(*map(_ranks, zip(*regrets.values(), strict=True)), strict=True), strict=True)
        )
        compared[f"{budget} jobs"] = {
            name: _figures(name, regrets, ranks, [table for table, _ in common]) for name in regrets
        }
    return compared


def _figures(
    name: str,
    regrets: Mapping[str, Sequence[float]],
    ranks: Mapping[str, Sequence[float]],
    tables: Sequence[str],
) -> dict[str, Any]:
    """Return one engine's figures. Differences are pairs of mean and standard error."""
    figures: dict[str, Any] = {
        "regret": round(statistics.fmean(_by_table(regrets[name], tables).values()), 4),
        "median_regret": round(statistics.median(regrets[name]), 4),
        "rank": _mean(ranks[name], tables),
    }
    for other in (OURS, BASELINE):
        if name == other or other not in regrets:
            continue
        against = f"minus_{other}"
        figures[f"regret_{against}"] = _mean(_differences(regrets[name], regrets[other]), tables)
        figures[f"rank_{against}"] = _mean(_differences(ranks[name], ranks[other]), tables)
        if other == BASELINE:
            means = _by_table(_differences(regrets[name], regrets[other]), tables)
            figures["tables_not_better_than_random"] = sorted(
                table for table, difference in means.items() if difference >= 0
            )
    return figures


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equals share the mean of theirs."""
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2
        for value in values
    ]


def _differences(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(left, right, strict=True)]


def _by_table(values: Sequence[float], tables: Sequence[str]) -> dict[str, float]:
    """Return the mean over the seeds of each table."""
    grouped: dict[str, list[float]] = {}
    for table, value in zip(tables, values, strict=True):
        grouped.setdefault(table, []).append(value)
    return {table: statistics.fmean(group) for table, group in grouped.items()}


def _mean(values: Sequence[float], tables: Sequence[str]) -> list[float | None]:
    """Return the mean over tables, and its standard error; none of one table alone."""
    means = list(_by_table(values, tables).values())
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return [round(statistics.fmean(means), 4), None if error is None else round(error, 4)]
