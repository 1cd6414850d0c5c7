"""What `--watch` draws at the widths that terminals have, with 8 parameters and 400 trials.

After a wanted change: `python -m tests.unit.cli.test_frame`.
"""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.fake_service import FakeStudy
from tuner_service.cli import frame
from tuner_service.client import StudyStatus, Trial

WIDTHS = (60, 80, 120, 200)
SNAPSHOTS = Path(__file__).with_name("frames.txt")
NUMBER = re.compile(r"^[0-9.e,+-]+$")
PARAMETERS = {
    "learning_rate": lambda r: 10 ** r.uniform(-4, -1),
    "batch_size": lambda r: r.choice([16, 32, 64]),
    "optimizer": lambda r: r.choice(["sgd", "nesterov", "adam"]),
    "momentum": lambda r: r.uniform(0.1, 0.99),
    "hidden_units": lambda r: r.randint(16, 512),
    "weight_decay": lambda r: 10 ** r.uniform(-6, -2),
    "dropout": lambda r: r.uniform(0, 0.5),
    "label_smoothing": lambda r: r.uniform(0, 0.2),
}


def made_up(direction: str = "maximize") -> tuple[StudyStatus, frame.WatchedTrials]:
    """A study of 400 trials, of which 12 run."""
    chance = random.Random(1)
    view = FakeStudy(name="a-study-with-a-name-of-some-length", state="running", total=400).view()
    objective = {"metric": "val_accuracy", "direction": direction}
    view |= {"definition": {"objective": objective}, "eta_seconds": 754.0}
    view["progress"] |= {"done": 380, "failed": 8, "leased": 12, "open": 0, "pruned": 120}
    trials = [made_trial(number, chance) for number in range(400)]
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    view["best_trial"] = max(complete, key=lambda trial: trial["value"])
    seen = frame.WatchedTrials.of(StudyStatus.of(view))
    for trial in trials[:388]:
        seen.ended(Trial.of(trial))
    for step in range(1, 6):
        seen.runs([Trial.of(reporting(trial, step)) for trial in trials[388:]])
    return StudyStatus.of(view), seen


def made_trial(number: int, chance: random.Random) -> dict[str, Any]:
    runs = number >= 388
    state = "RUNNING" if runs else "PRUNED" if number % 3 == 0 else "COMPLETE"
    return {
        "number": number,
        "state": state,
        "value": None if runs else chance.uniform(0.1, 0.99),
        "parameters": {name: draw(chance) for name, draw in PARAMETERS.items()},
    }


def reporting(trial: dict[str, Any], step: int) -> dict[str, Any]:
    value = 0.9 - 0.5 / step + trial["number"] % 7 / 100
    return {**trial, "last_step": step, "latest": {"val_accuracy": value, "step": step}}


def drawn(width: int) -> list[str]:
    return [line.plain for line in frame.lines(*made_up(), width)]


def test_the_frames_are_those_that_were_looked_at() -> None:
    assert "\n\n".join("\n".join(drawn(width)) for width in WIDTHS) + "\n" == SNAPSHOTS.read_text()


@pytest.mark.parametrize("width", [40, *WIDTHS])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    status, seen = made_up()
    lines = [line.plain for line in frame.lines(status, seen, width)]
    assert max(map(len, lines)) <= width
    whole = {
        frame.show.number(value)
        for trial in [*seen.best, *seen.running]
        for value in [*trial.params.values(), trial.value, trial.number, seen.latest(trial), 5]
    }
    first = next(i for i, line in enumerate(lines) if "running, the newest" in line)
    rows = [line for line in lines[first + 1 : -1] if line and "trial" not in line]
    words = [word for row in rows for word in row.split() if NUMBER.match(word)]
    assert len(words) > 20
    assert set(words) <= whole


@pytest.mark.parametrize(("direction", "extreme"), [("maximize", max), ("minimize", min)])
def test_the_best_five_go_by_the_direction(direction: str, extreme: Any) -> None:
    _, seen = made_up(direction)
    values = [trial.value for trial in seen.best]
    assert values == sorted(values, reverse=direction == "maximize")
    assert len(values) == 5
    assert values[0] == extreme(values)


def test_a_sparkline_goes_as_the_values_do() -> None:
    assert frame.sparkline([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert frame.sparkline([3.0, 3.0]) == "▄▄"
    assert frame.sparkline([]) == ""
    assert frame.sparkline(frame.thinned([*range(1000)])) == "▁▂▂▃▄▄▅▅▆▇▇█"


if __name__ == "__main__":
    SNAPSHOTS.write_text("\n\n".join("\n".join(drawn(width)) for width in WIDTHS) + "\n")
