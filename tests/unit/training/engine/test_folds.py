"""Cross-validation: folds share no row and leave out none, and a trial speaks for all of them."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.unit.training.builders import dataset, mlp, of, only, run_all, spec, start
from tuner_service.definition.trial_spec import SplitSpec
from tuner_service.errors import DataError
from workers.training.data.split import split_rows
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.steps.select import BackendSelector

FOLDS = 3
ONE_THREAD = EngineSettings(threads=1)


def folded(**changes: Any) -> Any:
    return spec(dataset=dataset("iris", {"folds": FOLDS}), **changes)


def by_hand(folder: Path, **changes: Any) -> list[list[Any]]:
    """Return each fold's reports and last words, trained as a trial of its own."""
    runs = []
    for fold in range(FOLDS):
        one = spec(dataset=dataset("iris", {"folds": FOLDS, "fold": fold}), **changes)
        runs.append(run_all(Engine("cpu", settings=ONE_THREAD), [start(1, one, folder=folder)]))
    return runs


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize(("rows", "folds"), [(50, 2), (53, 5), (200, 20)])
def test_folds_share_no_row_and_leave_out_none(rows: int, folds: int, stratify: bool) -> None:
    classes = np.arange(rows) % 2
    cuts = [
        split_rows(
            rows,
            SplitSpec(
                validation=0.2, test=0.2, seed=4, stratify=stratify, folds=folds, fold=fold
            ),
            classes=classes,
            own_test=False,
        )
        for fold in range(folds)
    ]  # fmt: skip
    test = cuts[0].test.tolist()
    assert len(test) == round(rows * 0.2)
    validated = [row for cut in cuts for row in cut.validation.tolist()]
    assert sorted(validated + test) == list(range(rows))
    for cut in cuts:
        assert cut.test.tolist() == test
        every = [*cut.train.tolist(), *cut.validation.tolist(), *test]
        assert sorted(every) == list(range(rows))
        if stratify:
            assert abs(int(classes[cut.validation].sum()) - len(cut.validation) / 2) <= 1


def test_too_few_rows_for_the_folds_are_refused() -> None:
    few = SplitSpec(validation=0.2, test=0.0, seed=0, stratify=False, folds=5, fold=0)
    with pytest.raises(DataError, match="9 rows, 0 of them for the test, are too few for 5 folds"):
        split_rows(9, few, classes=None, own_test=False)


def test_a_trial_is_the_mean_of_its_folds(tmp_path: Path) -> None:
    single = by_hand(tmp_path)
    events = run_all(Engine("cpu", settings=ONE_THREAD), [start(7, folded(), folder=tmp_path)])
    assert {event.run for event in events} == {7}
    assert [e.step for e in of(events, 7, "reported")] == [1, 2, 3]
    for at, report in enumerate(of(events, 7, "reported")):
        theirs = [of(run, 1, "reported")[at] for run in single]
        assert report.value == pytest.approx(statistics.fmean(e.value for e in theirs))
        record = report.record
        losses = [e.record["val_loss"] for e in theirs]
        assert record["val_loss"] == pytest.approx(statistics.fmean(losses))
        spread = statistics.stdev(e.value for e in theirs)
        assert record["val_accuracy_std"] == pytest.approx(spread)
    finished = only(events, 7, "finished")
    results = [only(run, 1, "finished") for run in single]
    values = [result.values[0] for result in results]
    assert finished.values == [pytest.approx(statistics.fmean(values))]
    assert finished.record["folds"] == {"val_accuracy": values}
    assert finished.record["fold_std"]["val_accuracy"] == pytest.approx(
        statistics.stdev(values)
    )  # fmt: skip
    assert finished.record["test_loss"] == pytest.approx(
        statistics.fmean(result.record["test_loss"] for result in results)
    )
    assert finished.record["epochs_run"] == 3
    assert len(of(events, 7, "started")) == 1


def test_fused_folds_equal_plain_ones(tmp_path: Path) -> None:
    trials = [
        folded(fuse=True, precision="float64", seed=seed, network=mlp(dropout=0.1))
        for seed in range(3)
    ]
    selector = BackendSelector(torch.device("cpu"), compile=False, probe=False)
    results = []
    for engine in (
        Engine("cpu", settings=ONE_THREAD),
        Engine("cpu", settings=ONE_THREAD, steps=selector),
    ):
        starts = [start(i, one, folder=tmp_path) for i, one in enumerate(trials)]
        events = run_all(engine, starts)
        results.append([only(events, i, "finished") for i in range(3)])
    for plain, fused in zip(*results, strict=True):
        assert (plain.backend, fused.backend) == ("plain", "traced")
        for one, other in zip(
            plain.record["folds"]["val_accuracy"],
            fused.record["folds"]["val_accuracy"],
            strict=True,
        ):
            assert one == pytest.approx(other, abs=1e-9)
        assert plain.record["test_loss"] == pytest.approx(fused.record["test_loss"], 1e-8)


@pytest.mark.parametrize("alone", [True, False])
def test_the_pruner_sees_all_folds_before_any_goes_on(tmp_path: Path, alone: bool) -> None:
    """More folds than groups take turns, and every one waits for the verdict."""
    one = spec(dataset=dataset("iris", {"folds": 6}), epochs=3)
    engine = Engine("cpu", settings=EngineSettings(threads=1, max_groups=2))
    engine.submit(start(1, one, folder=tmp_path, prunable=True, exclusive=alone))
    heard: list[Any] = []
    for step in (1, 2):
        while engine.runnable:
            heard += engine.advance()
        assert [e.step for e in of(heard, 1, "reported")] == list(range(1, step + 1))
        engine.allow(1, step)
    engine.stop(1, "prune")
    heard += run_all(engine)
    stopped = only(heard, 1, "stopped")
    assert stopped.mode == "prune"
    assert stopped.values == [of(heard, 1, "reported")[-1].value]
    assert "test_accuracy" in stopped.record


