"""The engine: turns, queues, lanes, ends of trials, with plain steps of one and of many lanes."""

import json
import math
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.unit.training.builders import (
    dataset,
    mlp,
    of,
    only,
    regression,
    run_all,
    spec,
    start,
)
from tests.unit.training.lanes_of_plain import LanesOf, PlainLanes
from workers.training.data import DatasetCache
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.engine.group_trainer import GroupTrainer
from workers.training.nets import networks
from workers.training.steps.factory import PlainStepFactory
from workers.training.steps.groups import GroupSpec
from workers.training.steps.step import TrainStep
from workers.training.trials.checkpoints import read_tensors

STOPPING = {"patience": 2, "min_delta": 0.0}
ENDLESS = spec(epochs=10_000)


class Clock:
    """Seconds that pass only when told, or a little with every look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture(params=[1, 3], ids=["one lane", "three lanes"])
def steps(request: pytest.FixtureRequest) -> Any:
    return PlainStepFactory() if request.param == 1 else LanesOf(request.param)


@pytest.fixture
def engine(steps: Any) -> Engine:
    return Engine("cpu", steps=steps)


@pytest.mark.parametrize("place", ["_prepare", "_train_slice"])
def test_whose_turn_it_is_can_be_seen_from_outside(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    owner: Any = Engine if place == "_prepare" else GroupTrainer
    inside, seen = getattr(owner, place), []

    def watched(self: Any, *arguments: Any) -> Any:
        seen.append(engine.turn)
        return inside(self, *arguments)

    monkeypatch.setattr(owner, place, watched)
    run_all(engine, [start(7, folder=tmp_path), start(8, spec(batch_size=5), folder=tmp_path)])
    assert {tuple(turn) for turn in seen} == {(7,), (8,)}
    assert engine.turn == []


def curve(events: list[Any], trial: int) -> list[dict[str, Any]]:
    """Return a trial's epoch records without what depends on time."""
    return [
        {k: v for k, v in e.record.items() if k != "seconds"} for e in of(events, trial, "reported")
    ]


def until(engine: Engine, reached: Callable[[list[Any]], bool]) -> list[Any]:
    events: list[Any] = []
    for _ in range(10_000):
        if reached(events):
            return events
        events += engine.advance()
    raise AssertionError("never reached")


def reported(trial: int, step: int) -> Callable[[list[Any]], bool]:
    return lambda events: any(e.step >= step for e in of(events, trial, "reported"))


# What a trial says ------------------------------------------------------------------------


def test_a_trial_starts_reports_every_epoch_and_finishes(engine: Engine, tmp_path: Path) -> None:
    events = run_all(engine, [start(1, folder=tmp_path)])
    assert [e.type for e in events] == ["started", "reported", "reported", "reported", "finished"]
    assert events[0].group
    assert events[0].backend
    record = events[1].record
    assert list(record) == [
        "step", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds",
    ]  # fmt: skip
    assert record["learning_rate"] == 0.01
    assert record["seconds"] > 0
    assert events[1].value == record["val_accuracy"]
    final = events[-1]
    assert final.values == [events[-2].record["val_accuracy"]]
    assert {
        "test_loss", "test_accuracy", "parameter_count", "epochs_run", "best_step", "seconds",
        "samples_per_second", "peak_memory_bytes", "device", "versions", "data_hash", "seed",
    } <= set(final.record)  # fmt: skip
    assert final.record["parameter_count"] == 4 * 16 + 16 + 16 * 3 + 3
    assert final.record["epochs_run"] == 3
    counts = final.record["test_confusion"]
    right = sum(counts[c][c] for c in range(3)) / 30
    assert [sum(row) for row in counts] == [10, 10, 10]
    assert right == pytest.approx(final.record["test_accuracy"])
    json.dumps([asdict(e) for e in events], allow_nan=False)


def test_a_regression_trial_has_its_metrics(engine: Engine, tmp_path: Path) -> None:
    events = run_all(engine, [start(1, regression(), folder=tmp_path)])
    record = events[1].record
    assert record["val_loss"] == pytest.approx(record["val_mse"], rel=1e-6)
    final = only(events, 1, "finished").record
    assert {"test_mse", "test_r2"} <= set(final)
    assert "test_confusion" not in final


@pytest.mark.parametrize(
    ("key", "check"),
    [
        ("parameter_count", lambda final, last: final == 131),
        ("val_loss", lambda final, last: final == last["val_loss"]),
        ("train_loss", lambda final, last: final == last["train_loss"]),
        ("seconds", lambda final, last: final > last["seconds"]),
    ],
)
def test_any_record_can_be_the_objective(
    engine: Engine, tmp_path: Path, key: str, check: Callable[[float, dict[str, Any]], bool]
) -> None:
    objective = ((key, "minimize"), ("val_accuracy", "maximize"))
    events = run_all(engine, [start(1, spec(objective=objective), folder=tmp_path)])
    last = of(events, 1, "reported")[-1]
    final = only(events, 1, "finished").values
    assert check(final[0], last.record)
    assert final[1] == last.record["val_accuracy"]


