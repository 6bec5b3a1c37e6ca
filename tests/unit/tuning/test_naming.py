from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.service_model import service_model, validate
from airflow_amt.tuning import Owner, derive_job_name
from airflow_amt.tuning.naming import (
    MAX_GENERATION,
    from_tag_list,
    generation_of,
    owner_digest,
    ownership_tags,
    request_digest,
    tag_value,
    to_tag_list,
)

OWNER = Owner(dag_id="retrain", run_id="manual__2026-03-29T00:30:00+00:00", task_id="tune.churn_model")


def test_names_are_stable_readable_and_distinct() -> None:
    name = derive_job_name(OWNER)
    assert name == derive_job_name(OWNER)
    assert name.startswith("tune-churn-model-")
    others = {
        derive_job_name(OWNER, generation=2),
        derive_job_name(Owner(dag_id="retrain", run_id=OWNER.run_id, task_id=OWNER.task_id, map_index=0)),
        derive_job_name(Owner(dag_id="retrain", run_id="other", task_id=OWNER.task_id)),
        derive_job_name(OWNER, prefix="mine"),
    }
    assert len(others | {name}) == 5


@given(
    st.builds(Owner, dag_id=st.text(), run_id=st.text(), task_id=st.text(), map_index=st.integers(-1, 999)),
    st.none() | st.text(),
)
def test_any_owner_gets_a_name_and_tags_that_aws_accepts(owner: Owner, prefix: str | None) -> None:
    generation = 1 if len(owner.dag_id) % 2 else MAX_GENERATION
    name = derive_job_name(owner, prefix=prefix, generation=generation)
    assert generation_of(name, owner) == generation
    assert owner_digest(owner) in name
    pattern = service_model().shape_for("HyperParameterTuningJobName").metadata["pattern"]
    assert re.fullmatch(pattern, name)
    assert len(name) <= 32
    tags = to_tag_list(owner.tags())
    assert (
        validate(
            "AddTags",
            {
                "ResourceArn": "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/x",
                "Tags": tags,
            },
        )
        == []
    )
    assert owner.owns(from_tag_list([*tags, {"Key": "team", "Value": "ml"}]))


def test_a_name_of_another_owner_has_no_generation() -> None:
    other = Owner(dag_id="retrain", run_id="other", task_id=OWNER.task_id)
    assert generation_of(derive_job_name(other), OWNER) is None
    assert generation_of(derive_job_name(OWNER) + "-0", OWNER) is None
    assert generation_of("nightly", OWNER) is None


def test_the_digest_of_a_request_leaves_name_and_tags_out() -> None:
    request = {"HyperParameterTuningJobName": "a", "Tags": [], "Autotune": {"Mode": "Enabled"}}
    assert request_digest(request) == request_digest({"Autotune": {"Mode": "Enabled"}})
    assert request_digest(request) != request_digest({})


def test_somebody_elses_job_is_not_owned() -> None:
    other = Owner(dag_id="retrain", run_id=OWNER.run_id, task_id="tune.other")
    assert not OWNER.owns(other.tags())
    assert not OWNER.owns({})
    assert (
        ownership_tags({**OWNER.tags(), "team": "ml", "airflow-amt:stopped-by": "operator"}) == OWNER.tags()
    )


def test_long_tag_values_stay_distinct() -> None:
    one, other = tag_value("x" * 300 + "a"), tag_value("x" * 300 + "b")
    assert len(one) == len(other) == 256
    assert one != other
