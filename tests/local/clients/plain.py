"""What a user of plain boto3 does: upload, tune a script, look at log and model, stop."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import boto3

s3, sagemaker, logs = (boto3.client(name) for name in ("s3", "sagemaker", "logs"))
BUCKET = "plain-boto"


def request(name: str, most: int, **static: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/data"}
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": most, "MaxParallelTrainingJobs": 2},
            "ParameterRanges": {
                "ContinuousParameterRanges": [{"Name": "rate", "MinValue": "0", "MaxValue": "1"}],
                "CategoricalParameterRanges": [{"Name": "kernel", "Values": ["tree", "linear"]}],
            },
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": f"s3://{BUCKET}/code/sourcedir.tar.gz",
                "note": "two words",
                **static,
            },
            "AlgorithmSpecification": {
                "TrainingImage": "any:1",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "accuracy", "Regex": r"accuracy=([0-9.]+);"}],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/training",
            "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        },
    }


def until_over(name: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = sagemaker.describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=name
        )
        if found["HyperParameterTuningJobStatus"] not in ("InProgress", "Stopping"):
            return found
        time.sleep(0.2)


s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
s3.put_object(Bucket=BUCKET, Key="data/rows.csv", Body=b"1\n2\n3\n")
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w:gz") as opened:
    opened.add(sys.argv[1], arcname="")
archive.seek(0)
s3.upload_fileobj(archive, BUCKET, "code/sourcedir.tar.gz")

sagemaker.create_hyper_parameter_tuning_job(**request("plain", 3))
ended = until_over("plain")
best = ended["BestTrainingJob"]["TrainingJobName"]
described = sagemaker.describe_training_job(TrainingJobName=best)
key = described["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{BUCKET}/")
model = io.BytesIO()
s3.download_fileobj(BUCKET, key, model)
model.seek(0)
with tarfile.open(fileobj=model) as opened:
    files = opened.getnames()
found = logs.filter_log_events(
    logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{best}/", filterPattern="accuracy"
)
sagemaker.create_hyper_parameter_tuning_job(**request("plain-stop", 100, seconds="60"))
sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="plain-stop")
answer = {
    "status": ended["HyperParameterTuningJobStatus"],
    "counters": ended["TrainingJobStatusCounters"],
    "model": files,
    "log": [one["message"] for one in found["events"]],
    "stopped": until_over("plain-stop")["HyperParameterTuningJobStatus"],
    "account": boto3.client("sts").get_caller_identity()["Account"],
}
Path(sys.argv[2]).write_text(json.dumps(answer, default=str))
