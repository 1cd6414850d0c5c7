"""How often a key may ask."""

import pytest

from tuner_service.api.rates import MOST_BUCKETS, Rates
from tuner_service.errors import RateError
from tuner_service.settings import Settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def allowed(rates: Rates, owner: str, asked: int) -> int:
    """Return how many of so many requests at once are let through."""
    count = 0
    for _ in range(asked):
        try:
            rates.take(owner)
        except RateError:
            continue
        count += 1
    return count


def test_a_key_may_ask_in_bursts_and_then_at_its_rate() -> None:
    clock = Clock()
    rates = Rates(Settings(key_requests_per_second=5.0), clock)
    assert allowed(rates, "a", 50) == 10
    assert allowed(rates, "b", 50) == 10, "one key's requests are not another's"
    clock.now += 1.0
    assert allowed(rates, "a", 50) == 5
    clock.now += 100.0
    assert allowed(rates, "a", 50) == 10


def test_the_refusal_says_when_to_ask_again() -> None:
    rates = Rates(Settings(key_requests_per_second=0.1), Clock())
    rates.take("a")
    with pytest.raises(RateError, match=r"key_requests_per_second=0\.1") as refused:
        rates.take("a")
    assert refused.value.retry_after == 10


def test_without_keys_only_what_is_set_limits() -> None:
    assert allowed(Rates(Settings(), Clock()), "", 1000) == 1000
    assert allowed(Rates(Settings(), Clock()), "key", 1000) == 200
    assert allowed(Rates(Settings(key_requests_per_second=1.0), Clock()), "", 1000) == 2


def test_old_buckets_are_forgotten() -> None:
    rates = Rates(Settings(), Clock())
    for number in range(MOST_BUCKETS + 10):
        rates.take(f"key-{number}")
    assert len(rates._buckets) == MOST_BUCKETS
