"""A study's trials as TPE divides them: the few best below, the rest above.

The order is Optuna 5.0's: COMPLETE trials by value; then PRUNED ones, the furthest first and among
equals by their last value; then infeasible ones by how much they violate. Below are the best tenth
of the finished trials, at most 25. RUNNING trials count as bad ones (the constant liar), so that
what is asked meanwhile keeps away from them.
"""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.random import RandomState
from optuna.distributions import BaseDistribution, FloatDistribution

from tuner_service.search.samplers.tpe.gaussian import Floats
from tuner_service.search.samplers.tpe.mixture import Mixture, Vector

MOST_BELOW: Final = 25
_MOST_DRAWS: Final = 4  # of so many times the candidates, before a point is proposed again

Rank = tuple[int, float, float]
"""Sorts finished trials from best to worst."""


def rank(
    *,
    complete: bool,
    value: float | None,
    intermediate_values: Mapping[int, float],
    violation: float,
    maximize: bool,
) -> Rank:
    """Return a finished trial's place in the order.

    Args:
        value: Of a COMPLETE trial.
        violation: Sum of its constraints above 0.
    """
    if violation > 0:
        return (2, violation, 0.0)
    if complete:
        return (0, _loss(math.nan if value is None else value, maximize=maximize), 0.0)
    if not intermediate_values:
        return (1, 1.0, 0.0)
    step = max(intermediate_values)
    return (1, -float(step), _loss(intermediate_values[step], maximize=maximize))


def _loss(value: float, *, maximize: bool) -> float:
    if math.isnan(value):
        return math.inf
    return -value if maximize else value


class Trials:
    """Trials by key; a trial's key is its place in time."""

    def __init__(self) -> None:
        self._params: dict[int, Mapping[str, Any]] = {}
        self._ranked: list[tuple[Rank, int]] = []
        self._ranks: dict[int, Rank] = {}
        self._below: set[int] = set()
        self._pairs: dict[tuple[tuple[str, BaseDistribution], ...], GoodAndBad] = {}

    @property
    def finished(self) -> int:
        """How many trials are finished."""
        return len(self._ranked)

    @property
    def below(self) -> set[int]:
        """Keys of the good trials, as of the last `pair`."""
        return set(self._below)

    def is_finished(self, key: int) -> bool:
        """Return whether a trial is here and finished."""
        return key in self._ranks

    def put_running(self, key: int, params: Mapping[str, Any]) -> None:
        """Add a RUNNING trial, or replace what is known of it."""
        if self._params.get(key) != params:
            self._place(key, params)

    def put_finished(self, key: int, params: Mapping[str, Any], its_rank: Rank) -> None:
        """Add a COMPLETE or PRUNED trial, which may have been running before."""
        self._ranks[key] = its_rank
        insort(self._ranked, (its_rank, key))
        self.put_running(key, params)

    def discard(self, key: int) -> None:
        """Take a trial out, if it is in."""
        if self._params.pop(key, None) is None:
            return
        known = self._ranks.pop(key, None)
        if known is not None:
            del self._ranked[bisect_left(self._ranked, (known, key))]
        self._below.discard(key)
        for pair in self._pairs.values():
            pair.discard(key)

    def pair(self, space: Mapping[str, BaseDistribution]) -> "GoodAndBad":
        """Return the two mixtures over these parameters, up to date."""
        self._split()
        key = tuple(space.items())
        if key not in self._pairs:
            self._pairs[key] = pair = GoodAndBad(space)
            for trial, params in self._params.items():
                pair.put(trial, params, below=trial in self._below)
        return self._pairs[key]

    def _place(self, key: int, params: Mapping[str, Any]) -> None:
        self._params[key] = params
        for pair in self._pairs.values():
            pair.discard(key)
            pair.put(key, params, below=key in self._below)

    def _split(self) -> None:
        count = min(math.ceil(0.1 * self.finished), MOST_BELOW)
        below = {key for _, key in self._ranked[:count]}
        for key in below ^ self._below:
            for pair in self._pairs.values():
                pair.discard(key)
                pair.put(key, self._params[key], below=key in below)
        self._below = below


class GoodAndBad:
    """The mixtures of the good and of the other trials over some parameters.

    A trial that lacks one of the parameters is in neither.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self.below, self.above = Mixture(space), Mixture(space)
        self._repeats = all(_repeats(distribution) for distribution in space.values())
        self._vectors: dict[int, Vector] = {}
        self._seen: Counter[Vector] = Counter()

    def put(self, key: int, params: Mapping[str, Any], *, below: bool) -> None:
        """Add a trial to one of the two."""
        vector = self._vector(params)
        if vector is None:
            return
        (self.below if below else self.above).put(key, vector)
        if self._repeats:
            self._vectors[key] = vector
            self._seen[vector] += 1

    def discard(self, key: int) -> None:
        """Take a trial out of whichever it is in."""
        self.below.discard(key)
        self.above.discard(key)
        vector = self._vectors.pop(key, None)
        if vector is not None:
            self._seen[vector] -= 1
            if not self._seen[vector]:
                del self._seen[vector]

    def propose(self, rng: RandomState, count: int, *, unseen: bool = False) -> "Proposal":
        """Draw `count` candidates from the good trials' mixture.

        Args:
            unseen: Pass over points that a trial has, unless many draws find no other. The same
                point trained once more from the same seed would teach nothing.
        """
        drawn = self.below.sample(rng, count)
        if not (unseen and self._repeats):
            return Proposal(self, drawn)
        for _ in range(_MOST_DRAWS):
            fresh = [point for point in drawn if tuple(point.tolist()) not in self._seen]
            if fresh:
                return Proposal(self, np.array(fresh))
            drawn = self.below.sample(rng, count)
        return Proposal(self, drawn)

    def _vector(self, params: Mapping[str, Any]) -> Vector | None:
        try:
            return tuple(
                distribution.to_internal_repr(params[name])
                for name, distribution in self.space.items()
            )
        except (KeyError, ValueError):
            return None  # without one of the parameters, or with a choice that is not there


class Proposal:
    """Drawn candidates, of which the best is found when it is wanted.

    Finding it is what costs; a group of conditional parameters that turn out not to apply does
    without.
    """

    def __init__(self, pair: GoodAndBad, candidates: Floats) -> None:
        self._pair = pair
        self._candidates = candidates
        self._best: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        """Return one parameter of the candidate with the greatest ratio of good to other."""
        if self._best is None:
            gain = self._pair.below.log_density(self._candidates)
            gain -= self._pair.above.log_density(self._candidates)
            best = self._candidates[np.argmax(gain)]
            self._best = {
                name: distribution.to_external_repr(value.item())
                for (name, distribution), value in zip(self._pair.space.items(), best, strict=True)
            }
        return self._best[name]


def _repeats(distribution: BaseDistribution) -> bool:
    """Return whether two draws may be the same value by more than a freak of chance."""
    return not (isinstance(distribution, FloatDistribution) and distribution.step is None)


def partition(signatures: Iterator[frozenset[str]]) -> list[frozenset[str]]:
    """Return the largest groups of names of which every signature holds all or none."""
    parts: list[frozenset[str]] = []
    for signature in signatures:
        refined: list[frozenset[str]] = []
        for part in parts:
            refined += [part & signature, part - signature]
            signature -= part
        parts = [part for part in [*refined, signature] if part]
    return parts