def test_folds_may_stop_early_at_their_own_epoch(tmp_path: Path) -> None:
    one = folded(epochs=40, early_stopping={"patience": 2, "min_delta": 0.02})
    events = run_all(Engine("cpu", settings=ONE_THREAD), [start(1, one, folder=tmp_path)])
    finished = only(events, 1, "finished")
    steps = [e.step for e in of(events, 1, "reported")]
    assert steps == list(range(1, len(steps) + 1))
    assert finished.record["epochs_run"] == len(steps) < 40
    folds = finished.record["folds"]["val_accuracy"]
    assert finished.values == [pytest.approx(statistics.fmean(folds))]


def test_a_fold_that_diverges_ends_the_trial_once(tmp_path: Path) -> None:
    wild = folded(optimizer={"type": "sgd", "learning_rate": 1e30}, epochs=50)
    engine = Engine("cpu", settings=ONE_THREAD)
    events = run_all(engine, [start(1, wild, folder=tmp_path), start(2, folded(), folder=tmp_path)])
    assert only(events, 1, "failed").failure.kind == "diverged"
    assert not of(events, 1, "finished")
    assert not of(events, 1, "stopped")
    assert only(events, 2, "finished").values


def test_a_handed_back_trial_goes_on_and_ends_as_if_never_stopped(tmp_path: Path) -> None:
    one = folded(epochs=6)
    (tmp_path / "whole").mkdir()
    whole = only(
        run_all(
            Engine("cpu", settings=ONE_THREAD),
            [start(1, one, folder=tmp_path / "whole")],
        ),
        1,
        "finished",
    )
    engine = Engine("cpu", settings=ONE_THREAD)
    engine.submit(start(1, one, folder=tmp_path))
    heard: list[Any] = []
    while len(of(heard, 1, "reported")) < 3:
        heard += engine.advance()
    heard += engine.shutdown()
    stopped = only(heard, 1, "stopped")
    assert stopped.mode == "checkpoint"
    known = stopped.step
    assert known == 3
    again = run_all(
        Engine("cpu", settings=ONE_THREAD), [start(1, one, folder=tmp_path, resume=known)]
    )  # fmt: skip
    assert [e.step for e in of(again, 1, "reported")] == [4, 5, 6]
    assert only(again, 1, "finished").values == whole.values
    assert only(again, 1, "finished").record["resumed_from"] == 3


@pytest.mark.parametrize("mode", ["timeout", "cancel", "prune"])
def test_a_stopped_trial_reports_no_epoch_that_a_fold_did_not_train(
    tmp_path: Path, mode: str
) -> None:
    """The first fold is through when the others, at their first epoch, are stopped."""
    model = tmp_path / "model.safetensors"
    engine = Engine("cpu", settings=ONE_THREAD)
    engine.submit(start(1, folded(epochs=2), folder=tmp_path, model=str(model), keep_models=1))
    heard: list[Any] = []
    while not list(tmp_path.glob("model.safetensors.fold*")):
        heard += engine.advance()
    engine.stop(1, mode)
    heard += run_all(engine)
    assert [e.step for e in of(heard, 1, "reported")] == [1]
    assert only(heard, 1, "stopped").step == 1


def test_the_best_trials_keep_the_model_of_the_fold_nearest_to_the_mean(tmp_path: Path) -> None:
    good = folded(epochs=8)
    bad = folded(epochs=1, optimizer={"type": "adam", "learning_rate": 1e-9})
    engine = Engine("cpu", settings=ONE_THREAD)
    paths = {key: tmp_path / f"{key}.safetensors" for key in (1, 2)}
    finished = {}
    for key, one in ((1, good), (2, bad)):
        begun = start(key, one, folder=tmp_path, model=str(paths[key]), keep_models=1)
        finished[key] = only(run_all(engine, [begun]), key, "finished")
    assert finished[1].model == str(paths[1])
    assert finished[2].model is None
    assert [path for path in tmp_path.glob("*.safetensors*")] == [paths[1]], "no other fold's"
    values = [value for (value,) in zip(*finished[1].record["folds"].values(), strict=True)]
    away = [abs(value - finished[1].values[0]) for value in values]
    fold = finished[1].record["model_fold"]
    assert away[fold] == min(away) < max(away)
    assert finished[2].record["model_fold"] is None
    with safe_open(paths[1], "pt") as file:
        told = json.loads(file.metadata()["tuner"])
    assert told["values"] == [values[fold]]
    assert told["dataset"]["split"]["fold"] == fold


def test_a_trial_that_fails_leaves_no_folds_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    engine = Engine("cpu", settings=ONE_THREAD)
    engine.submit(start(1, folded(epochs=2), folder=tmp_path, model=str(path), keep_models=1))
    events: list[Any] = []
    while not list(tmp_path.glob("model.safetensors.fold*")):
        events += engine.advance()
    engine.stop(1, "cancel")
    events += run_all(engine)
    assert only(events, 1, "stopped")
    assert not list(tmp_path.glob("model.safetensors*"))
