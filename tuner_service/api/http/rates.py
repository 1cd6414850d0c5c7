"""How often one API key may ask, and how often wrong keys may be tried: token buckets in memory."""

import math
import threading
import time
from collections.abc import Callable, Collection
from ipaddress import ip_address, ip_network

from tuner_service.access.keys import KeyHolder, hash_of
from tuner_service.errors import RateError
from tuner_service.settings import Settings

BURST_SECONDS = 2.0  # what may come at once, in seconds' worth of requests
MOST_BUCKETS = 10_000
WRONG_KEYS_PER_SECOND = 1.0
WRONG_KEYS_AT_ONCE = 20.0
RELOAD_SECONDS = 1.0

Clock = Callable[[], float]


class Buckets:
    """Token buckets by name; the longest unused, which are full again, are forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # name: (tokens, as of)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, *, rate: float, most: float) -> float:
        """Take a token if there is one, and return 0; else the seconds until there is one.

        Args:
            rate: Tokens a second.
            most: Tokens a full bucket holds.
        """
        now = self._clock()
        with self._lock:
            held, at = self._buckets.pop(name, (most, now))
            held = min(most, held + (now - at) * rate)
            allowed = held >= 1.0
            self._buckets[name] = (held - allowed, now)
            if len(self._buckets) > MOST_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        return 0.0 if allowed else (1.0 - held) / rate

    def give_back(self, name: str) -> None:
        """Undo a `take`."""
        with self._lock:
            if name in self._buckets:
                held, at = self._buckets[name]
                self._buckets[name] = (held + 1.0, at)


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
                f"requests per second <= TUNER_KEY_REQUESTS_PER_SECOND={rate:g} must hold for each "
                "API key",
                retry_after=math.ceil(wait),
            )


class KeyVerifier:
    """API keys looked up, and the wrong ones among them counted by the address they come from.

    An address that tries too many is refused before the database is asked, but for valid keys:
    behind a proxy they come from the same address.

    Args:
        verify: Looks a secret up.
        hashes: Reads the hashes of all valid keys; asked at most once in RELOAD_SECONDS, and only
            while an address is being refused.
    """

    def __init__(
        self,
        verify: Callable[[str], KeyHolder | None],
        hashes: Callable[[], Collection[str]],
        clock: Clock = time.monotonic,
    ) -> None:
        self._verify = verify
        self._hashes = hashes
        self._clock = clock
        self._buckets = Buckets(clock)
        self._lock = threading.Lock()
        self._valid: Collection[str] = ()
        self._read_at = -math.inf

    def verify(self, address: str, secret: str) -> KeyHolder | None:
        """Return the key a secret belongs to; None if it is wrong.

        Raises:
            RateError: Too many wrong keys came from this address, and this is none that is valid.
        """
        rate, most = WRONG_KEYS_PER_SECOND, WRONG_KEYS_AT_ONCE
        wait = self._buckets.take(address, rate=rate, most=most)
        if wait > 0 and not self._is_valid(secret):
            raise RateError(
                f"wrong API keys per second <= {rate:g} must hold for each address; try again "
                "later, with the right key",
                retry_after=math.ceil(wait),
            )
        is_wrong = False
        try:
            key = self._verify(secret)
            is_wrong = key is None
        finally:
            if wait == 0 and not is_wrong:
                self._buckets.give_back(address)
        return key

    def _is_valid(self, secret: str) -> bool:
        with self._lock:
            if self._clock() - self._read_at >= RELOAD_SECONDS:
                self._valid = self._hashes()
                self._read_at = self._clock()
            return hash_of(secret) in self._valid


def origin_of(host: str | None) -> str:
    """Return what a caller's attempts are counted by: the address, of IPv6 its network of 64 bits.

    Whoever has one IPv6 address has the rest of its network as well.
    """
    try:
        address = ip_address(host or "")
    except ValueError:
        return "?"
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
