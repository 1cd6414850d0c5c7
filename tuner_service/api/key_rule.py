"""Which requests need an API key."""

import math
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from tuner_service.settings import Settings

# What reverse proxies add to a request that they pass on.
FORWARDING = (
    "Forwarded",
    "Via",
    "X-Real-IP",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
)
RECHECK_SECONDS = 1.0


class KeyRule:
    """Says which requests need a key.

    On loopback the only sign of others is what a reverse proxy adds to their requests, and not
    every proxy does. So there, too, everybody needs one once a key was made or set: also when all
    of them are revoked, or revoking the last would open the service.

    Args:
        any_key_made: Reads the database; asked at most once in RECHECK_SECONDS, and never again
            after a yes.
    """

    def __init__(
        self,
        settings: Settings,
        any_key_made: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._any_key_made = any_key_made
        self._clock = clock
        self._made = False
        self._read_at = -math.inf

    async def reason(self, headers: Headers) -> str:
        """Return why this request needs a key; empty if it needs none.

        Raises:
            UnavailableError: The database cannot be asked.
        """
        if self._settings.keys_reason or self._settings.require_keys is False:
            return self._settings.keys_reason
        sign = next((name for name in FORWARDING if name in headers), None)
        if sign is not None:
            return f"the request came through a proxy ({sign})"
        if not self._made and self._clock() - self._read_at >= RECHECK_SECONDS:
            self._made = await run_in_threadpool(self._any_key_made)
            self._read_at = self._clock()
        return "this service has API keys (`tuner keys list`)" if self._made else ""
