"""The example DAG that is scheduled on "a tuning job ended", as it is."""

from __future__ import annotations

from example_dags.amt_on_tuning_job_ended import on_tuning_job_ended

dag = on_tuning_job_ended
