"""The three lists: filters, order, pages and their tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from tests.local.conformance.wire import (
    CONFIG,
    DEFINITION,
    Wire,
    connected,
    training_request,
    tuning_request,
)
from tests.local.support import wait_until

pytestmark = pytest.mark.local

TUNING_JOBS = "ListHyperParameterTuningJobs"
TUNED_JOBS = "ListTrainingJobsForHyperParameterTuningJob"
TRAINING_JOBS = "ListTrainingJobs"
#: The list in the answer, and the members of its elements that name them and say their status.
MEMBERS = {
    TUNING_JOBS: (
        "HyperParameterTuningJobSummaries",
        "HyperParameterTuningJobName",
        "HyperParameterTuningJobStatus",
    ),
    TUNED_JOBS: ("TrainingJobSummaries", "TrainingJobName", "TrainingJobStatus"),
    TRAINING_JOBS: ("TrainingJobSummaries", "TrainingJobName", "TrainingJobStatus"),
}


@pytest.fixture(scope="module")
def lists(server: RunningServer) -> Iterator[Wire]:
    """A region with a dozen tuning jobs; ``mixed`` has training jobs of three statuses."""
    with connected(server, "lists-1") as wire:
        static = f"{DEFINITION}__StaticHyperParameters"
        limits = f"{CONFIG}__ResourceLimits"
        mixed = {
            static: {"sequence": "0.5 fail 0.25 none 0.75 hang"},
            limits: {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 1},
        }
        wire.send("CreateHyperParameterTuningJob", tuning_request("mixed", **mixed))
        # Not in the order of their names.
        for number in (7, 3, 9, 1, 8, 2, 6, 4, 0, 5):
            fails = {static: {"sequence": "fail"}} if number % 3 == 0 else {}
            one = {f"{limits}__MaxNumberOfTrainingJobs": 1}
            wire.tune(tuning_request(f"Job-{number}", **fails, **one))
        wire.send("CreateHyperParameterTuningJob", tuning_request("open", **{static: {"sequence": "hang"}}))
        for number in (2, 1):
            wire.send("CreateTrainingJob", training_request(f"alone-{number}"))
            wire.training_job_over(f"alone-{number}")
        wire.training_job_starts("open")
        wait_until(lambda: len(wire.training_jobs("mixed")) == 6, "the sixth training job of mixed")
        yield wire
        for name in ("open", "mixed"):
            wire("StopHyperParameterTuningJob", HyperParameterTuningJobName=name)
            wire.tuning_job_over(name)


def params_of(operation: str) -> dict[str, Any]:
    return {"HyperParameterTuningJobName": "mixed"} if operation == TUNED_JOBS else {}


def listed(wire: Wire, operation: str, **params: Any) -> list[dict[str, Any]]:
    member = MEMBERS[operation][0]
    pages = wire.pages(operation, **{"MaxResults": 100, **params_of(operation), **params})
    return [summary for page in pages for summary in page[member]]


def names(wire: Wire, operation: str, **params: Any) -> list[str]:
    return [summary[MEMBERS[operation][1]] for summary in listed(wire, operation, **params)]


# --- order -----------------------------------------------------------------------------------------


ORDERS = [
    (operation, sort_by, order)
    for operation, fields in (
        (TUNING_JOBS, ("Name", "Status", "CreationTime")),
        (TUNED_JOBS, ("Name", "Status", "CreationTime", "FinalObjectiveMetricValue")),
        (TRAINING_JOBS, ("Name", "Status", "CreationTime")),
    )
    for sort_by in fields
    for order in ("Ascending", "Descending")
]


def sort_value(operation: str, summary: dict[str, Any], sort_by: str) -> Any:
    _, name, status = MEMBERS[operation]
    if sort_by == "FinalObjectiveMetricValue":
        return summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
    return summary[{"Name": name, "Status": status, "CreationTime": "CreationTime"}[sort_by]]


@pytest.mark.parametrize(("operation", "sort_by", "order"), ORDERS)
def test_order(lists: Wire, operation: str, sort_by: str, order: str) -> None:
    everything = listed(lists, operation)
    ordered = listed(lists, operation, SortBy=sort_by, SortOrder=order)

    values = [sort_value(operation, summary, sort_by) for summary in ordered]
    assert values == sorted(values, reverse=order == "Descending")
    assert len(set(map(str, values))) > 1
    if sort_by == "FinalObjectiveMetricValue":
        # "any training jobs that did not return an objective metric are not listed"
        everything = [one for one in everything if "FinalHyperParameterTuningJobObjectiveMetric" in one]
        assert sorted(values) == [0.25, 0.5, 0.75]
    member = MEMBERS[operation][1]
    assert sorted(one[member] for one in ordered) == sorted(one[member] for one in everything)


@pytest.mark.parametrize(
    ("operation", "sort_by"), [(TUNING_JOBS, "Name"), (TUNED_JOBS, "Name"), (TRAINING_JOBS, "CreationTime")]
)
def test_the_order_that_is_meant_without_one(lists: Wire, operation: str, sort_by: str) -> None:
    assert names(lists, operation) == names(lists, operation, SortBy=sort_by, SortOrder="Ascending")


# --- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (operation, status)
        for operation in MEMBERS
        for status in ("Completed", "Failed", "InProgress", "Stopped", "Stopping", "Deleting")
    ],
)
def test_by_status(lists: Wire, operation: str, status: str) -> None:
    member, name, kept = MEMBERS[operation]
    wanted = [one[name] for one in listed(lists, operation) if one[kept] == status]

    assert names(lists, operation, StatusEquals=status) == wanted
    pages = list(lists.pages(operation, **{**params_of(operation), "StatusEquals": status, "MaxResults": 2}))
    assert [one[name] for page in pages for one in page[member]] == wanted
    assert all(len(page[member]) <= 2 for page in pages)
    assert bool(wanted) == (status in ("Completed", "Failed", "InProgress"))


@pytest.mark.parametrize("operation", [TUNING_JOBS, TRAINING_JOBS])
@pytest.mark.parametrize("part", ["job-1", "JOB-1", "-", "open", "no-such-part"])
def test_by_a_part_of_the_name(lists: Wire, operation: str, part: str) -> None:
    wanted = [name for name in names(lists, operation) if part.lower() in name.lower()]

    assert names(lists, operation, NameContains=part) == wanted
    assert bool(wanted) == (part != "no-such-part")


@pytest.mark.parametrize("operation", [TUNING_JOBS, TRAINING_JOBS])
@pytest.mark.parametrize("field", ["CreationTime", "LastModifiedTime"])
def test_by_time(lists: Wire, operation: str, field: str) -> None:
    member = MEMBERS[operation][1]
    over = [one for one in listed(lists, operation) if one[MEMBERS[operation][2]] != "InProgress"]
    times = sorted(one[field] for one in over)
    middle = times[len(times) // 2]

    after = names(lists, operation, **{f"{field}After": middle - 0.002})
    before = names(lists, operation, **{f"{field}Before": middle - 0.002})

    assert {one[member] for one in over if one[field] >= middle} <= set(after)
    assert {one[member] for one in over if one[field] < middle} == set(before) & {one[member] for one in over}
    assert not set(after) & set(before)
    assert names(lists, operation, **{f"{field}After": 4_000_000_000}) == []
    assert names(lists, operation, **{f"{field}Before": 1_000_000_000}) == []
    between = {f"{field}After": times[0] - 0.002, f"{field}Before": middle + 0.002}
    assert {one[member] for one in over if one[field] <= middle} <= set(names(lists, operation, **between))


def test_filters_add_up(lists: Wire) -> None:
    everything = listed(lists, TUNING_JOBS)
    times = [one["CreationTime"] for one in everything if one["HyperParameterTuningJobName"] == "Job-1"]
    found = names(
        lists, TUNING_JOBS, NameContains="job", StatusEquals="Failed", CreationTimeAfter=times[0] - 0.002
    )
    assert found == ["Job-0", "Job-6"]  # of 0, 3, 6 and 9, which failed, those created after 1


@pytest.mark.parametrize(
    "filters",
    [
        {"WarmPoolStatusEquals": "Available"},
        {
            "TrainingPlanArnEquals": (
                "arn:aws:sagemaker:us-east-1:000000000000:training-plan/there-is-no-such-plan"
            )
        },
    ],
)
def test_by_what_no_training_job_has(lists: Wire, filters: dict[str, str]) -> None:
    assert names(lists, TRAINING_JOBS, **filters) == []


def test_training_jobs_are_listed_with_and_without_tuning_jobs(lists: Wire) -> None:
    everything = names(lists, TRAINING_JOBS)
    tuned = {
        one["TrainingJobName"]
        for tuning_job in names(lists, TUNING_JOBS)
        for one in lists.training_jobs(tuning_job)
    }
    assert set(everything) == tuned | {"alone-1", "alone-2"}
    assert len(everything) == len(set(everything))


# --- pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", list(MEMBERS))
@pytest.mark.parametrize("size", [1, 3, 5, 100])
@pytest.mark.parametrize("order", ["Ascending", "Descending"])
def test_pages_are_the_whole_list(lists: Wire, operation: str, size: int, order: str) -> None:
    member, name, _ = MEMBERS[operation]
    for sort_by in ("Name", "Status"):  # a status is no unique key
        options = {**params_of(operation), "SortBy": sort_by, "SortOrder": order}
        whole = lists.send(operation, {**options, "MaxResults": 100})[member]
        pages = list(lists.pages(operation, **options, MaxResults=size))

        assert [one[name] for page in pages for one in page[member]] == [one[name] for one in whole]
        assert [len(page[member]) for page in pages[:-1]] == [size] * (len(pages) - 1)
        assert 0 < len(pages[-1][member]) <= size


@pytest.mark.parametrize("operation", [TUNING_JOBS, TRAINING_JOBS])
def test_a_page_has_ten_elements_without_a_size(lists: Wire, operation: str) -> None:
    page = lists.send(operation, {})
    assert len(page[MEMBERS[operation][0]]) == 10
    assert page["NextToken"]


def test_pages_stay_exact_while_jobs_are_added(wire: Wire) -> None:
    one = {f"{CONFIG}__ResourceLimits__MaxNumberOfTrainingJobs": 1}
    for name in ("b", "d", "f"):
        wire.tune(tuning_request(name, **one))
    first = wire(TUNING_JOBS, MaxResults=2)
    for name in ("a", "c", "e"):
        wire.tune(tuning_request(name, **one))

    rest = [
        summary["HyperParameterTuningJobName"]
        for page in wire.pages(TUNING_JOBS, MaxResults=2, NextToken=first["NextToken"])
        for summary in page["HyperParameterTuningJobSummaries"]
    ]

    seen = [summary["HyperParameterTuningJobName"] for summary in first["HyperParameterTuningJobSummaries"]]
    assert seen == ["b", "d"]
    assert rest == ["e", "f"]


# --- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", list(MEMBERS))
@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a b",
        "é",
        "=" * 8,
        "A" * 8192,
        base64.b64encode(b"{}").decode(),
        base64.b64encode(json.dumps(["a", "b", 1]).encode()).decode(),
        base64.b64encode(json.dumps([None, None, None]).encode()).decode(),
    ],
)
def test_a_token_that_was_never_given_out(lists: Wire, operation: str, token: str) -> None:
    refusal = lists.refusal(operation, {**params_of(operation), "NextToken": token})

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert "NextToken" in refusal.message


@pytest.mark.parametrize("operation", list(MEMBERS))
def test_a_token_of_another_query(lists: Wire, operation: str) -> None:
    """Every other filter, order or list: the rest of it would not be what the caller thinks."""
    params = params_of(operation)
    token = lists.send(operation, {**params, "MaxResults": 1})["NextToken"]
    others: list[tuple[str, dict[str, Any]]] = [
        (operation, {**params, "StatusEquals": "Completed"}),
        (operation, {**params, "SortBy": "Status"}),
        (operation, {**params, "SortOrder": "Descending"}),
        *((other, params_of(other)) for other in MEMBERS if other != operation),
    ]
    if operation == TUNED_JOBS:
        others.append((operation, {"HyperParameterTuningJobName": "open"}))
    else:
        others.append((operation, {"NameContains": "job"}))
    for other, query in others:
        refusal = lists.refusal(other, {**query, "NextToken": token})
        assert (refusal.status, refusal.code) == (400, "ValidationException")
        assert "NextToken" in refusal.message
    # The size of the pages may change on the way.
    assert lists.send(operation, {**params, "MaxResults": 5, "NextToken": token})


def test_a_token_does_not_show_what_it_holds(lists: Wire) -> None:
    token = lists.send(TUNING_JOBS, {"MaxResults": 1})["NextToken"]

    assert "Job-0" not in token
    assert "mixed" not in token
