"""Learning rates of one epoch's steps, as float64, computed before the epoch.

    S   optimizer steps per epoch
    E   epochs of the schedule: the trial's, less those of the warm-up
    e   epoch of the schedule, from 0
    t   step of the schedule, from 0: e·S … e·S + S - 1

Step, exponential and inverse-time decay change the rate between epochs, cosine and one-cycle at
every step, each as torch's scheduler of that name, stepped per epoch or per step. `plateau` is
constant here: what the objective has scaled the rate to stands in the trial's progress.

A warm-up of W epochs comes before: its step t has (t + 1) / (W·S) of the learning rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner_service.definition import catalogue

Options = Mapping[str, Any]
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Where an epoch stands: e, E, S."""

    epoch: int
    epochs: int
    steps: int

    @property
    def numbers(self) -> Vector:
        """[S] t of each step."""
        return self.epoch * self.steps + np.arange(self.steps, dtype=np.float64)


def _constant(options: Options, span: Span) -> Vector:
    del options
    return np.ones(span.steps)


def _step(options: Options, span: Span) -> Vector:
    # γ^⌊e / step_size⌋, the same in each step of an epoch.
    drops = span.epoch // int(options["step_size"])
    return np.full(span.steps, float(options["gamma"]) ** drops)


def _exponential(options: Options, span: Span) -> Vector:
    return np.full(span.steps, float(options["gamma"]) ** span.epoch)


def _inverse_time(options: Options, span: Span) -> Vector:
    return np.full(span.steps, 1.0 / (1.0 + float(options["decay_rate"]) * span.epoch))


def _cosine(options: Options, span: Span) -> Vector:
    """Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts."""
    end = float(options["min_factor"])
    return _anneal(1.0, end, span.numbers / (span.epochs * span.steps))


def _one_cycle(options: Options, span: Span) -> Vector:
    """Source: Smith and Topin 2018, "Super-Convergence", in torch's two cosine phases."""
    start = 1.0 / float(options["div_factor"])
    end = start / float(options["final_div_factor"])
    total = span.epochs * span.steps
    # The step at which the rate is highest; torch counts it from 0, hence the 1.
    peak = float(options["pct_start"]) * total - 1
    up = span.numbers / peak if peak > 0 else np.ones(span.steps)
    left = total - 1 - peak
    down = (span.numbers - peak) / left if left > 0 else np.ones(span.steps)
    rising = span.numbers <= peak
    return np.where(rising, _anneal(start, 1.0, up), _anneal(1.0, end, down))


def _anneal(start: float, end: float, share: Vector) -> Vector:
    # From `start` at share 0 to `end` at share 1, along half a cosine.
    return end + (start - end) * 0.5 * (1.0 + np.cos(np.pi * share))


SCHEDULES: dict[str, Callable[[Options, Span], Vector]] = {
    "constant": _constant,
    "plateau": _constant,
    "step": _step,
    "exponential": _exponential,
    "inverse_time": _inverse_time,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}


def learning_rates(schedule: Options, base: float, span: Span) -> Vector:
    """Return the [S] learning rates of an epoch.

    Args:
        schedule: `type` and its options; what is missing takes its default.
        base: The trial's learning rate, which the schedule scales.
        span: Where the epoch stands in the trial, the warm-up included.
    """
    kind = str(schedule["type"])
    given = {name: value for name, value in schedule.items() if name != "type"}
    options = catalogue.SCHEDULES[kind].complete(given)
    warmup = int(options.get("warmup_epochs", 0))  # one_cycle rises by itself
    if span.epoch < warmup:
        # From 1/(W·S), not from 0: a first step of rate 0 would be a batch that trains nothing.
        return base * (span.numbers + 1) / (warmup * span.steps)
    after = Span(span.epoch - warmup, span.epochs - warmup, span.steps)
    return base * SCHEDULES[kind](options, after)
