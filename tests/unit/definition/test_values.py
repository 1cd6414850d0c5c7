"""Durations, paths and warnings."""

from typing import Any

import pytest

from tests.unit.definition.builders import OPTIMIZER, choice, definition
from tuner_service.definition import parse_definition, warnings_of
from tuner_service.definition.options import Option, option_fault, show
from tuner_service.definition.types import parse_duration

PATH = Option(name="path", type="path", description="A path.")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("2h", 7200.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        ("500ms", 0.5),
        (3, 3.0),
        (0.25, 0.25),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "2", "2 hours", "h", "-1h", "1h-", "1e3s", "0s", "1y", "٣h", "999d", " 1h", True, None,
     [], "1h" * 60, float("nan"), float("inf"), 10**400],
)  # fmt: skip
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_duration(text)


@pytest.mark.parametrize("path", ["a", "a/b.csv", "a b/c", "ü/ñ.csv", "a..b", "...", ".hidden/x"])
def test_paths_inside_a_data_directory(path: str) -> None:
    assert option_fault(PATH, path) is None


@pytest.mark.parametrize(
    "path",
    ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./a", "a//b", "a/", "~", "~/a",
     "~root/a", "C:/a", "a\\b", "a\x00b", "a\nb", "file:a", "x" * 257, 3, None, True, ["a"]],
)  # fmt: skip
def test_paths_that_are_refused(path: Any) -> None:
    assert option_fault(PATH, path) is not None


def test_long_values_are_shown_short() -> None:
    assert len(show("x" * 10_000)) == 58
    assert "40 digits" in show(10**100)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"objective": {"metric": "val_loss", "direction": "maximize"}}, "the other way"),
        ({"parameters": {"optimizer": OPTIMIZER}, "training": {"momentum": 0.9}},
         "no effect with adam"),
        ({"training": {"epochs": 5, "early_stopping": {"patience": 5}}}, "has only 5"),
        ({"training": {"epochs": 5, "warmup_epochs": 9}}, "warm-up takes 9"),
        ({"training": {"epochs": 5}, "pruner": {"type": "median", "warmup_steps": 5}},
         "warmup_steps is 5, but a trial has only 5 epochs"),
        ({"training": {"epochs": 9}, "pruner": {"type": "hyperband", "min_resource": 27}},
         "min_resource is 27"),
        ({"training": {"epochs": 4}, "pruner": {"type": "patience"}}, "patience is 5"),
        ({"budget": {"trials": 3, "timeout": "1m", "trial_timeout": "2m"}}, "no effect"),
    ],
)  # fmt: skip
def test_warnings(changes: dict[str, Any], part: str) -> None:
    warnings = warnings_of(parse_definition(definition(**changes)))
    assert len(warnings) == 1
    assert part in warnings[0]


def test_a_usual_definition_has_no_warning() -> None:
    usual = definition(
        parameters={"optimizer": choice("sgd", "nesterov")}, training={"momentum": 0.9}
    )
    assert warnings_of(parse_definition(usual)) == []
