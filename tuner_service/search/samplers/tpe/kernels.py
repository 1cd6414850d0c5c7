"""The kernels of one parameter: one per observed trial, in the trials' order, then the prior.

    n       observed values; kernels 0 … n-1 stand on them, kernel n is the prior
    C       candidates
    mu      [n+1] where a kernel stands (the logarithm, for a parameter with `log`)
    sigma   [n+1] its width: the larger gap to its neighbours among the n sorted values, within
            [range / min(100, n + 2), range]; the prior's is the range
    norm    [n+1] what to subtract from the logarithm of the uncut density

The widths follow Optuna 5.0's `_ParzenEstimator` (no endpoints, with magic clip). One value more
changes the widths of its two neighbours only, once n is at least 98; that is what makes keeping
the kernels cheaper than building them for every ask. Equal values take their places by trial, not
by the chance of an unstable sort.
"""

import math
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner_service.search.samplers.tpe.column import Column
from tuner_service.search.samplers.tpe.gaussian import (
    LOG_SQRT_2PI,
    Floats,
    log_cell_mass,
    log_distant_cell_mass,
    log_mass,
    quantile,
)

STEADY: Final = 98
"""From so many observations on, the least sigma no longer depends on their number."""

Positions = NDArray[np.intp]


class Kernels(Protocol):
    """One parameter's kernels. Values are Optuna's internal representation (floats)."""

    def rebuild(self, values: Floats) -> None:
        """Hold kernels on these values, in the trials' order."""

    def insert(self, position: int, value: float) -> None:
        """Add one kernel; only when there are at least `STEADY` before and after."""

    def remove(self, position: int) -> None:
        """Take one kernel out; only when there are at least `STEADY` before and after."""

    @property
    def norm(self) -> Floats:
        """[n+1] to be subtracted from what `add_log_density` adds."""

    def add_log_density(self, candidates: Floats, out: Floats, scratch: Floats) -> None:
        """Add each kernel's log density at each candidate.

        Args:
            candidates: [C].
            out: [C, n+1].
            scratch: [C, n+1], overwritten.
        """