def test_without_a_test_part_there_are_no_test_metrics(engine: Engine, tmp_path: Path) -> None:
    no_test = spec(dataset=dataset("iris", {"test": 0.0}))
    record = only(run_all(engine, [start(1, no_test, folder=tmp_path)]), 1, "finished").record
    assert not [key for key in record if key.startswith("test_")]


def test_metrics_may_differ_within_a_group(tmp_path: Path) -> None:
    starts = [
        start(1, spec(metrics=("accuracy", "f1_macro")), folder=tmp_path),
        start(2, spec(metrics=("accuracy", "auroc", "loss")), folder=tmp_path),
    ]
    events = run_all(Engine("cpu", steps=LanesOf(2)), starts)
    assert "val_f1_macro" in of(events, 1, "reported")[0].record
    assert "val_auroc" not in of(events, 1, "reported")[0].record
    assert "val_auroc" in of(events, 2, "reported")[0].record


# Lanes, groups and turns ------------------------------------------------------------------


def test_lanes_and_neighbours_do_not_change_a_trial(tmp_path: Path) -> None:
    specs = {t: spec(seed=t, epochs=2 + t % 3, network=mlp(dropout=0.1 * t)) for t in range(1, 6)}
    alone = {}
    for trial, one in specs.items():
        alone[trial] = curve(run_all(Engine("cpu"), [start(trial, one, folder=tmp_path)]), trial)
    starts = [start(trial, one, folder=tmp_path) for trial, one in specs.items()]
    together = run_all(Engine("cpu", steps=LanesOf(2)), starts)
    for trial in specs:
        assert curve(together, trial) == alone[trial]


def test_a_lane_that_ends_is_refilled_at_the_next_epoch(tmp_path: Path) -> None:
    steps = LanesOf(2)
    starts = [
        start(t, spec(seed=t, epochs=e), folder=tmp_path) for t, e in [(1, 1), (2, 3), (3, 3)]
    ]
    events = run_all(Engine("cpu", steps=steps), starts)
    order = [(e.type, e.run) for e in events if e.type in ("started", "finished")]
    assert order == [
        ("started", 1), ("started", 2), ("finished", 1), ("started", 3), ("finished", 2),
        ("finished", 3),
    ]  # fmt: skip
    assert [len(lanes) for made in steps.made for lanes in made.epochs_of] == [2, 2, 2, 1]


def test_trials_of_different_structure_train_in_different_groups(tmp_path: Path) -> None:
    steps = LanesOf(4)
    variants = [
        spec(),
        spec(seed=2, optimizer={"type": "sgd", "learning_rate": 0.1, "momentum": 0.9}),
        spec(network=mlp(dropout=0.3), label_smoothing=0.1, l1=1e-4, gradient_clip=1.0),
        spec(network=mlp(hidden_units=8)),
        spec(batch_size=32),
        spec(dataset=dataset("iris", {"seed": 1})),
        spec(precision="float64"),
    ]
    starts = [start(t, one, folder=tmp_path) for t, one in enumerate(variants)]
    events = run_all(Engine("cpu", steps=steps), starts)
    groups = [only(events, t, "started").group for t in range(len(variants))]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 5


def test_groups_take_turns(tmp_path: Path) -> None:
    engine = Engine("cpu")
    starts = [start(1, spec(epochs=4), folder=tmp_path)]
    starts += [start(2, spec(epochs=4, batch_size=8), folder=tmp_path, study=2)]
    events = run_all(engine, starts)
    reports = [e.run for e in events if e.type == "reported"]
    assert reports == [1, 2, 1, 2, 1, 2, 1, 2]


def test_few_groups_at_once_but_every_study_gets_one(tmp_path: Path) -> None:
    engine = Engine("cpu", settings=EngineSettings(max_groups=2))
    widths = [mlp(hidden_units=u) for u in (4, 5, 6)]
    for trial, network in enumerate(widths):
        engine.submit(start(trial, spec(network=network, epochs=5), folder=tmp_path))
    engine.submit(start(3, spec(network=mlp(hidden_units=7)), folder=tmp_path, study=2))
    events = run_all(engine)
    first_reports = [e.run for e in events if e.type == "reported" and e.step == 1]
    ended_first = next(e.run for e in events if e.type == "finished")
    assert first_reports == [0, 1, 3, 2]
    assert ended_first == 3


def test_a_trial_alone_shares_the_board_with_none(tmp_path: Path) -> None:
    engine = Engine("cpu", steps=LanesOf(3))
    starts = [start(t, spec(seed=t), folder=tmp_path, exclusive=t == 2) for t in (1, 2, 3)]
    events = run_all(engine, starts)
    order = [(e.type, e.run) for e in events if e.type in ("started", "finished")]
    assert order == [(kind, t) for t in (1, 2, 3) for kind in ("started", "finished")]


def test_idle_and_runnable(engine: Engine, tmp_path: Path) -> None:
    assert engine.idle
    assert not engine.runnable
    engine.submit(start(1, folder=tmp_path))
    assert not engine.idle
    assert engine.runnable
    run_all(engine)
    assert engine.idle
    assert not engine.runnable


