"""What the benchmarks share: interleaved rounds, medians, and one line per figure.

Machines drift (turbo, neighbours, caches), so what is compared takes turns within one run, round
by round, and the figure is the median over the rounds of the ratio within a round.
"""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Rates = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One measured figure and its goal.

    Attributes:
        at_least: Whether the goal is a lower bound; else it is an upper one.
        note: What was compared, in a few words.
    """

    name: str
    measured: float
    goal: float
    unit: str = "x"
    at_least: bool = True
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        if self.at_least:
            return self.measured >= self.goal
        return self.measured <= self.goal

    def line(self) -> str:
        """Return the figure as `make bench` prints it: name, measured, goal."""
        sign = ">=" if self.at_least else "<="
        mark = "" if self.reached else "   FELL SHORT"
        measured = f"{self.measured:.3g} {self.unit}"
        goal = f"{sign} {self.goal:g} {self.unit}"
        note = f"   ({self.note})" if self.note else ""
        return f"{self.name:<52} {measured:>12}   {goal:<12}{mark}{note}"


def interleave(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """Return each contestant's result in every round; they take turns within a round."""
    results: Rates = {name: [] for name in contestants}
    for number in range(rounds):
        # Every other round runs backwards, so that none always runs behind the same other.
        names = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        for name in names:
            results[name].append(contestants[name]())
    return results


def median_ratio(results: Rates, name: str, baseline: str) -> float:
    """Return the median over the rounds of `name` relative to `baseline`."""
    return statistics.median(
        ours / theirs for ours, theirs in zip(results[name], results[baseline], strict=True)
    )


def describe(results: Rates, unit: str) -> list[str]:
    """Return one line per contestant: median and range."""
    return [
        f"  {name:<28} {statistics.median(values):9.2f} {unit}"
        f"   ({min(values):.2f} to {max(values):.2f})"
        for name, values in results.items()
    ]


def report(figures: Sequence[Figure]) -> None:
    """Print figures, one line each."""
    for figure in figures:
        print(figure.line(), flush=True)


def one_thread() -> None:
    """Set BLAS to one thread for this process and its children; before NumPy is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
