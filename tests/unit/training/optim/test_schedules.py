"""Schedules against torch's schedulers, stepped as torch's users step them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as theirs

from tuner_service.definition import catalogue
from tuner_service.definition.catalogue import SCHEDULES as CATALOGUED
from workers.training.optim.schedules import SCHEDULES, Span, learning_rates

BASE, EPOCHS, STEPS = 0.3, 7, 5
TOTAL = EPOCHS * STEPS

Scheduler = theirs.LRScheduler


def ours(schedule: dict[str, Any], epochs: int = EPOCHS, steps: int = STEPS) -> list[float]:
    spans = [Span(epoch, epochs, steps) for epoch in range(epochs)]
    return np.concatenate([learning_rates(schedule, BASE, span) for span in spans]).tolist()


def torchs(
    make: Callable[[Optimizer], Scheduler], *, per_step: bool, epochs: int = EPOCHS
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        for _ in range(STEPS):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step()
    return rates


CASES: list[tuple[dict[str, Any], Callable[[Optimizer], Scheduler], bool]] = [
    ({"type": "constant"}, lambda o: theirs.ConstantLR(o, 1.0), False),
    (
        {"type": "step", "step_size": 3, "gamma": 0.5},
        lambda o: theirs.StepLR(o, 3, 0.5),
        False,
    ),
    ({"type": "exponential", "gamma": 0.8}, lambda o: theirs.ExponentialLR(o, 0.8), False),
    (
        {"type": "inverse_time", "decay_rate": 0.4},
        lambda o: theirs.LambdaLR(o, lambda e: 1 / (1 + 0.4 * e)),
        False,
    ),
    (
        {"type": "cosine", "min_factor": 0.1},
        lambda o: theirs.CosineAnnealingLR(o, TOTAL, eta_min=0.1 * BASE),
        True,
    ),
    (
        {"type": "one_cycle", "pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 50.0},
        lambda o: theirs.OneCycleLR(
            o, BASE, TOTAL, pct_start=0.4, div_factor=10.0, final_div_factor=50.0,
            cycle_momentum=False,
        ),
        True,
    ),
    ({"type": "one_cycle"}, lambda o: theirs.OneCycleLR(o, BASE, TOTAL, cycle_momentum=False),
     True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "make", "per_step"),
    CASES,
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_rates_equal_torchs(
    schedule: dict[str, Any], make: Callable[[Optimizer], Scheduler], per_step: bool
) -> None:
    np.testing.assert_allclose(ours(schedule), torchs(make, per_step=per_step), rtol=1e-12)


def test_every_schedule_has_a_reference() -> None:
    in_the_engine = {"plateau"}  # it follows the objective: test_engine.py holds it against torch's
    assert {schedule["type"] for schedule, _, _ in CASES} | in_the_engine == set(CATALOGUED)


def test_warm_up_comes_before_the_schedule_like_torchs_sequential() -> None:
    warm = 2 * STEPS

    def make(optimizer: Optimizer) -> Scheduler:
        ramp = theirs.LambdaLR(optimizer, lambda t: (t + 1) / warm)
        after = theirs.CosineAnnealingLR(optimizer, TOTAL - warm)
        return theirs.SequentialLR(optimizer, [ramp, after], milestones=[warm])

    expected = torchs(make, per_step=True)
    np.testing.assert_allclose(ours({"type": "cosine", "warmup_epochs": 2}), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 9), (9, 1), (3, 2)])
def test_every_rate_is_finite_positive_and_float64(kind: str, epochs: int, steps: int) -> None:
    for warmup in (0, 1, 20):
        knows = catalogue.SCHEDULES[kind].option("warmup_epochs") is not None
        schedule = {"type": kind, **({"warmup_epochs": warmup} if knows else {})}
        vectors = [learning_rates(schedule, BASE, Span(e, epochs, steps)) for e in range(epochs)]
        rates = np.concatenate(vectors)
        assert rates.dtype == np.float64
        assert len(rates) == epochs * steps
        assert np.isfinite(rates).all()
        assert (rates > 0).all()
        assert (rates <= BASE * (1 + 1e-12)).all()


@pytest.mark.parametrize("kind", CATALOGUED)
def test_defaults_are_the_catalogues(kind: str) -> None:
    defaults = {option.name: option.default for option in CATALOGUED[kind].options}
    assert ours({"type": kind}, epochs=12) == ours({"type": kind, **defaults}, epochs=12)
