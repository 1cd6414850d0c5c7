"""When a series of samples is flat: the rule by which a long run is judged."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

SETTLING = 1 / 3  # of a run: caches fill, and every kind of work comes for the first time
MOST_POINTS = 200  # the slope takes the median over all pairs of points


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a series may grow over the judged part: the larger of a share of its median and a step.

    Attributes:
        share: Of the median.
        step: In the series' own unit.
    """

    share: float
    step: float

    def of(self, median: float) -> float:
        """Return the most it may grow."""
        return max(self.share * median, self.step)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a series went after settling.

    Attributes:
        growth: Slope times time: what it grew by, without its ups and downs.
        per_hour: Slope.
        allowed: The most it may grow.
    """

    median: float
    growth: float
    per_hour: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Whether it grew by no more than it may."""
        return self.growth <= self.allowed


def judge(times: Sequence[float], values: Sequence[float], tolerance: Tolerance) -> Verdict:
    """Judge the last two thirds of a series by its Theil-Sen slope.

    Args:
        times: Seconds, rising.

    Raises:
        ValueError: Fewer than three samples are left after settling.

    Source: Sen (1968), the median of the slopes between all pairs of points.
    """
    begin = times[0] + SETTLING * (times[-1] - times[0])
    kept = [(t, v) for t, v in zip(times, values, strict=True) if t >= begin]
    if len(kept) < 3:
        raise ValueError(f"at least 3 samples after settling must be there, but got {len(kept)}")
    median, span = statistics.median(v for _, v in kept), kept[-1][0] - kept[0][0]
    points = kept[:: -(-len(kept) // MOST_POINTS)]
    slope = statistics.median((w - v) / (u - t) for (t, v), (u, w) in combinations(points, 2))
    return Verdict(median, slope * span, slope * 3600.0, tolerance.of(median))
