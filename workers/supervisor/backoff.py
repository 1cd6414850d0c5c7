"""The database's absence: since when, and when to try again."""

from math import inf

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 2.0


class Backoff:
    """Back-off while the database is away: 0.1, 0.2, 0.4 … 2 s between tries."""

    def __init__(self) -> None:
        self.retry_at = -inf
        self._wait = 0.0

    @property
    def active(self) -> bool:
        """Whether the last try failed."""
        return self._wait > 0

    def may_try(self, now: float) -> bool:
        """Return whether it is time to try (again)."""
        return now >= self.retry_at

    def failed(self, now: float) -> bool:
        """Note a failed try; return whether it is the first of this outage."""
        first = not self.active
        self._wait = min(max(self._wait * 2, _FIRST_SECONDS), _LONGEST_SECONDS)
        self.retry_at = now + self._wait
        return first

    def recovered(self) -> bool:
        """Note a try that worked; return whether an outage ended by it."""
        was_active = self.active
        self._wait, self.retry_at = 0.0, -inf
        return was_active
