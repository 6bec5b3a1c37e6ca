"""The plugin is where Airflow loads it from in every process, tasks' included."""

from __future__ import annotations

from importlib.metadata import entry_points

from airflow_amt.get_provider_info import get_provider_info
from airflow_amt.plugin import listener
from airflow_amt.plugin.plugin import AmtPlugin


def test_is_registered_by_an_entry_point_and_only_there() -> None:
    (registered,) = entry_points(group="airflow.plugins", name="airflow_amt")

    assert registered.load() is AmtPlugin
    assert listener in AmtPlugin.listeners
    # Where providers are loaded eagerly, a second plugin of the same name ends the loading of all others.
    assert "plugins" not in get_provider_info()
