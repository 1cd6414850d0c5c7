"""How often one API key may ask: a token bucket for each, in this process's memory."""

import math
import threading
import time
from collections.abc import Callable

from tuner_service.errors import RateError
from tuner_service.settings import Settings

BURST_SECONDS = 2.0  # what may come at once, in seconds' worth of requests
MOST_BUCKETS = 10_000


class Rates:
    """The buckets. Several API processes count apart."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # owner: (tokens, as of)

    def take(self, owner: str) -> None:
        """Count one request.

        Raises:
            RateError: The key has asked too often.
        """
        rate = self._settings.key_limit("key_requests_per_second", owner)
        if rate is None:
            return
        most, now = max(1.0, rate * BURST_SECONDS), self._clock()
        with self._lock:
            tokens, at = self._buckets.pop(owner, (most, now))
            tokens = min(most, tokens + (now - at) * rate)
            allowed = tokens >= 1.0
            self._buckets[owner] = (tokens - allowed, now)
            if len(self._buckets) > MOST_BUCKETS:  # the longest unused, which is full again
                del self._buckets[next(iter(self._buckets))]
        if not allowed:
            raise RateError(
                f"requests per second <= key_requests_per_second={rate:g} must hold for each API "
                "key",
                retry_after=math.ceil((1.0 - tokens) / rate),
            )
