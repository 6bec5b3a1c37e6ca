"""Where an SLA is kept: what is refused in words that help, and what counts when an edit broke it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_amt import _compat
from airflow_amt.exceptions import AmtRequestError
from airflow_amt.hooks import sla as hook
from airflow_amt.hooks.sla import SlaReader, SlaSource
from airflow_amt.tuning.policies import parse_sla

GOOD = '{"rules": [{"type": "minimum_jobs", "count": 3}]}'
OTHER = '{"rules": [{"type": "minimum_jobs", "count": 4}]}'
BROKEN = '{"rules": [{"type": "minimum_jobs",}'
LOG = logging.getLogger(__name__)


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ("varible:nightly", "policies", '"variable:<key>" or "connection:<id>"'),
        ("variable:", "policies", "the key of a Variable"),
        (BROKEN, "policies", "line 1 column 36"),
        (50, "policies", "an SLA, a policy, a rule, a list of them"),
        ({"type": "minimum_jobs", "cuont": 3}, "policies.rules[0].cuont", "Fix: write count."),
        ({"type": "stalled", "duration": 60}, "policies.rules[0].duration", "Fix: write duration_seconds."),
        (
            {"type": "stalled", "duration_seconds": 60, "warnat": 0.8},
            "policies.rules[0].warnat",
            "Fix: write warn_at.",
        ),
        ({"type": "any", "of": [], "asks_at": 0.8}, "policies.rules[0].asks_at", "Fix: write ask_at."),
        ({"type": "stalled", "x": 60}, "policies.rules[0].x", "Fix: leave it out."),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_to_write(given: Any, field: str, said: str) -> None:
    with pytest.raises(AmtRequestError, match=r"^Nothing was done") as caught:
        SlaSource.parse(given)
    assert caught.value.problems[0].field == field
    assert said in str(caught.value.problems[0])


def test_what_is_not_where_it_should_be_is_named_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "read_variable", lambda key: None)
    with pytest.raises(AmtRequestError) as caught:
        SlaSource.parse("variable:nightly").load()
    (problem,) = caught.value.problems
    assert problem.field == "Variable 'nightly'"
    assert parse_sla(problem.fix.removeprefix("put it there, as ")).titles == ("stalled",)


def test_the_last_good_one_counts_on_when_an_edit_broke_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [GOOD]
    monkeypatch.setattr(_compat, "read_variable", lambda key: kept[0])
    monkeypatch.setattr(hook, "_KEPT_SECONDS", 0.0)
    reader = SlaReader(SlaSource.parse("variable:nightly"), log=LOG)
    assert reader() == parse_sla(GOOD)
    kept[0] = BROKEN
    assert reader() == parse_sla(GOOD)
    assert "the last one counts on" in caplog.text
    kept[0] = OTHER
    assert reader() == parse_sla(OTHER)
    # Another process that begins with a broken one knows which counted last.
    kept[0] = BROKEN
    with pytest.raises(AmtRequestError):
        SlaReader(SlaSource.parse("variable:nightly"), log=LOG)()
    assert SlaReader(SlaSource.parse("variable:nightly"), log=LOG, last=parse_sla(GOOD))() == parse_sla(GOOD)