def test_an_epoch_in_slices_is_the_same_epoch(tmp_path: Path) -> None:
    digits = spec(dataset=dataset("digits"), batch_size=4, network=mlp(dropout=0.2))
    whole = curve(run_all(Engine("cpu", clock=Clock()), [start(1, digits, folder=tmp_path)]), 1)
    # With this clock every call seems to take a second, so that each slice is one step.
    engine = Engine("cpu", settings=EngineSettings(checkpoint_seconds=1e9), clock=Clock(tick=1.0))
    engine.submit(start(1, digits, folder=tmp_path))
    events: list[Any] = []
    turns = 0
    while not engine.idle:
        events += engine.advance()
        turns += 1
    assert turns > 500
    assert curve(events, 1) == whole


# Early stopping ---------------------------------------------------------------------------


def test_early_stopping_ends_with_the_best_epoch(engine: Engine, tmp_path: Path) -> None:
    # A rate at which the accuracy of iris soon stops to rise.
    stopping = spec(
        epochs=50, early_stopping=STOPPING, optimizer={"type": "adam", "learning_rate": 0.03}
    )
    model = tmp_path / "model.safetensors"
    begun = start(1, stopping, folder=tmp_path, model=str(model), keep_models=1)
    events = run_all(engine, [begun])
    values = [e.value for e in of(events, 1, "reported")]
    final = only(events, 1, "finished")
    best = max(values)
    assert final.values == [best]
    assert final.record["best_step"] == values.index(best) + 1
    assert len(values) == final.record["best_step"] + 2 < 50
    assert final.model == str(model)


def test_accuracy_of_the_best_epoch_is_that_of_a_trial_that_ends_there(tmp_path: Path) -> None:
    adam = {"type": "adam", "learning_rate": 0.03}
    stopping = spec(epochs=50, early_stopping=STOPPING, optimizer=adam)
    final = only(run_all(Engine("cpu"), [start(1, stopping, folder=tmp_path)]), 1, "finished")
    short = spec(epochs=final.record["best_step"], optimizer=adam)
    same = only(run_all(Engine("cpu"), [start(2, short, folder=tmp_path)]), 2, "finished")
    for key in ("test_accuracy", "test_loss"):
        assert final.record[key] == same.record[key]


def test_the_best_epoch_survives_a_move_to_another_step(tmp_path: Path) -> None:
    adam = {"type": "adam", "learning_rate": 0.03}
    stopping = spec(epochs=50, early_stopping={"patience": 6, "min_delta": 0.0}, optimizer=adam)
    alone = run_all(Engine("cpu"), [start(1, stopping, folder=tmp_path)])
    best = only(alone, 1, "finished").record["best_step"]
    steps = LanesOf(2)
    engine = Engine("cpu", steps=steps)
    engine.submit(start(1, stopping, folder=tmp_path))
    events = until(engine, reported(1, best + 2))
    engine.submit(start(2, spec(seed=2), folder=tmp_path))  # brings the group to two lanes
    events += run_all(engine)
    assert [made.lanes for made in steps.made][:2] == [1, 2]
    final, expected = only(events, 1, "finished"), only(alone, 1, "finished")
    assert final.record["best_step"] == best
    for key in ("test_loss", "test_accuracy"):
        assert final.record[key] == expected.record[key]


def test_min_delta_counts_small_gains_as_none(engine: Engine, tmp_path: Path) -> None:
    slow = spec(
        epochs=30,
        optimizer={"type": "sgd", "learning_rate": 1e-6},
        objective=(("val_loss", "minimize"),),
        early_stopping={"patience": 3, "min_delta": 0.1},
    )
    events = run_all(engine, [start(1, slow, folder=tmp_path)])
    assert len(of(events, 1, "reported")) == 4


def test_without_early_stopping_the_last_epoch_counts(engine: Engine, tmp_path: Path) -> None:
    rough = spec(epochs=12, optimizer={"type": "sgd", "learning_rate": 1.0, "momentum": 0.9})
    events = run_all(engine, [start(1, rough, folder=tmp_path)])
    values = [e.value for e in of(events, 1, "reported")]
    assert only(events, 1, "finished").values == [values[-1]]


def test_a_plateau_schedule_follows_the_objective_like_torchs(tmp_path: Path) -> None:
    schedule = {"type": "plateau", "factor": 0.5, "patience": 1, "min_delta": 0.02}
    schedule["min_factor"] = 0.3
    one = spec(
        epochs=25,
        schedule=schedule,
        optimizer={"type": "adam", "learning_rate": 0.05},
        objective=(("val_loss", "minimize"),),
    )
    records = [
        e.record
        for e in of(run_all(Engine("cpu"), [start(1, one, folder=tmp_path)]), 1, "reported")
    ]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.02, threshold_mode="abs", min_lr=0.015
    )
    expected = []
    for record in records:
        expected.append(optimizer.param_groups[0]["lr"])
        reference.step(record["val_loss"])
    assert [record["learning_rate"] for record in records] == pytest.approx(expected)
    assert expected[-1] == 0.015, "the floor was never reached"


# Stops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["prune", "timeout"])
def test_a_pruned_trial_keeps_what_it_has(engine: Engine, tmp_path: Path, mode: Any) -> None:
    engine.submit(start(1, ENDLESS, folder=tmp_path))
    events = until(engine, reported(1, 2))
    engine.stop(1, mode)
    events += engine.advance()
    stopped = only(events, 1, "stopped")
    last = of(events, 1, "reported")[-1]
    assert stopped.mode == mode
    assert stopped.step == last.step
    assert stopped.values == [last.value]
    assert stopped.record["test_accuracy"] > 0
    assert engine.idle


