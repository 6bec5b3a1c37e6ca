"""The operator that writes all training jobs of a tuning job to a file, the best one first."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_amt import tuning, watch
from airflow_amt._tasks import CONNECTION_FIELDS, NAME_KEY, TuningJobTask, require_name
from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.links.tuning import AmtTuningJobLink

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath

    from airflow_amt.tuning import TrainingJobResult

#: Version of the dict that the operator returns.
EXPORT_VERSION = 1

#: Columns before those of the hyperparameters.
COLUMNS = (
    "rank",
    "name",
    "status",
    "objective",
    "created_at",
    "started_at",
    "ended_at",
    "training_seconds",
    "definition",
    "failure_reason",
)

#: A hyperparameter may be called "rank" or "name": its column never is.
HYPERPARAMETER_PREFIX = "hyperparameter_"

#: First characters by which spreadsheets take a cell for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

#: Seconds before a read of AWS that failed is made again, the first time.
_PAUSE_SECONDS = 5.0


class AmtExportTrainingJobsOperator(TuningJobTask, BaseOperator):
    """Write one row for each training job of a tuning job to a CSV file, the best one first.

    How it works: the file goes through Airflow's object storage, to a local folder or to any store that a
    provider has a file system for (S3 needs ``apache-airflow-providers-amazon[s3fs]``). Columns are ``rank``
    (from 1 on; empty without an objective), ``name``, ``status``, ``objective``, ``created_at``,
    ``started_at``, ``ended_at`` (ISO 8601 in UTC), ``training_seconds``, ``definition`` (where there are
    several), ``failure_reason`` and one ``hyperparameter_<name>`` for each tuned hyperparameter. It is
    written whole: a local file is replaced in one step, an object is put in one upload, so a reader sees
    the old content or the new one. UTF-8, lines end with CR LF (RFC 4180).

    A cell that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-``, ``@`` or a
    control character, and is no number) gets an apostrophe in front: failure reasons are whatever a training
    container printed. ``escape_formulas=False`` leaves cells as they are, for files that only programs read.

    Returns ``{"version", "tuning_job_name", "path", "rows", "ranked", "statuses"}``: the number of rows, how
    many of them have a rank, and how many training jobs there are of each status.

    :param tuning_job_name: the tuning job; one that still runs is written as it is now (templated).
    :param destination: where to write: a URI such as ``s3://bucket/{{ dag.dag_id }}/{{ run_id }}.csv`` or
        ``file:///data/jobs.csv`` (templated).
    :param destination_conn_id: connection of the object storage; default: the store's own (templated).
    :param overwrite: whether a file that is there is replaced. It has to be for a task that is retried.
    :param escape_formulas: see above.
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :raises AmtRequestError: name or destination are not well formed; nothing was sent.
    :raises AmtResourceNotFoundError: there is no such tuning job.
    :raises FileExistsError: the destination exists, and ``overwrite`` is off.
    """

    template_fields: Sequence[str] = (
        "tuning_job_name",
        "destination",
        "destination_conn_id",
        *CONNECTION_FIELDS,
    )
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        tuning_job_name: str,
        destination: str,
        destination_conn_id: str | None = None,
        overwrite: bool = True,
        escape_formulas: bool = True,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tuning_job_name = tuning_job_name
        self.destination = destination
        self.destination_conn_id = destination_conn_id
        self.overwrite = overwrite
        self.escape_formulas = escape_formulas
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config

    def execute(self, context: Context) -> dict[str, Any]:
        """Read all training jobs and write them."""
        name, path = self._checked()
        if not self.overwrite and path.exists():
            raise FileExistsError(f"{path} exists, and overwrite is off. Nothing was written.")
        context["ti"].xcom_push(key=NAME_KEY, value=name)
        progress, summaries = watch.polling.patiently(
            lambda: (
                tuning.TuningProgress.from_describe(self.hook.describe_tuning_job(name)),
                list(self.hook.list_training_jobs(name)),
            ),
            interval_seconds=_PAUSE_SECONDS,
            log=self.log,
        )
        self.publish_link(context, progress.arn)
        if progress.objective_type is None:
            self.log.warning(
                "Tuning job %s: AWS gave no direction of the objective: nothing is ranked.", name
            )
        results = [tuning.TrainingJobResult.from_summary(one) for one in summaries]
        definitions = {one.get("TrainingJobName"): one.get("TrainingJobDefinitionName") for one in summaries}
        ranked = tuning.rank_training_jobs(results, progress.objective_type)
        write_whole(path, to_csv(ranked, definitions, escape_formulas=self.escape_formulas).encode())
        self.log.info("Tuning job %s: %d training jobs written to %s", name, len(ranked), path)
        return {
            "version": EXPORT_VERSION,
            "tuning_job_name": name,
            "path": str(path),
            "rows": len(ranked),
            "ranked": sum(rank is not None for rank, _ in ranked),
            "statuses": dict(sorted(Counter(result.status for result in results).items())),
        }

    def _checked(self) -> tuple[str, ObjectStoragePath]:
        from airflow.sdk import ObjectStoragePath

        problems: list[AmtFieldError] = []
        name = ""
        path: ObjectStoragePath | None = None
        try:
            name = require_name("tuning_job_name", self.tuning_job_name)
        except AmtRequestError as error:
            problems += error.problems
        given: Any = self.destination
        if not isinstance(given, str) or not given.strip() or given.endswith("/"):
            problems.append(
                AmtFieldError(
                    "destination", given, "the URI of a file", "give for example s3://bucket/folder/jobs.csv"
                )
            )
        else:
            try:
                path = ObjectStoragePath(given.strip(), conn_id=self.destination_conn_id or None)
                # Asked for now, so that a store without a file system is told before any call.
                path.fs  # noqa: B018 - built on access
            except (ImportError, ValueError) as error:
                problems.append(
                    AmtFieldError(
                        "destination",
                        given,
                        f"a store that Airflow has a file system for ({error})",
                        "install the provider's extra, for S3 apache-airflow-providers-amazon[s3fs], or "
                        "correct the URI",
                    )
                )
        if problems or path is None:
            raise AmtRequestError(problems)
        return name, path


def to_csv(
    ranked: Iterable[tuple[int | None, TrainingJobResult]],
    definitions: Mapping[str | None, str | None],
    *,
    escape_formulas: bool = True,
) -> str:
    """Return training jobs as CSV, in the order given; columns as in :class:`AmtExportTrainingJobsOperator`.

    :param ranked: pairs of rank and training job.
    :param definitions: the training job definition's name by that of the training job.
    :param escape_formulas: put an apostrophe before what a spreadsheet would take for a formula.
    """
    rows = list(ranked)
    hyperparameters = sorted({key for _, job in rows for key in job.tuned_hyperparameters})
    text = io.StringIO()
    writer = csv.writer(text)

    def write(cells: Iterable[Any]) -> None:
        writer.writerow([_cell(cell) if escape_formulas else cell for cell in cells])

    write([*COLUMNS, *(HYPERPARAMETER_PREFIX + key for key in hyperparameters)])
    for rank, job in rows:
        write(
            [
                rank,
                job.name,
                job.status,
                job.objective,
                tuning.history.iso(job.created_at),
                tuning.history.iso(job.started_at),
                tuning.history.iso(job.ended_at),
                job.training_seconds,
                definitions.get(job.name),
                job.failure_reason,
                *(job.tuned_hyperparameters.get(key) for key in hyperparameters),
            ]
        )
    return text.getvalue()


def write_whole(path: ObjectStoragePath, content: bytes) -> None:
    """Write a file such that a reader never sees half of it.

    Stores of objects show an object when its upload is complete. A local file is written beside its place
    and moved there, its folders made if they are missing.
    """
    if path.protocol not in ("file", "local", ""):
        path.write_bytes(content)
        return
    place = Path(path.path)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        raise


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a negative number, as most logarithmic or centred ranges have them
