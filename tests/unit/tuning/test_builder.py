"""A request in typed Python is the dict that one would have written by hand, or an error that says why."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.service_model import check_create_request, coerce, validate
from airflow_amt.tuning import (
    AutoParameter,
    CategoricalRange,
    Checkpoint,
    CompletionCriteria,
    ContinuousRange,
    Hyperband,
    InputChannel,
    IntegerRange,
    MetricDefinition,
    Objective,
    ObjectiveType,
    Resources,
    Scaling,
    Strategy,
    TrainingJobDefinition,
    TuningJobRequest,
    Vpc,
    WarmStart,
    WarmStartType,
)
from airflow_amt.tuning.request import MAX_RESOURCE_KEYS
from tests.unit.requests import create_request, set_path

CREATE = "CreateHyperParameterTuningJob"
CONFIG = "HyperParameterTuningJobConfig"
ROLE = "arn:aws:iam::000000000000:role/sagemaker"
IMAGE = "000000000000.dkr.ecr.eu-west-1.amazonaws.com/churn:1"


def definition(**changes: Any) -> TrainingJobDefinition:
    values: dict[str, Any] = {
        "image": IMAGE,
        "role": ROLE,
        "output_path": "s3://models/churn",
        "resources": Resources("ml.m5.large", volume_size_gb=10),
        "static_hyperparameters": {"epochs": 5},
        "metric_definitions": [MetricDefinition("accuracy", "accuracy=([0-9.]+)")],
        "max_runtime": timedelta(hours=1),
        **changes,
    }
    return TrainingJobDefinition(**values)


def tuning_job(**changes: Any) -> TuningJobRequest:
    values: dict[str, Any] = {
        "name": "churn-model",
        "strategy": Strategy.RANDOM,
        "objective": Objective("accuracy", ObjectiveType.MAXIMIZE),
        "ranges": [
            ContinuousRange("lr", 0.001, 0.1),
            IntegerRange("depth", 1, 9),
            CategoricalRange("booster", ["tree", "linear"]),
        ],
        "criteria": CompletionCriteria(max_training_jobs=4),
        "max_parallel_training_jobs": 2,
        "training": definition(),
        **changes,
    }
    return TuningJobRequest(**values)


def fields_of(error: pytest.ExceptionInfo[AmtRequestError]) -> list[str]:
    return [problem.field for problem in error.value.problems]


def test_it_is_the_dict_written_by_hand() -> None:
    assert tuning_job().to_request() == create_request()
    assert check_create_request(tuning_job().to_request()) == []


def everything() -> TuningJobRequest:
    return tuning_job(
        strategy="Bayesian",
        criteria=CompletionCriteria(
            max_training_jobs=9,
            max_runtime=timedelta(hours=2),
            target_objective_value=0.9,
            max_training_jobs_not_improving=4,
            complete_on_convergence=True,
        ),
        warm_start=WarmStart(["one", "two"], WarmStartType.TRANSFER_LEARNING),
        early_stopping=True,
        random_seed=7,
        tags={"team": "churn"},
        training=definition(
            resources=[Resources("ml.m5.large"), Resources("ml.m5.xlarge", 2, 20)],
            volume_kms_key_id="key-1",
            inputs=[
                InputChannel(
                    name="train",
                    s3_uri="s3://data/train",
                    distribution="ShardedByS3Key",
                    content_type="text/csv",
                    compression="Gzip",
                    record_wrapper="None",
                    input_mode="Pipe",
                    shuffle_seed=3,
                ),
                {
                    "ChannelName": "lustre",
                    "DataSource": {
                        "FileSystemDataSource": {
                            "FileSystemId": "fs-0123456789abcdef0",
                            "FileSystemAccessMode": "ro",
                            "FileSystemType": "FSxLustre",
                            "DirectoryPath": "/data",
                        }
                    },
                },
            ],
            max_wait=timedelta(hours=2),
            max_pending=7200,
            spot=True,
            checkpoint=Checkpoint("s3://models/checkpoints", "/opt/ml/checkpoints"),
            retries=3,
            environment={"LEVEL": 3},
            vpc=Vpc(security_group_ids=["sg-1"], subnets=["subnet-1"]),
            network_isolation=True,
            encrypt_traffic=True,
            output_kms_key_id="key-2",
            output_compression="NONE",
        ),
    )


def test_every_field_has_its_place() -> None:
    request = everything().to_request()
    assert check_create_request(request) == []
    training = request["TrainingJobDefinition"]
    assert training["HyperParameterTuningResourceConfig"] == {
        "InstanceConfigs": [
            {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
            {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 20},
        ],
        "AllocationStrategy": "Prioritized",
        "VolumeKmsKeyId": "key-1",
    }
    assert training["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 3600,
        "MaxWaitTimeInSeconds": 7200,
        "MaxPendingTimeInSeconds": 7200,
    }
    assert training["Environment"] == {"LEVEL": "3"}
    assert training["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert request["Tags"] == [{"Key": "team", "Value": "churn"}]
    assert request["WarmStartConfig"] == {
        "ParentHyperParameterTuningJobs": [
            {"HyperParameterTuningJobName": "one"},
            {"HyperParameterTuningJobName": "two"},
        ],
        "WarmStartType": "TransferLearning",
    }
    assert request[CONFIG]["TrainingJobEarlyStoppingType"] == "Auto"
    assert request[CONFIG]["TuningJobCompletionCriteria"]["TargetObjectiveMetricValue"] == 0.9


def several() -> TuningJobRequest:
    own = {
        "objective": Objective("accuracy", "Maximize"),
        "ranges": [CategoricalRange("booster", ["tree", "linear"])],
    }
    return tuning_job(
        objective=None,
        ranges=(),
        training=[
            definition(name="a", **own),
            definition(name="b", algorithm_name="mine", image=None, **own),
        ],
    )


def autotuned() -> TuningJobRequest:
    return tuning_job(autotune=True, ranges=[AutoParameter("lr", 0.1)])


def hyperband() -> TuningJobRequest:
    return tuning_job(strategy=Strategy.HYPERBAND, hyperband=Hyperband(min_resource=1, max_resource=27))


@pytest.mark.parametrize("make", [tuning_job, everything, several, autotuned, hyperband])
def test_there_and_back(make: Any) -> None:
    request = make().to_request()
    assert check_create_request(request) == []
    assert TuningJobRequest.from_request(request).to_request() == request
    json.dumps(request)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-7, "1e-07"),
        (5e-324, "5e-324"),
        (10**30, "1" + "0" * 30),
        (Decimal("0.1000000000000000000001"), "0.1000000000000000000001"),
        (Fraction(1, 4), "0.25"),
        ("1E-3", "1E-3"),
    ],
)
def test_numbers_keep_all_their_digits(value: Any, text: str) -> None:
    assert ContinuousRange("x", value, "9").to_request()["MinValue"] == text


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    made = ContinuousRange("x", numpy.float64(0.1), numpy.int64(3)).to_request()
    assert (made["MinValue"], made["MaxValue"]) == ("0.1", "3")


def test_templates_stand_for_anything() -> None:
    request = tuning_job(
        strategy="{{ params.strategy }}",
        max_parallel_training_jobs="{{ params.parallel }}",
        random_seed="{{ params.seed }}",
        ranges=[ContinuousRange("lr", "{{ params.low }}", 0.1, Scaling.LOGARITHMIC)],
        hyperband=Hyperband(max_resource=27),
        training=definition(
            role="{{ params.role }}",
            max_runtime="{{ params.seconds }}",
            resources=Resources("{{ params.instance }}", "{{ params.count }}"),
            spot="{{ params.spot }}",
            static_hyperparameters={"epochs": "{{ params.epochs }}"},
        ),
    ).to_request()
    assert request[CONFIG]["ResourceLimits"]["MaxParallelTrainingJobs"] == "{{ params.parallel }}"
    assert request["TrainingJobDefinition"]["EnableManagedSpotTraining"] == "{{ params.spot }}"
    rendered = json.loads(
        json.dumps(request)
        .replace("{{ params.strategy }}", "Hyperband")
        .replace("{{ params.role }}", ROLE)
        .replace("{{ params.instance }}", "ml.m5.large")
        .replace("{{ params.spot }}", "False")
        .replace("{{ params.low }}", "0.01")
        .replace("{{ params.parallel }}", "2")
        .replace("{{ params.seed }}", "7")
        .replace("{{ params.seconds }}", "60")
        .replace("{{ params.count }}", "1")
        .replace("{{ params.epochs }}", "30")
    )
    assert check_create_request(coerce(CREATE, rendered)) == []


def test_templates_where_no_rule_looks_leave_the_rules_in_force() -> None:
    with pytest.raises(AmtRequestError) as caught:
        tuning_job(
            training=definition(role="{{ params.role }}", output_path="s3://{{ params.bucket }}/out"),
            early_stopping=True,
            strategy="Hyperband",
        )
    assert fields_of(caught) == [f"{CONFIG}.TrainingJobEarlyStoppingType"]


def test_a_template_that_a_rule_reads_leaves_what_does_not_depend_on_it() -> None:
    with pytest.raises(AmtRequestError) as caught:
        tuning_job(
            strategy="{{ params.strategy }}",
            hyperband=Hyperband(max_resource=27),
            ranges=[IntegerRange("depth", 9, 1), ContinuousRange("lr", "{{ params.low }}", 0)],
        )
    assert fields_of(caught) == [f"{CONFIG}.ParameterRanges.IntegerParameterRanges[0].MinValue"]


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(AmtRequestError) as caught:
        tuning_job(
            ranges=[IntegerRange("depth", 9, 1), ContinuousRange("lr", True, 1), "lr"],
            random_seed="seven",
            tags={"aws:mine": "x"},
            training=definition(
                image=None,
                max_runtime=timedelta(milliseconds=1),
                spot=True,
                static_hyperparameters={"bias": True},
                inputs=[{"ChannelName": "raw"}, 7],
                vpc=["subnet-1"],
            ),
        )
    ranges = f"{CONFIG}.ParameterRanges"
    training = "TrainingJobDefinition"
    assert sorted(fields_of(caught)) == sorted(
        [
            f"{ranges}.ContinuousParameterRanges[0].MinValue",
            f"{ranges}[2]",
            f"{CONFIG}.RandomSeed",
            f"{training}.InputDataConfig[1]",
            f"{training}.StaticHyperParameters.bias",
            f"{training}.StoppingCondition.MaxRuntimeInSeconds",
            f"{training}.VpcConfig",
            f"{ranges}.IntegerParameterRanges[0].MinValue",
            f"{training}.AlgorithmSpecification.TrainingImage",
            f"{training}.StoppingCondition.MaxWaitTimeInSeconds",
            "Tags[0].Key",
        ]
    )
    assert all(problem.limit and problem.fix for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        (f"{CONFIG}.Strategy", {"strategy": None}),
        ("TrainingJobDefinition", {"training": None}),
        ("TrainingJobDefinition", {"training": create_request()["TrainingJobDefinition"]}),
        ("TrainingJobDefinition.RoleArn", {"training": definition(role=None)}),
        ("TrainingJobDefinition.ResourceConfig", {"training": definition(resources=None)}),
        (
            "TrainingJobDefinition.ResourceConfig.VolumeKmsKeyId",
            {"training": definition(resources={"InstanceType": "ml.m5.large"}, volume_kms_key_id="k")},
        ),
        ("criteria", {"criteria": {"max_training_jobs": 4}}),
        (f"{CONFIG}.ParameterRanges", {"ranges": "lr"}),
        (f"{CONFIG}.TrainingJobEarlyStoppingType", {"early_stopping": "maybe"}),
        (f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs", {"max_parallel_training_jobs": 1.5}),
        ("Tags", {"tags": ["team"]}),
        (
            "WarmStartConfig.ParentHyperParameterTuningJobs",
            {"warm_start": WarmStart("one", "TransferLearning")},
        ),
    ],
)
def test_what_is_not_of_its_type_is_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(AmtRequestError) as caught:
        tuning_job(**changes)
    assert field in fields_of(caught)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("Strategi", "Random", "Strategi"),
        (f"{CONFIG}.Novelty", {}, f"{CONFIG}.Novelty"),
        (
            "TrainingJobDefinition.VpcConfig",
            {"Subnets": ["s"]},
            "TrainingJobDefinition.VpcConfig.SecurityGroupIds",
        ),
        ("TrainingJobDefinition.ResourceConfig", None, "TrainingJobDefinition.ResourceConfig"),
        ("TrainingJobDefinitions", [], "TrainingJobDefinitions"),
        ("Tags", [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}], "Tags[1]"),
        ("Autotune", {"Mode": "Disabled"}, "Autotune.Mode"),
        (f"{CONFIG}.ParameterRanges.Others", [], f"{CONFIG}.ParameterRanges.Others"),
        (
            f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs",
            0,
            f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs",
        ),
        (
            "WarmStartConfig",
            {"ParentHyperParameterTuningJobs": [{"Name": "one"}], "WarmStartType": "TransferLearning"},
            "WarmStartConfig.ParentHyperParameterTuningJobs[0]",
        ),
    ],
)
def test_what_the_classes_do_not_have_is_not_dropped(path: str, value: Any, field: str) -> None:
    request = create_request()
    set_path(request, path, value)
    with pytest.raises(AmtRequestError) as caught:
        TuningJobRequest.from_request(request)
    assert fields_of(caught) == [field]


def test_resources_that_the_class_does_not_have_are_kept_as_they_are() -> None:
    groups = {
        "InstanceGroups": [{"InstanceType": "ml.m5.large", "InstanceCount": 2, "InstanceGroupName": "a"}]
    }
    request = create_request(TrainingJobDefinition__ResourceConfig=groups)
    again = TuningJobRequest.from_request(request)
    assert isinstance(again.training, TrainingJobDefinition)
    assert again.training.resources == groups
    assert again.to_request() == request


# --- any request ------------------------------------------------------------------------------------

_names = st.text("abcdefgh", min_size=1, max_size=8)
_bounds = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, places=4),
)
_scalings = st.none() | st.sampled_from(Scaling)
_ranges = st.lists(
    st.one_of(
        st.builds(IntegerRange, _names, st.integers(max_value=9), st.integers(min_value=9), _scalings),
        st.builds(ContinuousRange, _names, _bounds, _bounds, _scalings),
        st.builds(CategoricalRange, _names, st.lists(_names | st.integers(), min_size=1, max_size=4)),
        st.builds(AutoParameter, _names, _bounds),
    ),
    max_size=4,
)
_objectives = st.builds(Objective, st.sampled_from(["accuracy", "loss"]), st.sampled_from(ObjectiveType))
_counts = st.none() | st.integers(1, 100)
_durations = st.none() | st.integers(1, 10**7) | st.integers(1, 10**7).map(lambda one: timedelta(seconds=one))
_definitions = st.builds(
    TrainingJobDefinition,
    image=st.just(IMAGE),
    algorithm_name=st.sampled_from([None, None, None, "mine"]),
    role=st.just(ROLE),
    output_path=st.just("s3://models/out"),
    resources=st.one_of(
        st.builds(Resources, st.just("ml.m5.large"), st.integers(1, 4), st.integers(1, 100)),
        st.lists(st.builds(Resources, st.just("ml.m5.large")), min_size=1, max_size=3),
    ),
    inputs=st.lists(st.builds(InputChannel, name=_names, s3_uri=st.just("s3://data/train")), max_size=2),
    static_hyperparameters=st.none()
    | st.dictionaries(_names | st.sampled_from(MAX_RESOURCE_KEYS), _bounds, max_size=3),
    metric_definitions=st.lists(
        st.builds(
            MetricDefinition,
            st.sampled_from(["accuracy", "loss"]),
            st.sampled_from(["a=([0-9.]+)", "b=([0-9.]+)", "a=[0-9.]+", "a=("]),
        ),
        max_size=2,
    ),
    max_runtime=_durations,
    max_wait=_durations,
    spot=st.none() | st.booleans(),
    checkpoint=st.none() | st.builds(Checkpoint, st.just("s3://models/checkpoints")),
    retries=st.none() | st.integers(1, 30),
    environment=st.none() | st.dictionaries(_names, _bounds, max_size=2),
    vpc=st.none() | st.builds(Vpc, security_group_ids=st.just(["sg-1"]), subnets=st.just(["subnet-1"])),
    name=st.none() | _names,
    objective=st.none() | _objectives,
    ranges=st.none() | _ranges,
)
_arguments = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(Strategy),
        "training": st.one_of(_definitions, _definitions, st.lists(_definitions, max_size=3)),
        "objective": _objectives,
        "ranges": _ranges,
    },
    optional={
        "max_parallel_training_jobs": st.integers(1, 10),
        "criteria": st.builds(
            CompletionCriteria,
            max_training_jobs=_counts,
            max_runtime=st.none() | st.integers(120, 10**6).map(lambda one: timedelta(seconds=one)),
            target_objective_value=st.none() | st.floats(-1e6, 1e6),
            complete_on_convergence=st.none() | st.booleans(),
        ),
        "warm_start": st.builds(
            WarmStart, st.lists(_names, min_size=1, max_size=3), st.sampled_from(WarmStartType)
        ),
        "early_stopping": st.booleans(),
        "random_seed": st.integers(0, 2**31 - 1),
        "hyperband": st.builds(Hyperband, _counts, _counts),
        "autotune": st.booleans(),
        "tags": st.dictionaries(_names, _names, max_size=2),
    },
)


@given(arguments=_arguments)
def test_what_can_be_made_breaks_no_documented_rule(arguments: dict[str, Any]) -> None:
    """And what breaks one is refused when it is made, for the reasons that the dict would be refused for."""
    made: TuningJobRequest | None
    refused: tuple[AmtFieldError, ...] = ()
    try:
        made = TuningJobRequest(**arguments)
    except AmtRequestError as error:
        refused = error.problems
        made = None
    if made is None:
        assert refused
        assert all(problem.field and problem.limit and problem.fix for problem in refused)
        return
    request = made.to_request()
    request["HyperParameterTuningJobName"] = "churn-model"
    # The service model may still know better, as about the fields that a definition in a list needs.
    named = {problem.path for problem in validate(CREATE, request)}
    assert [problem for problem in check_create_request(request) if problem.field not in named] == []
    assert TuningJobRequest.from_request(request).to_request() == request
    assert coerce(CREATE, request) == request
