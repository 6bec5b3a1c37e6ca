"""The tuning job of the last good run of the same DAG, to warm-start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_amt import _compat
from airflow_amt.exceptions import AmtResourceNotFoundError
from airflow_amt.tuning import Owner, TuningJobStatus, TuningProgress, derive_job_name
from airflow_amt.tuning.naming import DELIVERED_TAG, TAG_PREFIX, owner_digest, tag_value

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook

#: Jobs whose tags are read, the newest first, before the search is given up.
_MOST_CANDIDATES = 25


class PreviousRun:
    """Finds the tuning job that the same task created in the last successful run of its DAG.

    A run with a logical date asks Airflow for the successful run before it, and that run's XCom for the job.
    A run without one (started by an asset event, or by hand without a date) has no "before" in Airflow: there
    the newest job of this task whose result was delivered and whose run succeeded is taken from AWS.

    :param hook: gives the hook.
    :param ti: the running task instance.
    :param owner: the same, as an owner.
    :param prefix: start of the jobs' names.
    :param name_key: XCom key of a job's name.
    :param patiently: makes a call until it succeeds, bearing transient errors.
    :param log: where it is told what was found.
    """

    def __init__(
        self,
        *,
        hook: Callable[[], AmtHook],
        ti: Any,
        owner: Owner,
        prefix: str | None,
        name_key: str,
        patiently: Callable[[Callable[[], Any]], Any],
        log: Any,
    ) -> None:
        self._hook = hook
        self._ti = ti
        self._owner = owner
        self._prefix = prefix
        self._name_key = name_key
        self._call = patiently
        self._log = log

    def tuning_job(self, *, has_logical_date: bool) -> dict[str, Any] | None:
        """Return the description of the job to start from; ``None`` if there is none."""
        names = self._from_airflow() if has_logical_date else self._from_aws()
        for name in names:
            description = self._describe(name)
            if description is None:
                self._log.info("Tuning job %s of an earlier run does not exist any more.", name)
                continue
            progress = TuningProgress.from_describe(description)
            if progress.is_terminal and progress.status != TuningJobStatus.DELETING.value:
                return description
        return None

    def _describe(self, name: str) -> dict[str, Any] | None:
        try:
            description: dict[str, Any] = self._call(lambda: self._hook().describe_tuning_job(name))
        except AmtResourceNotFoundError:
            return None
        return description

    def _tags(self, arn: str) -> dict[str, str]:
        tags: dict[str, str] | None = self._call(lambda: self._hook().tags(arn))
        return tags or {}

    def _from_airflow(self) -> Iterator[str]:
        run = self._ti.get_previous_dagrun(state="success")
        if run is None:
            return
        name = self._ti.xcom_pull(
            task_ids=self._owner.task_id,
            key=self._name_key,
            run_id=run.run_id,
            map_indexes=None if self._owner.map_index < 0 else self._owner.map_index,
        )
        if isinstance(name, str):
            yield name
        else:
            self._log.info("DAG run %s has no tuning job of this task.", run.run_id)

    def _from_aws(self) -> Iterator[str]:
        readable = derive_job_name(self._owner, prefix=self._prefix).removesuffix(owner_digest(self._owner))
        filters = {"NameContains": readable.rstrip("-")} if readable else {}
        summaries = self._call(
            lambda: list(
                islice(
                    self._hook().list_tuning_jobs(
                        StatusEquals=TuningJobStatus.COMPLETED.value,
                        SortBy="CreationTime",
                        SortOrder="Descending",
                        **filters,
                    ),
                    _MOST_CANDIDATES,
                )
            )
        )
        for summary in summaries:
            progress = TuningProgress.from_list_summary(summary)
            if self._is_a_good_run(self._tags(progress.arn)):
                yield progress.name

    def _is_a_good_run(self, tags: Mapping[str, str]) -> bool:
        run_key = f"{TAG_PREFIX}run-id"
        run_id = tags.get(run_key)
        if DELIVERED_TAG not in tags or run_id is None or run_id == self._owner.tags()[run_key]:
            return False
        if not replace(self._owner, run_id=run_id).owns({**tags, run_key: tag_value(run_id)}):
            return False
        if not _compat.run_succeeded(self._owner.dag_id, run_id):
            self._log.info("DAG run %s is no success: its tuning job is passed over.", run_id)
            return False
        return True
