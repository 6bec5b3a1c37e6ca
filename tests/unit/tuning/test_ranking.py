"""Training jobs in the order of their worth."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning import ObjectiveType, TrainingJobResult, rank_training_jobs

START = datetime(2026, 1, 1, tzinfo=UTC)


def job(name: str, objective: float | None, minute: int | None = 0) -> TrainingJobResult:
    moment = None if minute is None else START + timedelta(minutes=minute)
    return TrainingJobResult(
        name=name, status="Completed", objective=objective, created_at=moment, ended_at=moment
    )


def test_the_direction_decides_and_those_without_an_objective_follow() -> None:
    jobs = [job("a", 0.1), job("b", None, 5), job("c", 0.3), job("d", None, 4), job("e", 0.2)]
    order = [(rank, one.name) for rank, one in rank_training_jobs(jobs, ObjectiveType.MAXIMIZE)]
    assert order == [(1, "c"), (2, "e"), (3, "a"), (None, "d"), (None, "b")]
    order = [(rank, one.name) for rank, one in rank_training_jobs(jobs, ObjectiveType.MINIMIZE)]
    assert order == [(1, "a"), (2, "e"), (3, "c"), (None, "d"), (None, "b")]


def test_of_equals_the_first_to_end_is_better() -> None:
    jobs = [job("running", 0.5, None), job("late", 0.5, 9), job("early", 0.5, 3)]
    ranked = rank_training_jobs(jobs, ObjectiveType.MINIMIZE)
    assert [one.name for _, one in ranked] == ["early", "late", "running"]


def test_without_a_direction_nothing_is_ranked() -> None:
    assert [rank for rank, _ in rank_training_jobs([job("a", 1.0), job("b", None)], None)] == [None, None]


@given(
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=30),
    st.sampled_from(ObjectiveType),
)
def test_nothing_is_lost_and_no_worse_one_comes_first(
    objectives: list[float | None], direction: ObjectiveType
) -> None:
    jobs = [job(str(number), objective, number) for number, objective in enumerate(objectives)]
    ranked = rank_training_jobs(jobs, direction)
    assert sorted(one.name for _, one in ranked) == sorted(one.name for one in jobs)
    values = [one.objective for rank, one in ranked if rank is not None]
    assert [rank for rank, _ in ranked if rank is not None] == list(range(1, len(values) + 1))
    for better, worse in itertools.pairwise(values):
        assert better is not None
        assert worse is not None
        assert not direction.better(worse, better)
