"""The trigger that waits until a used-up quota is worth another attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

#: Version of the stored arguments and of the event.
QUOTA_TRIGGER_VERSION = 1

#: Longest sleep at a time: the machine's clock may be set meanwhile.
_LONGEST_SLEEP_SECONDS = 60.0


class AmtQuotaTrigger(BaseTrigger):
    """Fire once at a moment, so that a deferred task tries again to create its tuning job.

    There is no call that tells whether a quota has room; only the create call itself does, and that is the
    task's. The event is ``{"version", "event": "quota", "state"}``.

    :param moment: when to fire: ISO 8601 with an offset.
    :param state: what the task needs when it resumes, JSON-safe; handed back in the event.
    :param version: version of the stored arguments.
    :param newer: arguments that a newer release stored and this one does not know.
    """

    def __init__(
        self,
        moment: str,
        state: dict[str, Any] | None = None,
        version: int = QUOTA_TRIGGER_VERSION,
        **newer: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moment = moment
        self.state = state
        self.version = version
        self._newer = newer

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the stored arguments."""
        return (
            "airflow_amt.triggers.quota.AmtQuotaTrigger",
            {"version": QUOTA_TRIGGER_VERSION, "moment": self.moment, "state": self.state},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the moment and yield one event."""
        if self._newer:
            self.log.warning("Ignored, as stored by a newer release: %s", ", ".join(sorted(self._newer)))
        moment = datetime.fromisoformat(self.moment)
        while (left := (moment - datetime.now(UTC)).total_seconds()) > 0:  # noqa: ASYNC110 - only time passes
            await asyncio.sleep(min(left, _LONGEST_SLEEP_SECONDS))
        yield TriggerEvent(  # type: ignore[no-untyped-call]
            {"version": QUOTA_TRIGGER_VERSION, "event": "quota", "state": self.state}
        )
