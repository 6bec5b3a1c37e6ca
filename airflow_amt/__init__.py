"""Apache Airflow provider for Amazon SageMaker automatic model tuning (AMT)."""

from __future__ import annotations

__version__ = "0.1.0"
