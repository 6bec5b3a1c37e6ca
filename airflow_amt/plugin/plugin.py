"""The Airflow plugin of this provider."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from airflow_amt.plugin import listener


class AmtPlugin(AirflowPlugin):
    """Registers the listener."""

    name = "airflow_amt"
    listeners = [listener]  # noqa: RUF012 - as Airflow declares it
