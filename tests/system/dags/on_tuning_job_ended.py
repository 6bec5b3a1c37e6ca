"""The example DAG that is scheduled on "a tuning job ended", as it is."""

from __future__ import annotations

from importlib import import_module

# Not an import statement: to mypy the examples are files, not a package.
dag = import_module("example_dags.amt_on_tuning_job_ended").on_tuning_job_ended
