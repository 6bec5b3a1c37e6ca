"""Amazon SNS: topics, and through them queues, functions, e-mail and mobile phones."""

from __future__ import annotations

from typing import Any

from airflow.providers.amazon.aws.notifications.sns import SnsNotifier

from airflow_amt._compat import in_thread
from airflow_amt.notifications.base import AmtNotifier

__all__ = ["AmtSnsNotifier"]


class AmtSnsNotifier(AmtNotifier, SnsNotifier):
    """Publish a message about a tuning job to an SNS topic or endpoint.

    Within an event loop it publishes from a thread: the Amazon provider's own way needs aiobotocore, of which
    no release works with a new boto3.

    :param target_arn: ARN of the topic or endpoint.
    :param message: by default the message; a template that knows ``amt``, see :class:`AmtNotifier`.
    :param subject: by default that of the message.
    :param arguments: those of the Amazon provider's ``SnsNotifier``.
    """

    def __init__(
        self,
        *,
        target_arn: str,
        message: str = "{{ amt.text }}",
        subject: str | None = "{{ amt.subject }}",
        **arguments: Any,
    ) -> None:
        super().__init__(target_arn=target_arn, message=message, subject=subject, **arguments)

    async def async_notify(self, context: Any) -> None:
        """Publish the message from within an event loop; called directly, compose and render it first."""
        if self._composed:
            await in_thread(lambda: self.notify(context))
        else:
            await super().async_notify(context)
