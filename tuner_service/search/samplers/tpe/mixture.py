"""A Parzen estimator over several parameters: a weighted mixture of products of kernels.

    n       trials in the mixture; one kernel each, and the prior as the last
    D, C    parameters, candidates
    weights [n+1] old trials weigh less than the last 25, the prior as much as a new one

Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, section 4, with the weights
and widths of Optuna 5.0's multivariate TPE.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.random import RandomState
from optuna.distributions import BaseDistribution

from tuner_service.search.samplers.tpe.gaussian import Floats
from tuner_service.search.samplers.tpe.kernels import STEADY, CategoricalKernels, kernels_of

NEGLIGIBLE: Final = 45.0
"""Terms smaller than the largest by this factor's exponential are left out of a sum: 1e5 of them
would change it by 3e-15."""

_MOST_STEPS_AT_ONCE: Final = 32
"""With more changes than this, building the kernels anew is cheaper."""

Vector = tuple[float, ...]


class Mixture:
    """The mixture of a set of trials that changes a little between asks.

    Args:
        space: The parameters, in the order in which they are drawn.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self._kernels = [kernels_of(distribution) for distribution in self.space.values()]
        self._wanted: dict[int, Vector] = {}
        self._built: dict[int, Vector] = {}
        self._keys: list[int] = []  # of `_built`, ascending
        self._changed: set[int] = set()
        self._constant: Floats | None = None
        self._buffers = np.empty((2, 0))

    def __len__(self) -> int:
        return len(self._wanted)

    def put(self, key: int, vector: Vector) -> None:
        """Add a trial; its place in the mixture follows from its key.

        Args:
            vector: [D] internal representations.
        """
        self._wanted[key] = vector
        self._changed.add(key)

    def discard(self, key: int) -> None:
        """Take a trial out, if it is in."""
        if self._wanted.pop(key, None) is not None:
            self._changed.add(key)

    def sample(self, rng: RandomState, count: int) -> Floats:
        """Return [count, D] values drawn from the mixture.

        The generator is called as Optuna calls it, so that equal mixtures draw equal values.
        """
        self._settle()
        chosen = rng.choice(len(self._keys) + 1, p=self._weights(), size=count)
        drawn = np.empty((count, len(self._kernels)))
        numeric = []
        for column, kernels in enumerate(self._kernels):
            if isinstance(kernels, CategoricalKernels):
                drawn[:, column] = kernels.draw(chosen, rng.rand(count))
            else:
                numeric.append((column, kernels))
        if numeric:
            places = rng.uniform(size=(len(numeric), count))
            for (column, kernels), row in zip(numeric, places, strict=True):
                drawn[:, column] = kernels.draw(chosen, row)
        return drawn

    def log_density(self, candidates: Floats) -> Floats:
        """Return [C] log densities at [C, D] candidates. Cost: O(C n D)."""
        self._settle()
        terms, scratch = self._room(len(candidates))
        terms[:] = self._constants()
        for column, kernels in enumerate(self._kernels):
            kernels.add_log_density(candidates[:, column], terms, scratch)
        return log_sum_exp(terms)

    def _weights(self) -> Floats:
        weights = np.append(trial_weights(len(self._keys)), 1.0)
        return np.asarray(weights / weights.sum())

    def _constants(self) -> Floats:
        if self._constant is None:
            norm = np.sum([kernels.norm for kernels in self._kernels], axis=0)
            self._constant = np.log(self._weights()) - norm
        return self._constant

    def _room(self, count: int) -> tuple[Floats, Floats]:
        needed = count * (len(self._keys) + 1)
        if self._buffers.shape[1] < needed:
            self._buffers = np.empty((2, 2 * needed))
        first, second = self._buffers[:, :needed]
        return first.reshape(count, -1), second.reshape(count, -1)

    def _settle(self) -> None:
        """Bring the kernels up to what was put and discarded."""
        changed = [key for key in self._changed if self._wanted.get(key) != self._built.get(key)]
        self._changed.clear()
        if not changed:
            return
        self._constant = None
        fewest = min(len(self._wanted), len(self._built)) - len(changed)
        if fewest < STEADY or len(changed) > _MOST_STEPS_AT_ONCE:
            self._rebuild()
            return
        for key in sorted(changed):
            self._replace(key)

    def _rebuild(self) -> None:
        self._built = dict(self._wanted)
        self._keys = sorted(self._built)
        values = np.array([self._built[key] for key in self._keys], dtype=np.float64)
        for column, kernels in enumerate(self._kernels):
            kernels.rebuild(values[:, column] if len(values) else values)

    def _replace(self, key: int) -> None:
        position = bisect_left(self._keys, key)
        if self._built.pop(key, None) is not None:
            del self._keys[position]
            for kernels in self._kernels:
                kernels.remove(position)
        if key in self._wanted:
            self._built[key] = self._wanted[key]
            self._keys.insert(position, key)
            for kernels, value in zip(self._kernels, self._wanted[key], strict=True):
                kernels.insert(position, value)


def trial_weights(count: int) -> Floats:
    """Return [count] weights of trials, oldest first: a ramp up to the last 25."""
    if count < 25:
        return np.ones(count)
    return np.concatenate([np.linspace(1.0 / count, 1.0, num=count - 25), np.ones(25)])


def log_sum_exp(terms: Floats) -> Floats:
    """Return [C] log(sum(exp(terms), axis=1)); overwrites `terms`.

    Most kernels lie far from a candidate: only those that can change the sum are exponentiated,
    which is the dearest part of all.
    """
    peak = terms.max(axis=1)
    np.subtract(terms, peak[:, np.newaxis], out=terms)
    flat = terms.reshape(-1)
    kept = np.flatnonzero(flat > -NEGLIGIBLE)
    sums = np.bincount(kept // terms.shape[1], weights=np.exp(flat[kept]), minlength=terms.shape[0])
    return np.asarray(np.log(sums) + peak)
