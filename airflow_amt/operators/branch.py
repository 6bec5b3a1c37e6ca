"""The operator that chooses what follows a tuning job by why the job ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_amt import tuning, watch
from airflow_amt._compat import BranchMixIn
from airflow_amt._tasks import CONNECTION_FIELDS, TuningJobTask, require_name
from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.links.tuning import AmtTuningJobLink

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt.tuning.branching import Branch

#: Seconds before a read of AWS that failed is made again, the first time.
_PAUSE_SECONDS = 5.0

#: Other than None, which a task that left no outcome leaves.
_NOT_GIVEN: Any = object()


class AmtOutcomeBranchOperator(TuningJobTask, BaseOperator, BranchMixIn):
    """Go on with some of the tasks that follow, and skip the others, by why a tuning job ended.

    How it works: the keys of ``branches`` are the reasons of the outcome and groups of them. The first that
    fits, in this order, decides: ``stopped_by_provider:<who>``; the reason; ``no_model`` (no training job
    has an objective); with ``good_enough`` set, ``good_enough`` or ``not_good_enough``; ``succeeded`` (the
    job came to its own end), ``stopped`` (by whomever) or ``failed``. If none has a branch, the default
    does. Keys are checked while the DAG is parsed. Skipping is Airflow's own: a task that skips others leaves
    no return value, the ids that it goes on with are in XCom ``skipmixin_key``.

    A tuning job that did not succeed fails the task that ran it, unless its policy says otherwise; the
    outcome is in XCom all the same. To branch then, give this task ``trigger_rule="all_done"``, and tasks
    where branches join again ``"none_failed_min_one_success"``.

    What it does not do: it does not wait. A tuning job that is not over is an error.

    :param outcome: the outcome of an upstream task: ``tune.output["outcome"]``, or a template that renders
        to it (templated). Either this or ``tuning_job_name``.
    :param tuning_job_name: a tuning job, however it was made; its outcome is read from AWS and pushed to
        XCom as ``outcome`` (templated).
    :param branches: a task or task group id, or several, for each reason or group.
    :param default: what to go on with if no key has a branch; ``None`` skips all that follow.
    :param good_enough: objective from which on a model is good enough: at least that if the objective is
        maximised, at most that if it is minimised (templated).
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :raises AmtRequestError: branches are not well formed, or not exactly one of ``outcome`` and
        ``tuning_job_name`` is given.
    :raises AmtFieldError: there is no outcome (and no branch ``no_outcome``), or the job is not over.
    """

    # What BaseBranchOperator sets. That class itself is no base here: Airflow 3.3 gives a mapped task of an
    # operator with a base that has no __init__ of its own None for inlets, and then fails on it.
    inherits_from_skipmixin = True

    template_fields: Sequence[str] = ("outcome", "tuning_job_name", "good_enough", *CONNECTION_FIELDS)
    template_fields_renderers: ClassVar[dict[str, str]] = {"outcome": "json"}
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        branches: Mapping[str, Branch],
        outcome: Any = _NOT_GIVEN,
        tuning_job_name: str | None = None,
        default: Branch | None = None,
        good_enough: float | str | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        tuning.branching.check_branches(branches, default, good_enough)
        if (outcome is _NOT_GIVEN) is (tuning_job_name is None):
            both = tuning_job_name is not None
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "tuning_job_name",
                        tuning_job_name,
                        "outcome is given already" if both else "neither this nor outcome is given",
                        "give one of the two",
                    )
                ]
            )
        self.branches = branches
        self.outcome = None if outcome is _NOT_GIVEN else outcome
        self.tuning_job_name = tuning_job_name
        self.default = default
        self.good_enough = good_enough
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config

    def execute(self, context: Context) -> list[str]:
        """Choose, skip the others, and return the ids of the tasks to go on with."""
        outcome = self.outcome if self.tuning_job_name is None else self._read(context, self.tuning_job_name)
        chosen = tuning.branch_on_outcome(outcome, self.branches, self.default, good_enough=self.good_enough)
        self.log.info(
            "The outcome fits %s: going on with %s.",
            ", ".join(tuning.branching.outcome_keys(outcome, good_enough=self.good_enough)),
            ", ".join(chosen) or "nothing; all that follows is skipped",
        )
        self.do_branch(context, chosen)
        return chosen

    def _read(self, context: Context, given: str) -> dict[str, Any]:
        name = require_name("tuning_job_name", given)
        progress = tuning.TuningProgress.from_describe(
            watch.polling.patiently(
                lambda: self.hook.describe_tuning_job(name), interval_seconds=_PAUSE_SECONDS, log=self.log
            )
        )
        if not progress.is_terminal:
            raise AmtFieldError(
                "tuning_job_name",
                name,
                f"the tuning job is {progress.status}, and has no outcome before it is over",
                "wait for its end first, with AmtTuningJobSensor",
            )
        return self.read_outcome(context, name, interval_seconds=_PAUSE_SECONDS).to_dict()
