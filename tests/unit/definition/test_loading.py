"""YAML is read as its version 1.2 has it, and nothing that is no YAML crashes the reader."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner_service.definition import lines_of, load_yaml
from tuner_service.errors import DefinitionError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E+3", 1000.0),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e1", -5.0),
        ("+3", 3),
        ("-0", 0),
        ("010", 10),
        ("0o10", 8),
        ("0xFf", 255),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("190:20:30", "190:20:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("-", [None]),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("nan", "nan"),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("!!int 5", 5),
        ("[1e-5, no, 8]", [1e-5, "no", 8]),
        ("{on: 1}", {"on": 1}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ('{"a": [true, null, 1.5e3]}', {"a": [True, None, 1500.0]}),
    ],
)
def test_plain_words_are_read_by_the_core_schema(text: str, value: Any) -> None:
    loaded = load_yaml(text)
    assert loaded == value
    assert type(loaded) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(load_yaml(".nan"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice"),
        ("a: [1, 2", "line 1"),
        ("a: b: c", "line 1, column 5"),
        ("\tx: 1", "line 1"),
        ("? [1, 2]\n: 3", "key must be a plain text"),
        ("a: 1\n---\nb: 2", "single document"),
        ("!!python/object/apply:os.system ['true']", "tag 'tag:yaml.org,2002:python"),
        ("!!binary aGk=", "is not allowed"),
        ("!!set {a}", "is not allowed"),
        ("!!timestamp 2024-01-01", "is not allowed"),
        ("!x 1", "tag '!x' is not allowed"),
        ("!!int a", "a whole number is expected, but got 'a'"),
        ("!!float a", "a number is expected, but got 'a'"),
        ("!!bool maybe", "true or false is expected"),
        ("!!str [1]", "expected a scalar node"),
        ("!!seq a", "sequence"),
        ("!!map a", "mapping"),
        ("*nothing", "undefined alias"),
        ("a\x00b", "not allowed"),
        ("[" * 1000 + "]" * 1000, "nested more than"),
        ("- " * 1000 + "a", "nested more than"),
        ("9" * 5000, "digits"),
        ("0x" + "f" * 5000, "digits"),
        ("x" * 1_000_001, "larger than"),
    ],
)
def test_what_is_no_yaml_is_one_fault(text: str, part: str) -> None:
    with pytest.raises(DefinitionError, match="not YAML") as caught:
        load_yaml(text)
    fault = caught.value.faults[0]
    assert (fault.code, fault.pointer) == ("yaml", "")
    assert part in fault.detail


@settings(max_examples=500, deadline=None)
@given(st.text() | st.text(alphabet="{}[]:,-&*!?|>'\"#%@` \n\t0x.ea~<"))
def test_any_text_is_data_or_a_definition_error(text: str) -> None:
    with contextlib.suppress(DefinitionError):
        load_yaml(text)


def test_bombs_of_aliases_stay_small() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    loaded = load_yaml("\n".join(lines))
    assert loaded["a19"][0] is loaded["a18"]


LINES = """name: digits
training:
  optimizer: adam
  "a/b~c": 1
parameters:
  - low: 1
    high: 2
  - &one
    low: 3
again: *one
"""


def test_every_value_has_the_line_of_its_key() -> None:
    assert lines_of(LINES) == {
        "": 1,
        "/name": 1,
        "/training": 2,
        "/training/optimizer": 3,
        "/training/a~1b~0c": 4,
        "/parameters": 5,
        "/parameters/0": 6,
        "/parameters/0/low": 6,
        "/parameters/0/high": 7,
        "/parameters/1": 8,
        "/parameters/1/low": 9,
        "/again": 10,
    }


@pytest.mark.parametrize("text", ["a: [", "", "\x00", "[" * 1000])
def test_what_is_no_yaml_has_no_lines(text: str) -> None:
    assert lines_of(text) == {}


def test_lines_of_a_bomb_of_aliases_are_few() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    assert len(lines_of("\n".join(lines))) < 1000
