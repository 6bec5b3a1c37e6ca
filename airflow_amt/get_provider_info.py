"""The provider's metadata for Airflow: what the ``apache_airflow_provider`` entry point returns."""

from __future__ import annotations

from typing import Any

from airflow_amt import __version__


def get_provider_info() -> dict[str, Any]:
    """Return the provider info; it follows Airflow's ``provider_info.schema.json``.

    No connection type: :class:`airflow_amt.hooks.tuning.AmtHook` uses ``aws`` of the Amazon provider.
    """
    integration = "Amazon SageMaker automatic model tuning"
    return {
        "package-name": "airflow-provider-amt",
        "name": "Amazon SageMaker automatic model tuning (AMT)",
        "description": "Tuning jobs of Amazon SageMaker automatic model tuning: completion criteria, "
        "progress and the reason a tuning job ended.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": integration,
                "external-doc-url": "https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning.html",
                "tags": ["aws"],
            }
        ],
        "operators": [
            {
                "integration-name": integration,
                "python-modules": ["airflow_amt.operators.tuning", "airflow_amt.operators.stop"],
            }
        ],
        "sensors": [
            {
                "integration-name": integration,
                "python-modules": ["airflow_amt.sensors.tuning", "airflow_amt.sensors.progress"],
            }
        ],
        "hooks": [{"integration-name": integration, "python-modules": ["airflow_amt.hooks.tuning"]}],
        "triggers": [
            {
                "integration-name": integration,
                "python-modules": ["airflow_amt.triggers.tuning", "airflow_amt.triggers.progress"],
            }
        ],
        "extra-links": ["airflow_amt.links.tuning.AmtTuningJobLink"],
    }
