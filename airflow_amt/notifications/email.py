"""E-mail, by the SMTP provider."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_amt.notifications.base import AmtNotifier, missing_provider

try:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier
except ImportError as error:
    raise missing_provider("smtp", error) from error

__all__ = ["AmtSmtpNotifier"]


class AmtSmtpNotifier(AmtNotifier, SmtpNotifier):
    """Tell people by e-mail about a tuning job.

    ::

        AmtTuningJobOperator(..., on_failure_callback=AmtSmtpNotifier(to="team@example.com"))

    :param to: address or addresses.
    :param from_email: by default that of the connection.
    :param subject: by default that of the message; a template that knows ``amt``, see :class:`AmtNotifier`.
    :param html_content: by default the message, unless ``template`` names a file of it.
    :param others: see arguments.
    :param arguments: those of the SMTP provider's ``SmtpNotifier``.
    """

    def __init__(
        self,
        to: str | Iterable[str],
        from_email: str | None = None,
        subject: str | None = None,
        html_content: str | None = None,
        *others: Any,
        **arguments: Any,
    ) -> None:
        if html_content is None and arguments.get("template") is None:
            html_content = "{{ amt.html }}"
        subject = "{{ amt.subject }}" if subject is None else subject
        super().__init__(to, from_email, subject, html_content, *others, **arguments)
