"""How often one API key may ask, and how often wrong keys may be tried: token buckets in memory."""

import math
import threading
import time
from collections.abc import Callable
from hashlib import sha256

from tuner_service.errors import RateError
from tuner_service.settings import Settings

BURST_SECONDS = 2.0  # what may come at once, in seconds' worth of requests
MOST_BUCKETS = 10_000
WRONG_KEYS_PER_SECOND = 1.0
WRONG_KEYS_AT_ONCE = 20.0

Clock = Callable[[], float]


class Buckets:
    """Token buckets by name; the longest unused, which are full again, are forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # name: (tokens, as of)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, *, rate: float, most: float, tokens: float = 1.0) -> float:
        """Take tokens if there is at least one; return the seconds until there is one, else 0.

        Args:
            rate: Tokens a second.
            most: Tokens a full bucket holds.
            tokens: How many to take; none only looks.
        """
        now = self._clock()
        with self._lock:
            held, at = self._buckets.pop(name, (most, now))
            held = min(most, held + (now - at) * rate)
            allowed = held >= 1.0
            self._buckets[name] = (held - tokens * allowed, now)
            if len(self._buckets) > MOST_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        return 0.0 if allowed else (1.0 - held) / rate


class Rates:
    """The requests of each key. Several API processes count apart."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._buckets = Buckets(clock)

    def take(self, owner: str) -> None:
        """Count one request.

        Raises:
            RateError: The key has asked too often.
        """
        rate = self._settings.key_limit("key_requests_per_second", owner)
        if rate is None:
            return
        wait = self._buckets.take(owner, rate=rate, most=max(1.0, rate * BURST_SECONDS))
        if wait > 0:
            raise RateError(
                f"requests per second <= key_requests_per_second={rate:g} must hold for each API "
                "key",
                retry_after=math.ceil(wait),
            )


class Attempts:
    """Wrong keys by the address they come from.

    An address that tries too many is refused before the database is asked. Keys that were valid
    when last seen are still looked up: behind a proxy they come from the same address.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._buckets = Buckets(clock)
        self._lock = threading.Lock()
        self._valid: dict[bytes, None] = {}  # digests, the longest unused first

    def admit(self, address: str, secret: str) -> None:
        """Let a key be looked up.

        Raises:
            RateError: Too many wrong keys came from this address.
        """
        wait = self._take(address, 0.0)
        if wait > 0 and _digest(secret) not in self._valid:
            raise RateError(
                f"wrong API keys per second <= {WRONG_KEYS_PER_SECOND:g} must hold for each "
                "address; try again later, with the right key",
                retry_after=math.ceil(wait),
            )

    def note(self, address: str, secret: str, *, valid: bool) -> None:
        """Remember what came of it."""
        if not valid:
            self._take(address, 1.0)
        digest = _digest(secret)
        with self._lock:
            self._valid.pop(digest, None)
            if valid:
                self._valid[digest] = None
            if len(self._valid) > MOST_BUCKETS:
                del self._valid[next(iter(self._valid))]

    def _take(self, address: str, tokens: float) -> float:
        return self._buckets.take(
            address, rate=WRONG_KEYS_PER_SECOND, most=WRONG_KEYS_AT_ONCE, tokens=tokens
        )


def _digest(secret: str) -> bytes:
    return sha256(secret.encode(errors="replace")).digest()
