"""First trials that fail: what is tried before their study is given up."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.registries import registries
from tests.unit.training.builders import of, only, spec, start
from workers.protocol import Event
from workers.training.engine import Engine

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
        self.engine = Engine("cpu", modules_dir=folder, ask=self.asked.append)

    def points(self, *widths: int) -> list[dict[str, Any]]:
        made = [spec(network={"type": "wide", "width": width}) for width in widths]
        return [one.model_dump(mode="json") for one in made]

    def submit(self, *widths: int) -> None:
        for trial, point in enumerate(self.points(*widths), start=1):
            self.engine.submit(start(trial, folder=self.folder, spec=point))

    def advance(self, turns: int = 40) -> list[Event]:
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
    desk.engine.try_points(1, desk.points(20, 30))
    events = desk.advance(5)
    for trial in (1, 2, 3):
        failure = only(events, trial, "failed")["failure"]
        assert failure["kind"] == kind
        assert failure["message"].endswith("Error: too wide")
        assert "Error: too wide (2 other points of the search space fail" in failure["hopeless"]
        assert advice in failure["hopeless"]
    assert desk.engine.idle


def test_one_point_that_trains_is_enough(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.submit(9)
    desk.advance(1)
    desk.engine.try_points(1, desk.points(20, 4))
    failure = only(desk.advance(3), 1, "failed")["failure"]
    assert "hopeless" not in failure
    desk.submit(9)
    assert only(desk.advance(1), 1, "failed")
    assert desk.asked == [1]


def test_a_report_of_another_trial_is_enough(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.submit(9, 4)
    events = desk.advance(30)
    assert "hopeless" not in only(events, 1, "failed")["failure"]
    assert only(events, 2, "finished")
    assert desk.engine.idle


def test_without_points_and_at_a_shutdown_failures_go_out_as_they_are(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.submit(9)
    desk.advance(1)
    desk.engine.try_points(1, [])
    assert "hopeless" not in only(desk.advance(1), 1, "failed")["failure"]
    other = Desk(tmp_path)
    other.submit(9)
    other.advance(1)
    assert "hopeless" not in only(other.engine.shutdown(), 1, "failed")["failure"]
