"""What a user of the SageMaker Python SDK 3 does: tune a script, describe, wait, take the best."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sagemaker.core.helper.session_helper import Session
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
from sagemaker.core.training.configs import Compute, InputData, SourceCode
from sagemaker.train.model_trainer import ModelTrainer
from sagemaker.train.tuner import HyperparameterTuner

IMAGE = "000000000000.dkr.ecr.eu-west-1.amazonaws.com/any:1"

# With a default bucket the SDK has no need to ask STS, which it does at a fixed address.
session = Session(default_bucket="sdk-three")


def a_tuner(**changes: Any) -> HyperparameterTuner:
    trainer = ModelTrainer(
        sagemaker_session=session,
        training_image=IMAGE,
        role=sys.argv[3],
        base_job_name="sdk3",
        source_code=SourceCode(source_dir=sys.argv[2], entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        hyperparameters={"note": "two words", "depth": 3, **changes.pop("static", {})},
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
        "base_tuning_job_name": f"sdk3-{sys.argv[1][:4]}",
        **changes,
    }
    return HyperparameterTuner(trainer, **options)


def inputs() -> list[InputData]:
    rows = Path("rows.csv")
    rows.write_text("1\n2\n3\n")
    uri = session.upload_data(str(rows), bucket="sdk-three", key_prefix="data")
    return [InputData(channel_name="train", data_source=uri)]


def tune() -> dict[str, Any]:
    tuner = a_tuner()
    tuner.tune(inputs(), wait=True)
    described = tuner.describe()
    best = tuner.best_training_job()
    frame = tuner.analytics().dataframe()
    return {
        "name": described.hyper_parameter_tuning_job_name,
        "status": described.hyper_parameter_tuning_job_status,
        "best": best,
        "value": described.best_training_job.final_hyper_parameter_tuning_job_objective_metric.value,
        "completed": described.training_job_status_counters.completed,
        "rows": len(frame),
        "hyperparameters": described.training_job_definition.static_hyper_parameters,
    }


def stop() -> dict[str, Any]:
    tuner = a_tuner(static={"seconds": 60}, max_jobs=50)
    tuner.tune(inputs(), wait=False)
    tuner.stop_tuning_job()
    tuner.wait()
    return {"status": tuner.describe().hyper_parameter_tuning_job_status}


answer = {"tune": tune, "stop": stop}[sys.argv[1]]()
Path(sys.argv[4]).write_text(json.dumps(answer, default=str))
