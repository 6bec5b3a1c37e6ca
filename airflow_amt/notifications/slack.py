"""Slack: a message by the API (``chat.postMessage``) or by an incoming webhook."""

from __future__ import annotations

from typing import Any

from airflow_amt.notifications.base import AmtNotifier, missing_provider

try:
    from airflow.providers.slack.notifications.slack import SlackNotifier
    from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier
except ImportError as error:
    raise missing_provider("slack", error) from error

__all__ = ["AmtSlackNotifier", "AmtSlackWebhookNotifier"]

_TEXT = "{{ amt.mrkdwn }}"


class AmtSlackNotifier(AmtNotifier, SlackNotifier):
    """Tell a Slack channel about a tuning job.

    ::

        AmtTuningJobOperator(..., on_failure_callback=AmtSlackNotifier(channel="#models"))

    :param text: by default the message; a template that knows ``amt``, see :class:`AmtNotifier`.
    :param arguments: those of the Slack provider's ``SlackNotifier``.
    """

    def __init__(self, *, text: str = _TEXT, **arguments: Any) -> None:
        super().__init__(text=text, **arguments)


class AmtSlackWebhookNotifier(AmtNotifier, SlackWebhookNotifier):
    """Tell the channel of a Slack webhook about a tuning job.

    :param text: by default the message; a template that knows ``amt``, see :class:`AmtNotifier`.
    :param arguments: those of the Slack provider's ``SlackWebhookNotifier``.
    """

    def __init__(self, *, text: str = _TEXT, **arguments: Any) -> None:
        super().__init__(text=text, **arguments)
