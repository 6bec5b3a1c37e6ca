"""Raw calls of the SageMaker protocol, and good requests."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

from airflow_amt.local import RunningServer
from tests.local.conformance.shapes import MISSING
from tests.local.support import wait_until

#: Every operation that is offered.
OPERATIONS = (
    "CreateHyperParameterTuningJob",
    "DescribeHyperParameterTuningJob",
    "ListHyperParameterTuningJobs",
    "ListTrainingJobsForHyperParameterTuningJob",
    "StopHyperParameterTuningJob",
    "DeleteHyperParameterTuningJob",
    "CreateTrainingJob",
    "DescribeTrainingJob",
    "ListTrainingJobs",
    "StopTrainingJob",
    "AddTags",
    "ListTags",
    "DeleteTags",
)
GOING_ON = ("InProgress", "Stopping")


class RefusedError(Exception):
    """An answer other than 200.

    :param status: HTTP status.
    :param code: AWS's error code.
    :param message: its message.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


class Wire:
    """A connection to the server for one region.

    :param server: the server.
    :param region: the region that requests are signed for; each has jobs of its own.
    """

    def __init__(self, server: RunningServer, region: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=30)
        self._server = server
        self.region = region

    def __call__(self, operation: str, **params: Any) -> dict[str, Any]:
        """Make a call; return the JSON of the answer.

        :raises RefusedError: any other status than 200.
        """
        return self.send(operation, params)

    def send(self, operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Make a call with parameters that need not be well-formed."""
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": f"SageMaker.{operation}",
        }
        body = json.dumps(params).encode()
        signed = self._server.signed("POST", "/", body, headers, self.region)
        self._connection.request("POST", "/", body=body, headers=signed)
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read() or b"{}")
        if response.status != 200:
            raise RefusedError(response.status, answer["__type"], answer["message"])
        return answer

    def refusal(self, operation: str, params: Mapping[str, Any]) -> RefusedError:
        """Make a call that must be refused; return the refusal."""
        try:
            answer = self.send(operation, params)
        except RefusedError as refusal:
            return refusal
        raise AssertionError(f"{operation} was not refused: {answer}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # --- what several tests do -----------------------------------------------------------------

    def tune(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Create a tuning job, wait for its end and return its description."""
        self.send("CreateHyperParameterTuningJob", request)
        return self.tuning_job_over(request["HyperParameterTuningJobName"])

    def tuning_job_over(self, name: str) -> dict[str, Any]:
        """Wait for the end of a tuning job and return its description."""
        return self._over(
            lambda: self("DescribeHyperParameterTuningJob", HyperParameterTuningJobName=name),
            "HyperParameterTuningJobStatus",
            name,
        )

    def training_job_over(self, name: str) -> dict[str, Any]:
        """Wait for the end of a training job and return its description."""
        return self._over(
            lambda: self("DescribeTrainingJob", TrainingJobName=name), "TrainingJobStatus", name
        )

    def _over(self, describe: Callable[[], dict[str, Any]], status: str, name: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            description = describe()
            return description if description[status] not in GOING_ON else None

        over: dict[str, Any] = wait_until(ended, f"the end of {name}")
        return over

    def training_jobs(self, name: str, **options: Any) -> list[dict[str, Any]]:
        """Return the training jobs of a tuning job, over all pages."""
        return [
            summary
            for page in self.pages(
                "ListTrainingJobsForHyperParameterTuningJob",
                HyperParameterTuningJobName=name,
                **{"MaxResults": 100, **options},
            )
            for summary in page["TrainingJobSummaries"]
        ]

    def training_job_starts(self, name: str) -> dict[str, Any]:
        """Wait until a tuning job has a training job, and return its summary."""
        started: list[dict[str, Any]] = wait_until(
            lambda: self.training_jobs(name), f"a training job of {name}"
        )
        return started[0]

    def pages(self, operation: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Go through the pages of a listing."""
        tokens: set[str] = set()
        while True:
            page = self.send(operation, params)
            yield page
            token = page.get("NextToken")
            if token is None:
                return
            assert token not in tokens, "the listing goes round in circles"
            tokens.add(token)
            params["NextToken"] = token


@contextmanager
def connected(server: RunningServer, region: str) -> Iterator[Wire]:
    """Give a connection that is closed at the end."""
    wire = Wire(server, region)
    try:
        yield wire
    finally:
        wire.close()


# --- good requests --------------------------------------------------------------------------------------


CONFIG = "HyperParameterTuningJobConfig"
DEFINITION = "TrainingJobDefinition"
X = {"Name": "x", "MinValue": "0", "MaxValue": "1", "ScalingType": "Linear"}
OBJECTIVE = {"Type": "Maximize", "MetricName": "objective"}
#: The last epochs of a training job that never ends by itself.
ENDLESS = "9999"


def definition(image: str = "play:1", /, **changes: Any) -> dict[str, Any]:
    """Return a training job definition."""
    return with_changes(
        {
            "StaticHyperParameters": {"sequence": "0.5"},
            "AlgorithmSpecification": {
                "TrainingImage": image,
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "objective", "Regex": r"objective=(\S+)"}],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/training",
            "OutputDataConfig": {"S3OutputPath": "s3://models/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
        },
        changes,
    )


def tuning_request(name: str, image: str = "play:1", /, **changes: Any) -> dict[str, Any]:
    """Return a good CreateHyperParameterTuningJob request: two training jobs at random.

    :param changes: see :func:`with_changes`.
    """
    request = {
        "HyperParameterTuningJobName": name,
        CONFIG: {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": OBJECTIVE,
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 2, "MaxParallelTrainingJobs": 1},
            "ParameterRanges": {"ContinuousParameterRanges": [X]},
            "RandomSeed": 1,
        },
        DEFINITION: definition(image),
    }
    return with_changes(request, changes)


def training_request(name: str, image: str = "echo:1", /, **changes: Any) -> dict[str, Any]:
    """Return a good CreateTrainingJob request."""
    request = {
        "TrainingJobName": name,
        "HyperParameters": {"x": "0.5"},
        **{key: value for key, value in definition(image).items() if key != "StaticHyperParameters"},
    }
    return with_changes(request, changes)


def with_changes(request: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with members at dotted paths (``__`` for the dots) set or, if MISSING, left out.

    Numbers are list positions; what a path leads through is made where it is missing.
    """
    changed = deepcopy(request)
    for path, value in changes.items():
        *parents, last = path.split("__")
        holder: Any = changed
        for key in parents:
            holder = holder[int(key)] if key.isdigit() else holder.setdefault(key, {})
        if value is MISSING:
            holder.pop(last, None)
        else:
            holder[int(last) if last.isdigit() else last] = deepcopy(value)
    return changed


def several(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a request one of several definitions (a, b, ...), each with changes of its own."""
    return {
        DEFINITION: MISSING,
        f"{CONFIG}__HyperParameterTuningJobObjective": MISSING,
        f"{CONFIG}__ParameterRanges": MISSING,
        "TrainingJobDefinitions": [
            definition(
                **{
                    "DefinitionName": chr(ord("a") + position),
                    "TuningObjective": OBJECTIVE,
                    "HyperParameterRanges": {"ContinuousParameterRanges": [X]},
                    **own,
                }
            )
            for position, own in enumerate(changes)
        ],
    }


def warm_start(*parents: str, kind: str = "TransferLearning") -> dict[str, Any]:
    """Return what makes a request start from parents."""
    return {
        "WarmStartConfig": {
            "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": name} for name in parents],
            "WarmStartType": kind,
        }
    }