def test_a_cancelled_trial_is_thrown_away(engine: Engine, tmp_path: Path) -> None:
    engine.submit(start(1, ENDLESS, folder=tmp_path))
    until(engine, reported(1, 1))
    engine.stop(1, "cancel")
    stopped = only(engine.advance(), 1, "stopped")
    assert stopped.mode == "cancel"
    assert "test_accuracy" not in stopped.record
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["prune", "timeout", "cancel", "checkpoint"])
def test_a_trial_that_never_began_stops_without_values(
    engine: Engine, tmp_path: Path, mode: Any
) -> None:
    engine.submit(start(1, ENDLESS, folder=tmp_path))
    engine.stop(1, mode)
    stopped = only(engine.advance(), 1, "stopped")
    assert stopped.mode == mode
    assert stopped.values is None
    assert engine.idle
    assert not list(tmp_path.iterdir())


def test_stopping_an_unknown_trial_does_nothing(engine: Engine) -> None:
    engine.stop(99, "cancel")
    assert engine.advance() == []
    assert not engine.runnable


def test_the_others_of_a_group_go_on_when_one_is_stopped(tmp_path: Path) -> None:
    two = [start(t, spec(seed=t, epochs=6), folder=tmp_path) for t in (1, 2)]
    undisturbed = curve(run_all(Engine("cpu", steps=LanesOf(2)), two), 2)
    engine = Engine("cpu", steps=LanesOf(2))
    for one in two:
        engine.submit(one)
    events = until(engine, reported(1, 2))
    engine.stop(1, "prune")
    events += run_all(engine)
    assert len(of(events, 1, "reported")) == 2
    assert curve(events, 2) == undisturbed


# Checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw"])
def test_a_resumed_trial_continues_bit_for_bit(tmp_path: Path, kind: str) -> None:
    momentum = {"momentum": 0.9} if kind in ("sgd", "nesterov", "rmsprop") else {}
    one = spec(
        epochs=8,
        network=mlp(dropout=0.2, norm="batch"),
        optimizer={"type": kind, "learning_rate": 0.01, **momentum},
        schedule={"type": "cosine"},
        early_stopping={"patience": 4, "min_delta": 0.0},
    )
    whole = run_all(Engine("cpu"), [start(1, one, folder=tmp_path)])
    first = Engine("cpu")
    first.submit(start(1, one, folder=tmp_path))
    before = until(first, reported(1, 3))
    first.stop(1, "checkpoint")
    handed_back = only(first.advance(), 1, "stopped")
    assert handed_back.step == 3
    after = run_all(Engine("cpu"), [start(1, one, folder=tmp_path, resume=3)])
    assert curve(before, 1) + curve(after, 1) == curve(whole, 1)
    end, same = only(after, 1, "finished"), only(whole, 1, "finished")
    assert end.values == same.values
    for key in ("test_loss", "test_accuracy", "best_step", "epochs_run"):
        assert end.record[key] == same.record[key]
    assert end.record["resumed_from"] == 3


def test_a_trial_stopped_inside_an_epoch_continues_there(tmp_path: Path) -> None:
    one = spec(dataset=dataset("digits"), batch_size=8, network=mlp(dropout=0.2))
    whole = run_all(Engine("cpu"), [start(1, one, folder=tmp_path)])
    first = Engine("cpu", settings=EngineSettings(checkpoint_seconds=1e9), clock=Clock(tick=1.0))
    first.submit(start(1, one, folder=tmp_path))
    before = until(first, reported(1, 1))
    for _ in range(50):
        before += first.advance()
    first.stop(1, "checkpoint")
    assert only(first.advance(), 1, "stopped").step == 1
    again = Engine("cpu", steps=LanesOf(2))
    # A neighbour of the same group, at the start of its own first epoch.
    starts = [start(2, spec(dataset=dataset("digits"), batch_size=8), folder=tmp_path)]
    starts += [start(1, one, folder=tmp_path, resume=1)]
    after = run_all(again, starts)
    assert curve(before, 1) + curve(after, 1) == curve(whole, 1)
    assert only(after, 1, "finished").values == only(whole, 1, "finished").values


def test_a_crash_costs_the_seconds_between_checkpoints_also_inside_an_epoch(
    tmp_path: Path,
) -> None:
    one = spec(dataset=dataset("digits"), batch_size=8)
    whole = run_all(Engine("cpu"), [start(1, one, folder=tmp_path / "other")])

    # With this clock each step seems to take a second or more, and is a turn of its own.
    seconds, trained = 30, 60
    dying = Engine(
        "cpu", settings=EngineSettings(checkpoint_seconds=seconds), clock=Clock(tick=1.0)
    )
    dying.submit(start(1, one, folder=tmp_path))
    before = until(dying, reported(1, 1))
    for _ in range(trained):
        before += dying.advance()  # and dies
    assert len(of(before, 1, "reported")) == 1, "inside the second epoch"
    _, note = read_tensors(tmp_path / "checkpoint-1.1.safetensors")
    assert trained - seconds <= note["progress"]["position"] < trained
    again = Engine("cpu")
    again.submit(start(1, one, folder=tmp_path, resume=1))
    assert curve(before, 1) + curve(run_all(again), 1) == curve(whole, 1)


