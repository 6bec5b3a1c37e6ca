"""Watching tuning jobs: what operators, sensors and triggers share while they wait.

The modules are imported when first used, as those of :mod:`airflow_amt.tuning`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_amt.watch import polling as polling


def __getattr__(name: str) -> Any:
    if name != "polling":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
