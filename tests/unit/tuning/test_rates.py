"""The token bucket: never faster than its rate, slower when throttled, back in a minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning.rates import TokenBucket


def calls_in(bucket: TokenBucket, begin: float, seconds: float) -> int:
    """Make calls as fast as the bucket lets them; return how many."""
    now, made = begin, 0
    while True:
        now += bucket.wait(now)
        if now >= begin + seconds:
            return made
        bucket.spend(now)
        made += 1


def test_the_burst_then_the_rate() -> None:
    assert calls_in(TokenBucket(5, 10, 0.0), 0.0, 60.0) == pytest.approx(310, abs=1)


def test_a_reserved_call_waits_for_those_before_it() -> None:
    bucket = TokenBucket(2, 1, 0.0)
    assert [bucket.reserve(0.0) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]


def test_throttled_calls_together_halve_the_rate_once() -> None:
    bucket = TokenBucket(8, 8, 0.0)
    for moment in (1.0, 1.2, 1.9):
        bucket.throttled(moment)
    assert bucket.rate(1.9) == pytest.approx(4, abs=0.2)
    assert bucket.wait(1.9) > 0  # what was saved up is gone
    bucket.throttled(2.0)
    assert bucket.rate(2.0) == pytest.approx(2, abs=0.2)


def test_it_recovers_within_a_minute_and_never_stands_still() -> None:
    bucket = TokenBucket(5, 10, 0.0)
    for second in range(100):
        bucket.throttled(float(second))
    assert bucket.rate(99.0) == pytest.approx(0.2, abs=0.1)
    assert bucket.wait(99.0) <= 10
    assert bucket.rate(99.0 + 60.0) == 5
    assert calls_in(bucket, 200.0, 10.0) == pytest.approx(60, abs=1)


def test_a_rate_below_the_slowest_stays_what_it_is() -> None:
    bucket = TokenBucket(0.05, 1, 0.0)
    bucket.throttled(1.0)
    assert bucket.rate(1.0) == 0.05


@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(1, 50),
    throttles=st.lists(st.floats(0, 300), max_size=20),
    seconds=st.floats(1, 300),
)
def test_it_is_never_faster_than_its_rate(
    rate: float, burst: float, throttles: list[float], seconds: float
) -> None:
    bucket, now, made = TokenBucket(rate, burst, 0.0), 0.0, 0
    pending = sorted(throttles)
    while made < 500:
        now += bucket.wait(now)
        if now > seconds:
            break
        while pending and pending[0] <= now:
            pending.pop(0)
            bucket.throttled(now)
        if bucket.wait(now) == 0:
            bucket.spend(now)
            made += 1
    assert made <= burst + rate * min(now, seconds) + 1