class NumericKernels:
    """Normal kernels cut to the parameter's range; with a step, their mass in each cell."""

    def __init__(self, distribution: FloatDistribution | IntDistribution) -> None:
        self.log = distribution.log
        self.step = distribution.step
        self.lowest, self.highest = distribution.low, distribution.high
        half = 0.0 if distribution.step is None else 0.5 * distribution.step
        low, high = distribution.low - half, distribution.high + half
        self.low = math.log(low) if self.log else low
        self.high = math.log(high) if self.log else high
        self._mu, self._sigma = Column(np.float64), Column(np.float64)
        self._norm = Column(np.float64)
        self._sorted, self._order = Column(np.float64), Column(np.intp)
        self._runs: tuple[Floats, Floats, Positions] | None = None
        self.rebuild(np.empty(0))

    @property
    def norm(self) -> Floats:
        """[n+1]."""
        return self._norm.values

    @property
    def mu(self) -> Floats:
        """[n+1]."""
        return self._mu.values

    @property
    def sigma(self) -> Floats:
        """[n+1]."""
        return self._sigma.values

    def rebuild(self, values: Floats) -> None:
        """Hold kernels on these values."""
        self._runs = None
        mu = np.log(values) if self.log else values
        order = np.argsort(mu, kind="stable")
        self._order.replace(order)
        self._sorted.replace(mu[order])
        self._mu.replace(np.append(mu, 0.5 * (self.low + self.high)))
        self._sigma.replace(np.full(len(mu) + 1, self.high - self.low))
        self._norm.replace(np.zeros(len(mu) + 1))
        if len(mu):
            self._widen(np.arange(len(mu)))
        self._norm_of(np.array([len(mu)]))

    def insert(self, position: int, value: float) -> None:
        """Add one kernel."""
        mu = math.log(value) if self.log else value
        order = self._order.values
        if position < len(order):
            order[order >= position] += 1
        rank = self._rank(position, mu)
        self._order.insert(rank, position)
        self._sorted.insert(rank, mu)
        self._mu.insert(position, mu)
        self._sigma.insert(position, 1.0)
        self._norm.insert(position, 0.0)
        self._widen(np.arange(max(rank - 1, 0), min(rank + 2, len(self._order))))

    def remove(self, position: int) -> None:
        """Take one kernel out."""
        rank = self._rank(position, float(self._mu.values[position]))
        self._order.remove(rank)
        self._sorted.remove(rank)
        order = self._order.values
        order[order > position] -= 1
        for column in (self._mu, self._sigma, self._norm):
            column.remove(position)
        self._widen(np.arange(max(rank - 1, 0), min(rank + 1, len(self._order))))

    def _rank(self, position: int, mu: float) -> int:
        """Return the place among the sorted values, equal ones by position."""
        first = int(np.searchsorted(self._sorted.values, mu, side="left"))
        last = int(np.searchsorted(self._sorted.values, mu, side="right"))
        return first + int(np.searchsorted(self._order.values[first:last], position))

    def _widen(self, ranks: Positions) -> None:
        """Set sigma and norm of the kernels at these places among the sorted values."""
        self._runs = None
        count, known = len(self._sorted), self._sorted.values
        here = known[ranks]
        left = here - np.where(ranks > 0, known[ranks - 1], self.low)
        right = np.where(ranks < count - 1, known[(ranks + 1) % count], self.high) - here
        widths = np.maximum(left, right)
        if count >= 2:
            widths = np.where(ranks == 0, right, np.where(ranks == count - 1, left, widths))
        span = self.high - self.low
        positions = self._order.values[ranks]
        self._sigma.values[positions] = np.clip(widths, span / min(100.0, count + 2.0), span)
        self._norm_of(positions)

    def _norm_of(self, positions: Positions) -> None:
        mu, sigma = self.mu[positions], self.sigma[positions]
        norm = log_mass((self.low - mu) / sigma, (self.high - mu) / sigma)
        if self.step is None:
            norm += np.log(sigma) + LOG_SQRT_2PI
        self._norm.values[positions] = norm

    def add_log_density(self, candidates: Floats, out: Floats, scratch: Floats) -> None:
        """Add each kernel's uncut log density, or with a step the log mass of the value's cell."""
        if self.step is not None:
            self._add_cells(candidates, out)
            return
        x = np.log(candidates) if self.log else candidates
        np.subtract.outer(x, self.mu, out=scratch)
        np.multiply(scratch, math.sqrt(0.5) / self.sigma, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        np.subtract(out, scratch, out=out)

    def _add_cells(self, candidates: Floats, out: Floats) -> None:
        mu, sigma, run_of = self._distinct()
        values, which = np.unique(candidates, return_inverse=True)
        half = 0.5 * (self.step or 0.0)
        left, right = values - half, values + half
        if self.log:
            left, right = np.log(left), np.log(right)
        inside = self.low <= mu.min() and mu.max() <= self.high
        cell_mass = log_cell_mass if inside else log_distant_cell_mass
        masses = cell_mass(left, right, mu, sigma)
        for row, value in enumerate(which):
            out[row] += masses[value].take(run_of)

    def _distinct(self) -> tuple[Floats, Floats, Positions]:
        """Return the distinct (mu, sigma) and, [n+1], which of them each kernel has."""
        if self._runs is None:
            order = np.append(self._order.values, len(self._order))
            mu, sigma = self.mu[order], self.sigma[order]
            first = np.ones(len(order), dtype=bool)
            first[1:] = (mu[1:] != mu[:-1]) | (sigma[1:] != sigma[:-1])
            run_of = np.empty(len(order), dtype=np.intp)
            run_of[order] = np.cumsum(first) - 1
            self._runs = mu[first], sigma[first], run_of
        return self._runs

    def draw(self, chosen: Positions, places: Floats) -> Floats:
        """Return a value from each chosen kernel, at `places` in [0, 1) of its mass."""
        mu, sigma = self.mu[chosen], self.sigma[chosen]
        values = quantile(places, (self.low - mu) / sigma, (self.high - mu) / sigma) * sigma + mu
        if self.log:
            values = np.exp(values)
        if self.step is not None:
            steps = np.round((values - self.lowest) / self.step)
            values = self.lowest + steps * self.step
        result: Floats = np.clip(values, self.lowest, self.highest)
        return result


class CategoricalKernels:
    """A kernel gives its own choice the weight 1 + 1/(n+1), and 1/(n+1) to every other."""

    def __init__(self, distribution: CategoricalDistribution) -> None:
        self._choices = len(distribution.choices)
        self._observed = Column(np.intp)

    @property
    def norm(self) -> Floats:
        """[n+1] zeros: the densities are normalised as they are."""
        return np.zeros(len(self._observed) + 1)

    def rebuild(self, values: Floats) -> None:
        """Hold kernels on these indices of choices."""
        self._observed.replace(values.astype(np.intp))

    def insert(self, position: int, value: float) -> None:
        """Add one kernel."""
        self._observed.insert(position, int(value))

    def remove(self, position: int) -> None:
        """Take one kernel out."""
        self._observed.remove(position)

    def add_log_density(self, candidates: Floats, out: Floats, scratch: Floats) -> None:
        """Add the logarithm of each kernel's weight of each candidate."""
        other, own = (math.log(weight) for weight in self._weights())
        values, which = np.unique(candidates, return_inverse=True)
        terms = np.full((len(values), len(self._observed) + 1), -math.log(self._choices))
        for term, value in zip(terms, values, strict=True):
            term[:-1] = np.where(self._observed.values == int(value), own, other)
        for row, value in enumerate(which):
            out[row] += terms[value]

    def draw(self, chosen: Positions, places: Floats) -> Floats:
        """Return a choice's index from each chosen kernel, at `places` in [0, 1)."""
        other, own = self._weights()
        count = len(self._observed)
        weights = np.full((len(chosen), self._choices), other)
        rows = np.flatnonzero(chosen < count)
        weights[rows, self._observed.values[chosen[rows]]] = own
        weights[chosen == count] = 1.0 / self._choices
        upto = np.cumsum(weights, axis=1)
        upto[:, -1] = 1.0
        index: Floats = np.sum(upto < places[:, np.newaxis], axis=1).astype(np.float64)
        return index

    def _weights(self) -> tuple[float, float]:
        """Return a kernel's weight of a choice that is not its own, and of its own."""
        share = 1.0 / (len(self._observed) + 1)
        total = 1.0 + self._choices * share
        return share / total, (1.0 + share) / total


def kernels_of(distribution: BaseDistribution) -> NumericKernels | CategoricalKernels:
    """Return empty kernels for a parameter."""
    match distribution:
        case CategoricalDistribution():
            return CategoricalKernels(distribution)
        case FloatDistribution() | IntDistribution():
            return NumericKernels(distribution)
        case _:
            raise TypeError(f"no kernels for a parameter of type {type(distribution).__name__}")
