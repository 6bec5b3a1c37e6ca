"""Which combination of hyperparameters to try next.

A search is a narrow thing: :meth:`Search.propose` gets what was tried and what is being tried, and answers
with one more combination, as strings, or ``None`` when a finite space has no untried one left. Random, Grid
and Hyperband need the standard library only; Bayesian search needs NumPy and SciPy. Which training jobs are
stopped early is another matter: :mod:`airflow_amt.local.early_stopping`.
"""

from __future__ import annotations

import importlib.util

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local.search.space import (
    CategoricalParameter,
    Combination,
    ContinuousParameter,
    IntegerParameter,
    Parameter,
    Space,
)
from airflow_amt.local.search.strategies import Evaluation, GridSearch, Prior, RandomSearch, Search
from airflow_amt.tuning.criteria import ObjectiveType
from airflow_amt.tuning.request import MAX_TRAINING_JOBS

__all__ = [
    "MAX_TRAINING_JOBS",
    "STRATEGIES",
    "CategoricalParameter",
    "Combination",
    "ContinuousParameter",
    "Evaluation",
    "GridSearch",
    "IntegerParameter",
    "Parameter",
    "Prior",
    "RandomSearch",
    "Search",
    "Space",
    "bayesian_available",
    "create_search",
]

STRATEGIES = ("Bayesian", "Random", "Grid", "Hyperband")


def bayesian_available() -> bool:
    """Whether the libraries behind Bayesian search are installed (the ``local`` extra)."""
    return all(importlib.util.find_spec(name) is not None for name in ("numpy", "scipy"))


def create_search(
    strategy: str, space: Space, objective_type: ObjectiveType, seed: int, *, prior: Prior | None = None
) -> Search:
    """Return the search behind an API strategy.

    :param strategy: one of :data:`STRATEGIES`.
    :param space: the ranges; for Grid, categorical ones alone.
    :param objective_type: which direction of the objective is better.
    :param seed: any whole number; the same one gives the same search.
    :param prior: what the parents of a warm start have tried (Bayesian and Random; AMT offers no other).
    :raises AmtFieldError: the strategy is none, its library is not installed, or Grid meets a range that is
        not categorical.
    """
    field = "HyperParameterTuningJobConfig.Strategy"
    if strategy == "Random":
        return RandomSearch(space, seed, prior)
    if strategy == "Hyperband":
        # Its combinations are random; what it saves, it saves by stopping training jobs.
        return RandomSearch(space, seed)
    if strategy == "Grid":
        for parameter in space.parameters:
            if not isinstance(parameter, CategoricalParameter):
                raise AmtFieldError(
                    field,
                    strategy,
                    f"Grid takes categorical ranges alone, and {parameter.name} has another one",
                    "list its values in CategoricalParameterRanges, or choose another strategy",
                )
        return GridSearch(space)
    if strategy == "Bayesian":
        if not bayesian_available():
            raise AmtFieldError(
                field,
                strategy,
                "Bayesian search in the embedded AMT needs NumPy and SciPy, which are not installed",
                "install the extra: pip install 'airflow-provider-amt[local]', or set Strategy to Random",
            )
        from airflow_amt.local.search.bayesian import BayesianSearch

        return BayesianSearch(space, objective_type, seed, prior)
    raise AmtFieldError(field, strategy, f"one of {', '.join(STRATEGIES)}", "choose one of these")