def test_checkpoints_come_by_time(engine_clock: tuple[Engine, Clock], tmp_path: Path) -> None:
    engine, clock = engine_clock
    engine.submit(start(1, ENDLESS, folder=tmp_path))
    events = until(engine, reported(1, 3))
    assert not of(events, 1, "checkpointed")
    assert not list(tmp_path.iterdir())
    clock.now += 61
    events += engine.advance()
    assert only(events, 1, "checkpointed").step >= 3
    clock.now += 30
    assert not of(engine.advance(), 1, "checkpointed")


@pytest.fixture
def engine_clock(steps: Any) -> tuple[Engine, Clock]:
    clock = Clock()
    return Engine("cpu", steps=steps, clock=clock), clock


@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_a_checkpoint_that_cannot_be_read_starts_over(
    engine: Engine, tmp_path: Path, damage: str
) -> None:
    if damage != "missing":
        engine.submit(start(1, ENDLESS, folder=tmp_path))
        until(engine, reported(1, 2))
        engine.stop(1, "checkpoint")
        run_all(engine)
        (file,) = tmp_path.iterdir()
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"garbage" * 99)
    events = run_all(engine, [start(1, folder=tmp_path, resume=2)])
    assert [e.step for e in of(events, 1, "reported")] == [1, 2, 3]
    assert only(events, 1, "finished").record["resumed_from"] == 0


def test_shutdown_checkpoints_what_has_begun(engine: Engine, tmp_path: Path) -> None:
    for trial in range(5):
        engine.submit(start(trial, ENDLESS, folder=tmp_path))
    events = until(engine, reported(0, 1))
    begun = {e.run for e in events if e.type == "started"}
    events = engine.shutdown()
    assert {e.run for e in events if e.type == "stopped"} == set(range(5))
    assert {e.mode for e in events if e.type == "stopped"} == {"checkpoint"}
    assert {int(file.name.split(".")[0].split("-")[1]) for file in tmp_path.iterdir()} == begun
    assert engine.idle


def test_a_trial_resumed_after_its_last_epoch_just_finishes(engine: Engine, tmp_path: Path) -> None:
    engine.submit(start(1, ENDLESS, folder=tmp_path))
    events = until(engine, reported(1, 3))
    engine.stop(1, "checkpoint")
    engine.advance()
    short = spec(epochs=3)
    after = run_all(engine, [start(1, short, folder=tmp_path, resume=3)])
    assert not of(after, 1, "reported")
    assert only(after, 1, "finished").values == [of(events, 1, "reported")[-1].value]


def test_a_retry_never_continues_past_the_step_that_was_noted(tmp_path: Path) -> None:
    one = spec(epochs=9)
    whole = run_all(Engine("cpu"), [start(1, one, folder=tmp_path / "other")])
    dying = Engine("cpu", settings=EngineSettings(checkpoint_seconds=0.0))
    dying.submit(start(1, one, folder=tmp_path))
    until(dying, reported(1, 6))  # and dies before anybody hears of the last two
    assert {file.name for file in tmp_path.iterdir()} == {
        f"checkpoint-1.{step}.safetensors" for step in (4, 5, 6)
    }
    for noted, resumed in ((4, 4), (3, 0), (100, 6)):
        again = Engine("cpu")
        again.submit(start(1, one, folder=tmp_path, resume=noted))
        events = run_all(again)
        assert only(events, 1, "finished").record["resumed_from"] == resumed
        assert curve(events, 1) == curve(whole, 1)[resumed:]


