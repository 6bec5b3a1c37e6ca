"""What knows the Airflow version."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import async_to_sync

from airflow_amt import _compat


def test_a_question_under_way_is_answered_though_its_trigger_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in Airflow 3.1's triggerer, where an answer that nobody takes ends the whole triggerer."""
    monkeypatch.setattr(_compat, "_asks_through_asgiref", lambda: True)

    async def run() -> None:
        asked, answered = asyncio.Event(), asyncio.Event()
        go_on = asyncio.Event()

        async def question() -> None:
            asked.set()
            await go_on.wait()
            answered.set()

        reading = asyncio.create_task(_compat.in_thread(async_to_sync(question)))
        await asyncio.wait_for(asked.wait(), 10)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        go_on.set()
        await asyncio.wait_for(answered.wait(), 10)

    asyncio.run(run())


def test_a_metric_is_counted_on_every_version() -> None:
    _compat.count("amt.tuning_jobs.created", {"reason": "a test"})
    _compat.count("amt.tuning_jobs.created")
