"""How often a key may ask, and how often wrong ones may be tried."""

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress

import pytest

from tuner_service.access.keys import KeyHolder, hash_of
from tuner_service.api.http.rates import (
    MOST_BUCKETS,
    RELOAD_SECONDS,
    WRONG_KEYS_AT_ONCE,
    KeyVerifier,
    Rates,
    origin_of,
)
from tuner_service.errors import RateError, UnavailableError
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
    with pytest.raises(RateError, match=r"TUNER_KEY_REQUESTS_PER_SECOND=0\.1") as refused:
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


RIGHT = KeyHolder(id="right", scopes=("read",))


class Keys:
    """The keys there are, and what was asked of them."""

    def __init__(self, *valid: str) -> None:
        self.valid = set(valid)
        self.looked_up = 0
        self.read = 0
        self.clock = Clock()
        self.attempts = KeyVerifier(self.verify, self.hashes, self.clock)

    def verify(self, secret: str) -> KeyHolder | None:
        self.looked_up += 1
        return RIGHT if secret in self.valid else None

    def hashes(self) -> set[str]:
        self.read += 1
        return {hash_of(secret) for secret in self.valid}

    def guess(self, address: str, count: int) -> int:
        """Return how many of so many wrong keys are looked up."""
        before = self.looked_up
        for number in range(count):
            with suppress(RateError):
                assert self.attempts.verify(address, f"wrong-{number}") is None
        return self.looked_up - before


def test_wrong_keys_are_refused_by_address_before_they_are_looked_up() -> None:
    keys = Keys()
    assert keys.guess("a", 100) == WRONG_KEYS_AT_ONCE
    assert keys.guess("b", 5) == 5, "one address is not another"
    with pytest.raises(RateError, match="wrong API keys") as refused:
        keys.attempts.verify("a", "wrong")
    assert refused.value.retry_after == 1
    assert keys.read == 1, "refusing asks the database at most once a second"
    keys.clock.now += 3.0
    assert keys.guess("a", 100) == 3


def test_wrong_keys_do_not_lock_out_right_ones_that_were_never_seen() -> None:
    keys = Keys("right")
    keys.guess("proxy", 100)
    for _ in range(100):
        assert keys.attempts.verify("proxy", "right") == RIGHT
    keys.valid.add("made just now")
    keys.valid.remove("right")
    keys.clock.now += RELOAD_SECONDS
    keys.guess("proxy", 1)
    assert keys.attempts.verify("proxy", "made just now") == RIGHT
    with pytest.raises(RateError):
        keys.attempts.verify("proxy", "right")


def test_right_keys_and_lookups_that_fail_count_for_nothing() -> None:
    keys = Keys("right")
    keys.guess("a", 19)
    for _ in range(100):
        assert keys.attempts.verify("a", "right") == RIGHT
    assert keys.guess("a", 100) == 1

    def fails(_: str) -> KeyHolder | None:
        raise UnavailableError("away")

    failing = KeyVerifier(fails, keys.hashes, keys.clock)
    for _ in range(100):
        with pytest.raises(UnavailableError):
            failing.verify("a", "any")


def test_wrong_keys_that_come_at_once_are_counted_before_they_are_looked_up() -> None:
    begun, go = [], threading.Event()

    def verify(secret: str) -> KeyHolder | None:
        begun.append(secret)
        go.wait(60.0)
        return None

    attempts = KeyVerifier(verify, set, Clock())
    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(attempts.verify, "a", f"wrong-{number}") for number in range(30)]
        done, _ = wait(answers, timeout=60.0, return_when=FIRST_EXCEPTION)
        go.set()
    assert done, "those beyond the limit were let in while others were being looked up"
    assert len(begun) == WRONG_KEYS_AT_ONCE


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("unix:", "?"),
        (None, "?"),
    ],
)
def test_an_ipv6_network_is_one_caller(host: str | None, origin: str) -> None:
    assert origin_of(host) == origin