def test_a_full_disk_costs_the_checkpoint_not_the_trial(engine: Engine, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    begun = start(1, folder=tmp_path, checkpoint=str(blocked / "checkpoint"))
    events = run_all(Engine("cpu", settings=EngineSettings(checkpoint_seconds=0.0)), [begun])
    assert only(events, 1, "finished")
    assert not of(events, 1, "checkpointed")


# Pruning ----------------------------------------------------------------------------------


def test_a_prunable_trial_waits_for_its_verdict(engine: Engine, tmp_path: Path) -> None:
    engine.submit(start(1, spec(epochs=3), folder=tmp_path, prunable=True))
    events = until(engine, reported(1, 1))
    assert not engine.runnable
    assert not engine.idle
    assert engine.advance() == []
    engine.allow(1, 1)
    assert engine.runnable
    events += until(engine, reported(1, 2))
    assert not engine.runnable
    engine.allow(1, 2)
    events += run_all(engine)  # the last epoch needs no verdict
    assert only(events, 1, "finished")


def test_others_of_the_group_go_on_while_one_waits(tmp_path: Path) -> None:
    waits, goes = spec(seed=1, epochs=4), spec(seed=2, epochs=4)
    alone = [
        run_all(Engine("cpu"), [start(t, s, folder=tmp_path)]) for t, s in [(1, waits), (2, goes)]
    ]
    engine = Engine("cpu", steps=LanesOf(2))
    engine.submit(start(1, waits, folder=tmp_path, prunable=True))
    engine.submit(start(2, goes, folder=tmp_path))
    events = until(engine, reported(2, 3))
    assert len(of(events, 1, "reported")) == 1
    for step in (1, 2, 3):
        engine.allow(1, step)
        events += until(engine, reported(1, step + 1))
    events += run_all(engine)
    assert curve(events, 1) == curve(alone[0], 1)
    assert curve(events, 2) == curve(alone[1], 2)


def test_a_waiting_trial_can_be_pruned(engine: Engine, tmp_path: Path) -> None:
    engine.submit(start(1, ENDLESS, folder=tmp_path, prunable=True))
    events = until(engine, reported(1, 1))
    engine.stop(1, "prune")
    assert engine.runnable
    stopped = only(engine.advance(), 1, "stopped")
    assert stopped.values == [of(events, 1, "reported")[0].value]
    assert stopped.record["test_accuracy"] > 0


# Failures ---------------------------------------------------------------------------------


def test_a_diverging_trial_fails_and_its_neighbours_do_not_notice(
    steps: Any, tmp_path: Path
) -> None:
    calm = [spec(seed=t, epochs=4) for t in (1, 2)]
    wild = regression(optimizer={"type": "sgd", "learning_rate": 1e12}, epochs=10)
    starts = [start(t, s, folder=tmp_path) for t, s in enumerate(calm)]
    before = run_all(Engine("cpu", steps=steps), starts)
    mixed = [starts[0], start(9, wild, folder=tmp_path), starts[1]]
    events = run_all(Engine("cpu", steps=steps), mixed)
    failed = only(events, 9, "failed")
    assert failed.failure.kind == "diverged"
    assert failed.failure.step >= 1
    assert failed.record["seed"] == 7
    json.dumps(asdict(failed), allow_nan=False)
    for trial in (0, 1):
        assert curve(events, trial) == curve(before, trial)


def test_divergence_in_one_lane_changes_no_other(tmp_path: Path) -> None:
    rates = {1: 0.01, 2: 1e30, 3: 0.02}
    specs = {
        t: spec(seed=t, epochs=4, optimizer={"type": "sgd", "learning_rate": r, "momentum": 0.9})
        for t, r in rates.items()
    }
    alone = {t: run_all(Engine("cpu"), [start(t, s, folder=tmp_path)]) for t, s in specs.items()}
    starts = [start(t, s, folder=tmp_path) for t, s in specs.items()]
    events = run_all(Engine("cpu", steps=LanesOf(3)), starts)
    assert only(events, 2, "failed").failure.kind == "diverged"
    assert only(alone[2], 2, "failed").failure.step == only(events, 2, "failed").failure.step
    for trial in (1, 3):
        assert curve(events, trial) == curve(alone[trial], trial)


def test_an_unreadable_specification_fails_its_trial_only(engine: Engine, tmp_path: Path) -> None:
    broken = start(1, folder=tmp_path, spec={"nonsense": True})
    events = run_all(engine, [broken, start(2, folder=tmp_path)])
    assert only(events, 1, "failed").failure.traceback
    assert only(events, 2, "finished")


def test_whatever_a_reader_raises_is_a_data_failure(
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise IndexError("single positional indexer is out-of-bounds")

    monkeypatch.setattr(DatasetCache, "get", broken)
    failure = of(run_all(engine, [start(1, folder=tmp_path)]), 1, "failed")[0].failure
    assert failure.kind == "data"
    assert failure.message.endswith(
        "data cannot be read: IndexError: single positional indexer is out-of-bounds"
    )
    assert "Traceback" in capfd.readouterr().err


def test_a_metric_that_does_not_fit_the_data_is_a_data_failure(
    engine: Engine, tmp_path: Path
) -> None:
    wrong = spec(metrics=("r2",), objective=(("val_r2", "maximize"),))
    failure = only(run_all(engine, [start(1, wrong, folder=tmp_path)]), 1, "failed").failure
    assert failure.kind == "data"
    assert "r2" in failure.message


class Faulty(PlainLanes):
    """Breaks when a lane with the seed 13 trains, or while it has more lanes than memory."""

    memory = 99

    def __init__(self, group: GroupSpec, lanes: int) -> None:
        super().__init__(group, lanes)
        self.calls = 0

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        self.calls += 1
        if self.lanes > self.memory and self.calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        for step in self.steps:
            trial = step._trial
            if trial is not None and trial.hyper.seed == 13:
                raise ZeroDivisionError("a module of seed 13")
        return super().train_epoch(orders, learning_rates)


class FaultySteps(LanesOf):
    def make_step(self, group: GroupSpec, lanes: int) -> Faulty:
        self.made.append(Faulty(group, lanes))
        return self.made[-1]  # type: ignore[return-value]


def test_a_step_that_breaks_is_split_and_nobody_is_lost(tmp_path: Path) -> None:
    specs = {t: spec(seed=t, epochs=3) for t in (1, 2, 13)}
    alone = {t: run_all(Engine("cpu"), [start(t, specs[t], folder=tmp_path)]) for t in specs}
    starts = [start(t, s, folder=tmp_path) for t, s in specs.items()]
    events = run_all(Engine("cpu", steps=FaultySteps(3)), starts)
    for trial in specs:  # alone on the plain step, even the seed 13 does well
        assert curve(events, trial) == curve(alone[trial], trial)
        final = only(events, trial, "finished")
        assert final.backend == "plain"
        assert "ZeroDivisionError" in str(final.backend_reason)


def test_out_of_memory_halves_the_group_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "memory", 2)
    specs = {t: spec(seed=t, epochs=4) for t in range(1, 5)}
    alone = {t: run_all(Engine("cpu"), [start(t, specs[t], folder=tmp_path)]) for t in specs}
    steps = FaultySteps(4)
    events = run_all(
        Engine("cpu", steps=steps), [start(t, s, folder=tmp_path) for t, s in specs.items()]
    )
    assert [made.lanes for made in steps.made][:2] == [4, 2]
    assert max(made.lanes for made in steps.made[1:]) == 2
    for trial in specs:
        assert curve(events, trial) == curve(alone[trial], trial)


class Tight(LanesOf):
    """There is memory for the steps of one group at a time."""

    def __init__(self) -> None:
        super().__init__(1)
        self.alive: weakref.WeakSet[PlainLanes] = weakref.WeakSet()
        self.refused = 0

    def make_step(self, group: GroupSpec, lanes: int) -> TrainStep:
        if self.alive:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        step = PlainLanes(group, lanes)
        self.alive.add(step)
        return step


def test_what_is_only_kept_warm_goes_before_a_trial_is_out_of_memory(tmp_path: Path) -> None:
    steps = Tight()
    engine = Engine("cpu", steps=steps)
    run_all(engine, [start(1, spec(), folder=tmp_path)])
    assert len(steps.alive) == 1, "it is kept warm"
    events = run_all(engine, [start(2, spec(network=mlp(hidden_units=5)), folder=tmp_path)])
    assert only(events, 2, "finished")
    assert only(events, 2, "started")
    assert steps.refused == 1
    wide = [start(n, spec(network=mlp(hidden_units=n)), folder=tmp_path) for n in (6, 7)]
    events = run_all(engine, wide)
    kinds = [event.failure.kind for event in events if event.type == "failed"]
    assert kinds == ["out_of_memory"], "what another trial trains with stays"


class BreaksMidway(PlainLanes):
    """Runs out of memory once, with two of the call's batches done; may not give lanes back."""

    broken = False
    gives_back = True

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        if self.lanes > 2 and len(self.epochs_of) == 1:
            super().train_epoch(orders[:, :32], learning_rates[:, :2])
            self.broken = True
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return super().train_epoch(orders, learning_rates)

    def take(self, lane: int) -> Any:
        if self.broken and not self.gives_back:
            raise RuntimeError("the device is lost")
        return super().take(lane)


@pytest.mark.parametrize("gives_back", [True, False])
def test_memory_that_runs_out_inside_an_epoch_loses_no_step_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives_back: bool
) -> None:
    class StepFactory(LanesOf):
        def make_step(self, group: GroupSpec, lanes: int) -> Any:
            self.made.append(BreaksMidway(group, lanes))
            return self.made[-1]

    monkeypatch.setattr(BreaksMidway, "gives_back", gives_back)
    specs = {t: spec(seed=t, epochs=4) for t in range(1, 5)}
    alone = {t: run_all(Engine("cpu"), [start(t, specs[t], folder=tmp_path)]) for t in specs}
    steps = StepFactory(4)
    starts = [start(t, s, folder=tmp_path) for t, s in specs.items()]
    events = run_all(Engine("cpu", steps=steps), starts)
    assert [made.lanes for made in steps.made][:1] == [4]
    assert {made.lanes for made in steps.made[1:]} == {2}
    for trial in specs:
        ours, expected = curve(events, trial), curve(alone[trial], trial)
        if gives_back:  # the loss of the broken slice is lost, its steps are not
            ours[1].pop("train_loss")
            expected[1].pop("train_loss")
        assert ours == expected
        assert (
            only(events, trial, "finished").values == only(alone[trial], trial, "finished").values
        )


