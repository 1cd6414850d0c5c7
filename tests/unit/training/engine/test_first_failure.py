"""First trials that fail: what is tried before their study is given up."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.registries import registries
from tests.unit.training.builders import of, only, spec, start
from tuner_service.definition.trial_spec import UserLoopSpec
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.preparation import Prepared
from workers.training.user_loops.pool import UserLoopPool

__all__ = ["registries"]
pytestmark = pytest.mark.usefixtures("registries")

WIDE = """
from torch import nn
def build(inputs, outputs, width: int):
    if width > 8:
        raise {error}
    return nn.Linear(inputs[0], outputs)
"""


class Desk:
    """An engine, and the studies that it has asked about."""

    def __init__(self, folder: Path, error: str = "ValueError('too wide')") -> None:
        (folder / "wide.py").write_text(WIDE.format(error=error))
        self.asked: list[int] = []
        self.folder = folder
        self.engine = Engine(
            "cpu", settings=EngineSettings(modules_dir=folder), ask=self.asked.append
        )

    def points(self, *widths: int) -> list[dict[str, Any]]:
        made = [spec(network={"type": "wide", "width": width}) for width in widths]
        return [one.model_dump(mode="json") for one in made]

    def submit(self, *widths: int) -> None:
        for trial, point in enumerate(self.points(*widths), start=1):
            log = str(self.folder / f"{trial}.log")
            self.engine.submit(start(trial, folder=self.folder, spec=point, log=log))

    def advance(self, turns: int = 40) -> list[Any]:
        return [event for _ in range(turns) for event in self.engine.advance()]


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        ("ValueError('too wide')", "user_code", "correct the module"),
        ("MemoryError('too wide')", "out_of_memory", "lower batch_size"),
    ],
)
def test_failures_wait_until_other_points_fail_too(
    tmp_path: Path, error: str, kind: str, advice: str
) -> None:
    desk = Desk(tmp_path, error)
    desk.submit(9, 10, 11)
    assert of(desk.advance(5), 1, "failed") == []
    assert (desk.asked, desk.engine.idle, desk.engine.runnable) == ([1], False, False)
    desk.engine.probe(1, desk.points(20, 30))
    events = desk.advance(5)
    for trial in (1, 2, 3):
        failure = only(events, trial, "failed").failure
        assert failure.kind == kind
        assert failure.message.endswith("Error: too wide")
        assert "Error: too wide (2 other points of the search space fail" in failure.nothing_trains
        assert advice in failure.nothing_trains
    assert desk.engine.idle
    log = (tmp_path / "1.log").read_text()
    said = error.replace("('", ": ").removesuffix("')")
    assert log.endswith(2 * f"One batch of another point of the search space:\n{said}\n")


def test_one_point_that_trains_is_enough(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.submit(9)
    desk.advance(1)
    desk.engine.probe(1, desk.points(20, 4))
    failure = only(desk.advance(3), 1, "failed").failure
    assert failure.nothing_trains is None
    desk.submit(9)
    assert only(desk.advance(1), 1, "failed")
    assert desk.asked == [1]


def test_a_report_of_another_trial_is_enough(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.submit(9, 4)
    events = desk.advance(30)
    assert only(events, 1, "failed").failure.nothing_trains is None
    assert only(events, 2, "finished")
    assert desk.engine.idle


def test_without_points_and_at_a_shutdown_failures_go_out_as_they_are(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.submit(9)
    desk.advance(1)
    desk.engine.probe(1, [])
    assert only(desk.advance(1), 1, "failed").failure.nothing_trains is None
    other = Desk(tmp_path)
    other.submit(9)
    other.advance(1)
    assert only(other.engine.shutdown(), 1, "failed").failure.nothing_trains is None


def test_memory_that_others_hold_is_no_evidence(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "MemoryError('too wide')")
    desk.engine.submit(start(9, spec(epochs=1000), folder=tmp_path, study=2))
    desk.advance(2)
    desk.submit(9)
    desk.advance(2)
    desk.engine.probe(1, desk.points(20, 30))
    failed = only(desk.advance(3), 1, "failed")
    assert failed.failure.nothing_trains is None
    assert not failed.sole_suspect  # though it may be when this is heard
    desk.engine.stop(9, "cancel")
    desk.advance(1)
    desk.submit(9)
    desk.advance(2)
    assert desk.asked == [1, 1]
    desk.engine.probe(1, desk.points(20, 30))
    failed = only(desk.advance(3), 1, "failed")
    assert "2 other points" in failed.failure.nothing_trains
    assert failed.sole_suspect


def test_what_is_only_kept_warm_goes_before_a_point_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    desk.engine.submit(start(9, spec(epochs=1), folder=tmp_path, study=2))
    desk.advance(9)
    desk.submit(9)
    desk.advance(2)

    def tight(prepared: Prepared) -> None:
        if desk.engine._groups:
            raise MemoryError

    monkeypatch.setattr("workers.training.engine.engine.train_one_batch", tight)
    desk.engine.probe(1, desk.points(5))
    assert only(desk.advance(3), 1, "failed").failure.nothing_trains is None


def test_a_loop_that_fails_says_nothing_of_its_study(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def train(trial):\n    raise ValueError('unlucky')\n")
    loop = UserLoopSpec(module="odd", parameters={}, objective=(("value", "minimize"),), seed=0)
    asked: list[int] = []
    loops = UserLoopPool("cpu", modules_dir=tmp_path, keeper=ModelKeeper())
    engine = Engine(
        "cpu", settings=EngineSettings(modules_dir=tmp_path), user_loops=loops, ask=asked.append
    )
    fields = loop.model_dump(mode="json")
    engine.submit(start(1, folder=tmp_path, spec=fields))
    events: list[Any] = []
    deadline = time.monotonic() + 30
    while not engine.idle and time.monotonic() < deadline:
        events += engine.advance()
        time.sleep(0.01)
    engine.shutdown()
    failure = only(events, 1, "failed").failure
    assert (failure.message, asked) == ("ValueError: unlucky", [])
    assert failure.nothing_trains is None
