"""A fused step that is slower than the plain one is left soon, and its trials lose nothing."""

import json

import pytest
import torch

from tests.unit.training import builders
from workers.training.engine.engine import Engine
from workers.training.steps import probe
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.plain import PlainStep
from workers.training.steps.select import BackendSelector

CPU = torch.device("cpu")
TRIALS = 4
NETWORK = {"type": "transformer", "width": 4, "heads": 1, "layers": 1}


class Clock:
    """Moved by what the steps are said to take, and by nothing else."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A fused step takes a second however few its lanes, a plain one a tenth; the probe errs."""
    clock, trained = Clock(), {FusedStep: FusedStep.train_epoch, PlainStep: PlainStep.train_epoch}

    def slow(kind, seconds):
        def train_epoch(step, orders, rates):
            clock.now += seconds * rates.shape[1]
            return trained[kind](step, orders, rates)

        monkeypatch.setattr(kind, "train_epoch", train_epoch)

    slow(FusedStep, 1.0)
    slow(PlainStep, 0.1)
    monkeypatch.setattr(probe, "_timed", lambda step, rows, steps: 0.1 * steps)
    return clock


@pytest.fixture
def fused_seconds(monkeypatch, clock):
    spent = [0.0]
    train_epoch = FusedStep.train_epoch

    def counted(step, orders, rates):
        begun = clock()
        try:
            return train_epoch(step, orders, rates)
        finally:
            spent[0] += clock() - begun

    monkeypatch.setattr(FusedStep, "train_epoch", counted)
    return spent


def spec_of(seed):
    return builders.spec(network=NETWORK, epochs=3, seed=seed, fuse=True, precision="float64")


def run(selector, clock, folder, trials=TRIALS):
    engine = Engine("cpu", steps=selector, clock=clock)
    specs = [spec_of(seed) for seed in range(trials)]
    starts = [builders.start(n, spec, folder=folder / str(n)) for n, spec in enumerate(specs)]
    return builders.run_all(engine, starts)


def selector_of(cache, clock):
    return BackendSelector(CPU, cache=cache, compile=False, clock=clock)


def test_a_fused_step_slower_than_plain_is_not_kept(tmp_path, clock, fused_seconds):
    events = run(selector_of(tmp_path / "cache", clock), clock, tmp_path)
    for trial in range(TRIALS):
        ended = builders.only(events, trial, "finished")
        assert ended.backend == "plain"
        assert "does not pay" in ended.backend_reason
    assert 0 < fused_seconds[0] <= 10


def test_its_trials_go_on_where_they_were(tmp_path, clock):
    events = run(selector_of(tmp_path / "cache", clock), clock, tmp_path / "fused")
    plain = Engine("cpu")
    alone = builders.run_all(plain, [builders.start(3, spec_of(3), folder=tmp_path / "plain")])
    mine, expected = (
        [event.record["val_loss"] for event in builders.of(some, 3, "reported")]
        for some in (events, alone)
    )
    assert mine == pytest.approx(expected, rel=1e-9)


def test_a_wrong_choice_is_remembered_over_restarts(tmp_path, clock, fused_seconds):
    cache = tmp_path / "cache"
    run(selector_of(cache, clock), clock, tmp_path / "first")
    (kept,) = cache.glob("speeds-*.json")
    assert any(name.startswith("traced") for name in json.loads(kept.read_text()))
    fused_seconds[0] = 0.0
    events = run(selector_of(cache, clock), clock, tmp_path / "second")
    assert fused_seconds[0] == 0.0
    assert "does not pay" in builders.only(events, 0, "finished").backend_reason


def test_what_was_kept_and_cannot_be_read_is_measured_again(tmp_path, clock, fused_seconds):
    cache = tmp_path / "cache"
    run(selector_of(cache, clock), clock, tmp_path / "first")
    (kept,) = cache.glob("speeds-*.json")
    kept.write_text('{"plain 1": ')
    fused_seconds[0] = 0.0
    run(selector_of(cache, clock), clock, tmp_path / "second")
    assert fused_seconds[0] > 0
