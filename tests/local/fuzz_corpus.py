"""What the fuzz (:mod:`tests.local.fuzz`) begins with: sound examples, and values that surprise parsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# fmt: off

ODD_TEXTS: Sequence[str] = (
    "", "\0", "a\nINFO forged", "\x1b[2J", "\u2028", "\u202e", "\ud800", "²", "٣", "9" * 5000, "a" * 70_000,
    "..", "../../etc/passwd", "%00", "%ff", "%2e%2e%2f", "é€😀", "[bold]", "' OR 1=1--", "{{ 1 }}", "NaN",
    "-1", "s3://", "s3://.incoming/x", "s3://bucket/../x", "file:///etc/passwd", "(a+)+$",
    "Credential=" * 3000, "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59",
)
ODD_VALUES: Sequence[Any] = (
    None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, 1e308, -1e308, float("nan"), [], {}, [[]], [None], {"": 1},
)
ODD_BYTES: Sequence[bytes] = (
    b"\0", b"\r\n", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 50_000, b"9" * 5000, b"%", b"&", b"=",
)
TOML_VALUES = (
    "1" * 5000, "0x" + "f" * 6000, "1e999", "nan", "[" * 5000, "2026-01-01", '"\\u0000"', "true", "{a={b=1}}",
)
TOML_LINES = (
    "port = 0", "clock-rate = 60.5", 'fork-server = ["json"]', 'account = "000000000000"',
    'log-level = "info"', "[images]", '"a:1" = "sh -c true"', "[faults]", "seed = 1",
    'rules = [{kind = "latency", seconds = 1}]',
)
FAULTS = {"seed": 1, "rules": [
    {"kind": "throttle", "rate": 5, "operations": ["Describe*"]},
    {"kind": "latency", "seconds": 0.1, "jitter": 0.1},
    {"kind": "error", "code": "InternalFailure", "every": 3}, {"kind": "drop", "when": "after", "first": 1},
    {"kind": "stale", "seconds": 3}, {"kind": "fail_training", "names": ["x*"], "probability": 0.5},
]}
S3_NAMES = (
    "prefix", "delimiter", "max-keys", "list-type", "continuation-token", "start-after", "uploads",
    "uploadId", "partNumber", "versionId", "tagging", "acl", "delete", "encoding-type", "location",
)
S3_HEADERS = (
    "Range", "x-amz-copy-source", "If-None-Match", "x-amz-tagging", "x-amz-decoded-content-length",
    "Content-Encoding", "x-amz-content-sha256", "Content-MD5", "If-Modified-Since", "x-amz-acl",
)
S3_BODIES = (
    b"", b"rows", b"<Delete><Object><Key>a</Key></Object></Delete>",
    b"4;chunk-signature=a\r\nrows\r\n0\r\n\r\n",
    b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--b--\r\n',
)
_GROUP = {"logGroupName": "/aws/sagemaker/TrainingJobs"}
_STREAM = "fuzz-1/algo-1-1"
LOGS_CALLS = (
    ("DescribeLogStreams",
     {**_GROUP, "orderBy": "LogStreamName", "limit": 5, "nextToken": "WyJuIiwxXQ==", "descending": True}),
    ("GetLogEvents",
     {**_GROUP, "logStreamName": _STREAM, "limit": 5, "startTime": 0, "nextToken": "f/1",
      "startFromHead": True}),
    ("FilterLogEvents", {**_GROUP, "filterPattern": "a -b", "logStreamNames": [_STREAM], "limit": 2}),
    ("DescribeLogGroups", {"logGroupNamePrefix": "/aws"}),
)
QUERY_FIELDS = {
    "Version": "2011-06-15", "RoleName": "fuzz", "RoleSessionName": "fuzz", "AssumeRolePolicyDocument": "{}",
    "RoleArn": "arn:aws:iam::000000000000:role/fuzz",
}
QUERY_ACTIONS = ("GetCallerIdentity", "AssumeRole", "GetRole", "ListRoles", "CreateRole", "Odd")
_PAGE = {"MaxResults": 3, "SortBy": "Name", "SortOrder": "Ascending", "NextToken": "WyJhIiwxLDJd"}
_TUNING_JOB = {"HyperParameterTuningJobName": "fuzz-1"}
_TRAINING_JOB = {"TrainingJobName": "fuzz-1"}
_ARN = {"ResourceArn": "arn:aws:sagemaker:us-east-1:000000000000:hyper-parameter-tuning-job/fuzz-1"}
SAGEMAKER_CALLS: Sequence[tuple[str, dict[str, Any]]] = (
    ("DescribeHyperParameterTuningJob", _TUNING_JOB), ("StopHyperParameterTuningJob", _TUNING_JOB),
    ("DescribeTrainingJob", _TRAINING_JOB), ("StopTrainingJob", _TRAINING_JOB),
    ("ListHyperParameterTuningJobs", {**_PAGE, "CreationTimeAfter": 0, "NameContains": "f"}),
    ("ListTrainingJobs", {**_PAGE, "StatusEquals": "Completed"}),
    ("ListTrainingJobsForHyperParameterTuningJob", {**_PAGE, **_TUNING_JOB}),
    ("DeleteHyperParameterTuningJob", {"HyperParameterTuningJobName": "fuzz-2"}),
    ("AddTags", {**_ARN, "Tags": [{"Key": "k", "Value": "v"}]}), ("ListTags", {**_ARN, "MaxResults": 50}),
    ("DeleteTags", {**_ARN, "TagKeys": ["k"]}),
)
CHANNEL = {"ChannelName": "train", "DataSource": {"S3DataSource": {
    "S3DataType": "S3Prefix", "S3Uri": "s3://data/train/", "S3DataDistributionType": "FullyReplicated"}}}
SHARED = ("AlgorithmSpecification", "RoleArn", "OutputDataConfig", "ResourceConfig", "StoppingCondition")

# fmt: on
