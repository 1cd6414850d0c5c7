"""The engine with real fused steps: the same trials as with the plain step, within rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.builders import dataset, mlp, of, only, run_all, spec, start
from tuner_service.definition.trial_spec import TrialSpec
from workers.protocol.messages import Event
from workers.training.engine.engine import Engine
from workers.training.steps.select import BackendSelector

KINDS = ("sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw")


def fused() -> Engine:
    return Engine("cpu", steps=BackendSelector(torch.device("cpu"), compile=False, probe=False))


def trial(n: int, **changes: Any) -> TrialSpec:
    fields = {
        "dataset": dataset("wine"),
        "network": mlp(dropout=0.1 * (n % 3)),
        "optimizer": {"type": KINDS[n % 6], "learning_rate": 0.01},
        "schedule": {"type": ("constant", "cosine")[n % 2]},
        "label_smoothing": 0.1 * (n % 2),
        "epochs": 3 + n % 4,
        "precision": "float64",
        "metrics": ("accuracy", "log_loss"),
        "fuse": True,
        "seed": n,
    }
    return spec(**(fields | changes))


def assert_same(events: list[Any], expected: list[Any], n: int) -> None:
    """Hold a trial's curve and result against another's, to float64's rounding."""
    ours, theirs = of(events, n, "reported"), of(expected, n, "reported")
    assert [e.step for e in ours] == [e.step for e in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for key in ("train_loss", "val_loss", "val_log_loss", "val_accuracy", "learning_rate"):
            assert one.record[key] == pytest.approx(other.record[key], rel=1e-9), key
    end, same = only(events, n, "finished"), only(expected, n, "finished")
    assert end.values == pytest.approx(same.values, rel=1e-9)
    for key in ("test_loss", "best_step", "epochs_run", "parameter_count"):
        assert end.record[key] == pytest.approx(same.record[key], rel=1e-9), key


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("plain")
    return run_all(Engine("cpu"), [start(n, trial(n), folder=folder) for n in range(12)])


def test_fused_trials_equal_plain_trials(tmp_path: Path, plain: list[Any]) -> None:
    events = run_all(fused(), [start(n, trial(n), folder=tmp_path) for n in range(12)])
    for n in range(12):
        assert_same(events, plain, n)
        assert only(events, n, "finished").backend == "traced"


def test_early_stopping_keeps_each_lanes_best(tmp_path: Path) -> None:
    stopping = {"patience": 3, "min_delta": 0.0}
    specs = [trial(n, epochs=30, early_stopping=stopping) for n in range(6)]
    starts = [start(n, one, folder=tmp_path) for n, one in enumerate(specs)]
    expected, events = run_all(Engine("cpu"), starts), run_all(fused(), starts)
    assert len({only(events, n, "finished").record["best_step"] for n in range(6)}) > 1
    for n in range(6):
        assert_same(events, expected, n)


def test_prunable_trials_wait_while_others_go_on(tmp_path: Path, plain: list[Any]) -> None:
    engine = fused()
    for n in range(4):
        engine.submit(start(n, trial(n), folder=tmp_path, prunable=n < 2))
    events: list[Any] = []
    while not engine.idle:
        if not engine.runnable:
            for n in (0, 1):
                engine.allow(n, len(of(events, n, "reported")))
        events += engine.advance()
    for n in range(4):
        assert_same(events, plain, n)
    last = max(i for i, e in enumerate(events) if e.run >= 2)
    assert last < min(i for i, e in enumerate(events) if e.type == "finished" and e.run < 2)


@pytest.mark.parametrize("first", ["fused", "plain"])
def test_a_checkpoint_of_one_step_continues_in_the_other(
    tmp_path: Path, plain: list[Any], first: str
) -> None:
    engines = [fused(), Engine("cpu")]
    if first == "plain":
        engines.reverse()
    for n in range(6):
        engines[0].submit(start(n, trial(n), folder=tmp_path))
    before: list[Any] = []
    while not of(before, 5, "reported"):
        before += engines[0].advance()
    before += engines[0].shutdown()
    left = [n for n in range(6) if not of(before, n, "finished")]
    assert left
    starts = [start(n, trial(n), folder=tmp_path, resume=100) for n in left]
    after = before + run_all(engines[1], starts)
    for n in range(6):
        assert_same(after, plain, n)


def test_divergence_in_one_lane_changes_no_other_bit(tmp_path: Path) -> None:
    calm = [start(n, trial(n), folder=tmp_path) for n in (1, 2)]
    wild = {"type": "sgd", "learning_rate": 1e200, "momentum": 0.9}
    hot = start(9, trial(9, optimizer=wild), folder=tmp_path)
    tame = start(9, trial(9), folder=tmp_path)
    expected, events = (run_all(fused(), [calm[0], third, calm[1]]) for third in (tame, hot))
    assert only(events, 9, "failed").failure.kind == "diverged"

    def record(event: Event) -> dict[str, Any]:
        # Slices of an epoch end by the clock, and their losses are added up.
        loss = round(event.record["train_loss"], 12)
        return {**event.record, "seconds": 0, "train_loss": loss}

    for n in (1, 2):
        records = [[record(e) for e in of(found, n, "reported")] for found in (events, expected)]
        assert records[0] == records[1]
