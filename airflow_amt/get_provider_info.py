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
                "python-modules": [
                    "airflow_amt.operators.tuning",
                    "airflow_amt.operators.stop",
                    "airflow_amt.operators.branch",
                    "airflow_amt.operators.best",
                    "airflow_amt.operators.export",
                    "airflow_amt.operators.reap",
                    "airflow_amt.operators.ask",
                    "airflow_amt.operators.enforce",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": integration,
                "python-modules": ["airflow_amt.sensors.tuning", "airflow_amt.sensors.progress"],
            }
        ],
        "hooks": [
            {
                "integration-name": integration,
                "python-modules": [
                    "airflow_amt.hooks.tuning",
                    "airflow_amt.hooks.sla",
                    "airflow_amt.hooks.pricing",
                ],
            }
        ],
        "triggers": [
            {
                "integration-name": integration,
                "python-modules": [
                    "airflow_amt.triggers.tuning",
                    "airflow_amt.triggers.progress",
                    "airflow_amt.triggers.quota",
                    "airflow_amt.triggers.ended",
                    "airflow_amt.triggers.answer",
                    "airflow_amt.triggers.guarded",
                ],
            }
        ],
        "config": {
            "amt": {
                "description": "Settings of the provider for SageMaker automatic model tuning.",
                "options": {
                    "deployment": {
                        "description": "Name of this Airflow, where several share an AWS account and region. "
                        "It goes into the names and tags of tuning jobs, so that none takes over, or "
                        "reaps, another's.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "production",
                        "default": "",
                    },
                    "watch_calls_per_second": {
                        "description": "How many calls a second a triggerer makes at most, for each AWS "
                        "connection and region, to watch tuning jobs. The limits of an AWS account hold for "
                        "all of its triggerers together, so give each its share. A call that is throttled "
                        "halves the rate for a while.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "2.5",
                        "default": "5.0",
                    },
                    "watch_calls_burst": {
                        "description": "How many of these calls it may make at once after a pause.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "5",
                        "default": "10.0",
                    },
                },
            }
        },
        "notifications": [
            "airflow_amt.notifications.slack.AmtSlackNotifier",
            "airflow_amt.notifications.slack.AmtSlackWebhookNotifier",
            "airflow_amt.notifications.email.AmtSmtpNotifier",
            "airflow_amt.notifications.sns.AmtSnsNotifier",
        ],
        "extra-links": ["airflow_amt.links.tuning.AmtTuningJobLink"],
    }
