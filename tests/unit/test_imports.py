"""What importing a part of the package pulls in, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_LIST_MODULES = (
    "import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
)


def imported_by(module: str) -> set[str]:
    """Top-level modules present after ``import module`` in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_MODULES.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["airflow_amt", "airflow_amt.tuning", "airflow_amt.exceptions"])
def test_the_domain_is_importable_without_airflow_and_aws(module: str) -> None:
    assert imported_by(module).isdisjoint(
        {"airflow", "boto3", "botocore", "optuna", "sklearn", "starlette", "uvicorn", "sqlalchemy"}
    )


@pytest.mark.parametrize(
    "module", ["airflow_amt.local.server", "airflow_amt.service_model", "airflow_amt.cli.main"]
)
def test_the_embedded_amt_and_the_command_line_start_without_airflow(module: str) -> None:
    assert "airflow" not in imported_by(module)


def test_loading_the_callbacks_of_deadlines_imports_no_aws_client() -> None:
    # Airflow 3.1.0 imports an AWS client by itself.
    before = imported_by("airflow_amt._compat")
    assert (imported_by("airflow_amt.callbacks") - before).isdisjoint({"boto3", "botocore", "starlette"})


def test_loading_the_operators_imports_no_search_engine_and_no_server() -> None:
    """DAG parsing: the module of the operators must not cost what only the embedded AMT needs."""
    before = imported_by("airflow.providers.amazon.aws.hooks.base_aws")
    assert (imported_by("airflow_amt.operators.tuning") - before).isdisjoint(
        {"optuna", "sklearn", "numpy", "scipy", "pandas", "uvicorn", "rich"}
    )
