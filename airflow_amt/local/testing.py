"""Fixtures for pytest: an embedded AMT for a test session, and a client of it.

Name this module in a ``conftest.py``, and say what stands for your training images::

    pytest_plugins = ["airflow_amt.local.testing"]


    @pytest.fixture(scope="session")
    def embedded_amt_options():
        return {"clock_rate": 60, "images": {"my-image:latest": "python train.py"}}


    def test_retraining(embedded_amt, sagemaker_client):
        sagemaker_client.create_hyper_parameter_tuning_job(...)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from airflow_amt.local.launcher import RunningServer, running


@pytest.fixture(scope="session")
def embedded_amt_options() -> Mapping[str, Any]:
    """What the embedded AMT is started with: the parameters of :func:`airflow_amt.local.running`.

    Override it; unless you do, only script mode and the bundled images train.
    """
    return {}


@pytest.fixture(scope="session")
def embedded_amt(embedded_amt_options: Mapping[str, Any]) -> Iterator[RunningServer]:
    """An embedded AMT for the whole session; each test uses names of its own."""
    with running(**embedded_amt_options) as server:
        yield server


@pytest.fixture
def sagemaker_client(embedded_amt: RunningServer) -> Iterator[Any]:
    """A boto3 client of SageMaker for the embedded AMT, closed after the test."""
    client = embedded_amt.client()
    yield client
    client.close()