class OneBreaks(PlainStepFactory):
    """Plain steps in which one seed raises what it is told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def make_step(self, group: GroupSpec, lanes: int) -> Any:
        step = super().make_step(group, lanes)
        train = step.train_epoch

        def train_epoch(orders: Tensor, learning_rates: Tensor) -> Tensor:
            if step._trial.hyper.seed == 13:  # type: ignore[attr-defined]
                raise self.error
            return train(orders, learning_rates)

        step.train_epoch = train_epoch  # type: ignore[method-assign]
        return step


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ZeroDivisionError("by nought"), "user_code"),
        (SystemExit(3), "user_code"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: …"), "out_of_memory"),
    ],
)
def test_an_exception_fails_the_trial_it_came_from(
    tmp_path: Path, error: BaseException, kind: str
) -> None:
    engine = Engine("cpu", steps=OneBreaks(error))
    starts = [start(t, spec(seed=t), folder=tmp_path) for t in (1, 13, 2)]
    events = run_all(engine, starts)
    failure = only(events, 13, "failed").failure
    assert failure.kind == kind
    assert failure.step == 1
    assert type(error).__name__ in failure.message
    assert "Traceback" in failure.traceback
    assert only(events, 1, "finished")
    assert only(events, 2, "finished")


def test_a_trial_alone_prints_to_its_own_log(tmp_path: Path) -> None:
    class Talks(PlainStepFactory):
        def make_step(self, group: GroupSpec, lanes: int) -> Any:
            print("hello from trial")  # noqa: T201
            return super().make_step(group, lanes)

    log = tmp_path / "logs" / "1.log"
    run_all(Engine("cpu", steps=Talks()), [start(1, folder=tmp_path, log=str(log))])
    assert log.read_text() == "hello from trial\n"


def test_a_failed_trials_traceback_is_in_its_log(tmp_path: Path) -> None:
    engine = Engine("cpu", steps=OneBreaks(ZeroDivisionError("by nought")))
    log = tmp_path / "13.log"
    begun = [start(13, spec(seed=13), folder=tmp_path, log=str(log)), start(1, folder=tmp_path)]
    run_all(engine, begun)
    assert log.read_text().endswith("ZeroDivisionError: by nought\n")


# Models -----------------------------------------------------------------------------------


def test_models_are_kept_of_the_best_only(engine: Engine, tmp_path: Path) -> None:
    rates = {1: 1e-6, 2: 0.03, 3: 1e-5}
    events: list[Any] = []
    for trial, rate in rates.items():
        one = spec(epochs=5, optimizer={"type": "adam", "learning_rate": rate})
        path = str(tmp_path / f"model-{trial}.safetensors")
        events += run_all(engine, [start(trial, one, folder=tmp_path, model=path, keep_models=1)])
    models = [only(events, trial, "finished").model for trial in rates]
    assert models == [
        str(tmp_path / "model-1.safetensors"),
        str(tmp_path / "model-2.safetensors"),
        None,
    ]
    assert not (tmp_path / "model-3.safetensors").exists()


@pytest.mark.parametrize("completes", [True, False], ids=["one ran through", "none did"])
def test_a_trial_out_of_time_leaves_its_model_where_it_is_the_best(
    engine: Engine, tmp_path: Path, completes: bool
) -> None:
    paths = [str(tmp_path / f"model-{trial}.safetensors") for trial in range(3)]
    poor = spec(epochs=1, optimizer={"type": "adam", "learning_rate": 1e-6})
    if completes:
        run_all(engine, [start(0, poor, folder=tmp_path, model=paths[0], keep_models=1)])
    engine.submit(start(1, ENDLESS, folder=tmp_path, model=paths[1], keep_models=1))
    until(engine, reported(1, 2))
    engine.stop(1, "timeout")
    stopped = only(engine.advance(), 1, "stopped")
    assert stopped.model == (None if completes else paths[1])
    assert Path(paths[1]).exists() is not completes
    # It stands in the way of no trial that runs through, however poor.
    after = run_all(engine, [start(2, poor, folder=tmp_path, model=paths[2], keep_models=1)])
    assert only(after, 2, "finished").model == (None if completes else paths[2])


def test_a_retry_of_a_result_that_was_not_counted_leaves_its_model(
    engine: Engine, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"model-{trial}.safetensors") for trial in range(3)]
    starts = [start(t, folder=tmp_path, model=paths[t], keep_models=1) for t in range(3)]
    events = run_all(engine, starts[:1]) + run_all(engine, starts[1:2])
    engine.forget_results(1)
    events += run_all(engine, starts[2:])
    assert [only(events, t, "finished").model for t in range(3)] == [paths[0], None, paths[2]]


def test_a_model_that_could_not_be_written_stands_in_no_others_way(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "full").write_text("not a directory")
    blocked, path = str(tmp_path / "full" / "model"), str(tmp_path / "model.safetensors")
    events = run_all(engine, [start(1, folder=tmp_path, model=blocked, keep_models=1)])
    events += run_all(engine, [start(2, folder=tmp_path, model=path, keep_models=1)])
    assert [only(events, t, "finished").model for t in (1, 2)] == [None, path]


def test_a_model_file_says_how_to_use_it(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    one = spec(network=mlp(norm="batch"))
    run_all(engine, [start(1, one, folder=tmp_path, model=str(path), keep_models=1)])
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["tuner"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module = networks.build(
        note["network"], inputs=tuple(note["input_shape"]), outputs=note["outputs"]
    )
    module.load_state_dict(weights)
    assert note["preprocessing"]["classes"] == ["setosa", "versicolor", "virginica"]
    assert len(note["preprocessing"]["mean"]) == 4


def test_the_seed_decides(engine: Engine, tmp_path: Path) -> None:
    specs = [spec(seed=1), spec(seed=1), spec(seed=2)]
    events = run_all(engine, [start(t, s, folder=tmp_path) for t, s in enumerate(specs)])
    assert curve(events, 0) == curve(events, 1)
    assert curve(events, 0) != curve(events, 2)


@pytest.mark.parametrize("batch_size", [1, 7, 90, 1000, "full"])
def test_any_batch_size_trains(engine: Engine, tmp_path: Path, batch_size: Any) -> None:
    one = spec(batch_size=batch_size, epochs=2)
    final = only(run_all(engine, [start(1, one, folder=tmp_path)]), 1, "finished")
    assert math.isfinite(final.record["test_loss"])
