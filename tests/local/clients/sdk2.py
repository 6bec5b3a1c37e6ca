"""What a user of the SageMaker Python SDK 2 does: tune a script, look, attach, warm start, stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sagemaker
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.tuner import (
    CategoricalParameter,
    ContinuousParameter,
    HyperparameterTuner,
    WarmStartConfig,
    WarmStartTypes,
)

ROLE = "arn:aws:iam::000000000000:role/training"
IMAGE = "000000000000.dkr.ecr.eu-west-1.amazonaws.com/any:1"

# With a default bucket the SDK has no need to ask STS, which it does at a fixed address.
session = sagemaker.Session(default_bucket="sdk-two")


def a_tuner(**changes: Any) -> HyperparameterTuner:
    hyperparameters = {"note": "two words", "depth": 3, **changes.pop("static", {})}
    estimator = Estimator(
        IMAGE,
        ROLE,
        instance_count=1,
        instance_type="ml.m5.large",
        entry_point="train.py",
        source_dir=sys.argv[2],
        hyperparameters=hyperparameters,
        sagemaker_session=session,
    )
    options: dict[str, Any] = {
        "objective_metric_name": "accuracy",
        "hyperparameter_ranges": {
            "rate": ContinuousParameter(0, 1),
            "kernel": CategoricalParameter(["tree", "linear"]),
        },
        "metric_definitions": [{"Name": "accuracy", "Regex": r"accuracy=([0-9.]+);"}],
        "strategy": "Random",
        "max_jobs": 4,
        "max_parallel_jobs": 2,
        # The SDK adds the minute to it: two jobs of one base name in a minute collide, also in AWS.
        "base_tuning_job_name": f"sdk2-{sys.argv[1][:4]}",
        **changes,
    }
    return HyperparameterTuner(estimator, **options)


def inputs() -> dict[str, TrainingInput]:
    rows = Path("rows.csv")
    rows.write_text("1\n2\n3\n")
    return {
        "train": TrainingInput(session.upload_data(str(rows), key_prefix="data"), content_type="text/csv")
    }


def tune() -> dict[str, Any]:
    tuner = a_tuner()
    tuner.fit(inputs(), wait=True)
    name = tuner.latest_tuning_job.name
    best = tuner.best_training_job()
    frame = tuner.analytics().dataframe()
    attached = HyperparameterTuner.attach(name, sagemaker_session=session)
    attached_frame = attached.analytics().dataframe()
    estimator = tuner.best_estimator()
    # Written to standard output; from CloudWatch Logs.
    session.logs_for_job(best, wait=True, poll=1)
    return {
        "name": name,
        "best": best,
        "status": tuner.describe()["HyperParameterTuningJobStatus"],
        "values": sorted(frame["FinalObjectiveValue"]),
        "statuses": sorted(set(frame["TrainingJobStatus"])),
        "columns": sorted(frame.columns),
        "best_of_frame": frame.sort_values("FinalObjectiveValue")["TrainingJobName"].iloc[-1],
        "attached_best": attached.best_training_job(),
        "attached_rows": len(attached_frame),
        "attached_ranges": sorted(attached.hyperparameter_ranges()),
        "attached_metric": attached.objective_metric_name,
        "model": estimator.model_data,
        "hyperparameters": estimator.hyperparameters(),
    }


def attach() -> dict[str, Any]:
    """Attach to a tuning job of an earlier process, and train on from its best."""
    attached = HyperparameterTuner.attach(sys.argv[4], sagemaker_session=session)
    attached.fit(inputs(), job_name="sdk2-again", wait=True)
    return {
        "first": sys.argv[4],
        "second": attached.latest_tuning_job.name,
        "best": attached.best_training_job(),
    }


def stop() -> dict[str, Any]:
    tuner = a_tuner(static={"seconds": 60}, max_jobs=50)
    tuner.fit(inputs(), wait=False)
    tuner.stop_tuning_job()
    tuner.wait()
    return {"status": tuner.describe()["HyperParameterTuningJobStatus"]}


def warm_start() -> dict[str, Any]:
    """From a parent, in both of the SDK's ways: its own configuration, and its short cut."""
    parent = sys.argv[4]
    config = WarmStartConfig(WarmStartTypes.TRANSFER_LEARNING, parents={parent})
    tuner = a_tuner(warm_start_config=config)
    tuner.fit(inputs(), wait=True)
    attached = HyperparameterTuner.attach(parent, sagemaker_session=session)
    twin = attached.identical_dataset_and_algorithm_tuner()
    # The SDK's short cut leaves them out, and AMT takes no objective without them.
    twin.metric_definitions = attached.metric_definitions
    twin.fit(inputs(), job_name="sdk2-twin", wait=True)
    described = twin.describe()
    return {
        "status": tuner.describe()["HyperParameterTuningJobStatus"],
        "config": tuner.describe()["WarmStartConfig"],
        "twin": described["WarmStartConfig"],
        "twin_status": described["HyperParameterTuningJobStatus"],
        "overall_best": described["OverallBestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"],
    }


actions = {
    "tune": tune,
    "attach": attach,
    "stop": stop,
    "warm_start": warm_start,
}
answer = actions[sys.argv[1]]()
Path(sys.argv[3]).write_text(json.dumps(answer, default=str))
