"""How fast trials end on this worker, and how far ahead it should claim because of that."""

import math

_MEMORY_SECONDS = 1.0
# A slot claimed now is at work after about two commits. What ends in that time should be at hand
# already; more would be kept from other workers for nothing.
_LEAD_SECONDS = 0.25
_MOST_AHEAD = 64


class CompletionRate:
    """Trials ended per second, by an average that forgets within a second or so."""

    def __init__(self, now: float) -> None:
        self._rate = 0.0
        self._at = now

    def note(self, count: int, now: float) -> None:
        """Some trials ended."""
        self._rate = self.rate(now) + count / _MEMORY_SECONDS
        self._at = now

    def rate(self, now: float) -> float:
        """Return trials per second."""
        return self._rate * math.exp(-(now - self._at) / _MEMORY_SECONDS)

    def ahead(self, now: float) -> int:
        """Return how many slots to hold beyond the lanes: none while trials take long."""
        return min(int(self.rate(now) * _LEAD_SECONDS), _MOST_AHEAD)
