"""How often a key may ask, and how often wrong ones may be tried."""

import pytest

from tuner_service.api.rates import MOST_BUCKETS, WRONG_KEYS_AT_ONCE, Attempts, Rates
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


def try_wrong_keys(attempts: Attempts, address: str, count: int) -> int:
    """Return how many of so many wrong keys are looked up."""
    looked_up = 0
    for number in range(count):
        try:
            attempts.admit(address, f"wrong-{number}")
        except RateError:
            continue
        attempts.note(address, f"wrong-{number}", valid=False)
        looked_up += 1
    return looked_up


def test_wrong_keys_are_refused_by_address_before_they_are_looked_up() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    assert try_wrong_keys(attempts, "a", 100) == WRONG_KEYS_AT_ONCE
    assert try_wrong_keys(attempts, "b", 5) == 5, "one address is not another"
    with pytest.raises(RateError, match="wrong API keys") as refused:
        attempts.admit("a", "right, but never seen")
    assert refused.value.retry_after == 1
    clock.now += 3.0
    assert try_wrong_keys(attempts, "a", 100) == 3


def test_wrong_keys_do_not_lock_out_those_who_were_let_in_before() -> None:
    attempts = Attempts(Clock())
    attempts.admit("proxy", "right")
    attempts.note("proxy", "right", valid=True)
    try_wrong_keys(attempts, "proxy", 100)
    for _ in range(100):
        attempts.admit("proxy", "right")
        attempts.note("proxy", "right", valid=True)
    attempts.note("proxy", "right", valid=False)  # revoked
    with pytest.raises(RateError):
        attempts.admit("proxy", "right")
