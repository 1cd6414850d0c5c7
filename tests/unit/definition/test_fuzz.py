"""Whatever comes in, a checked definition or a DefinitionError comes out, and the former works."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from tests.unit.definition.builders import MOMENTUM, OPTIMIZER, definition
from tests.unit.definition.from_schema import from_schema
from tuner_service.definition import (
    StudyDefinition,
    bindings,
    fusing,
    load_yaml,
    most_epochs,
    parallel_trials,
    parse_definition,
    resolve,
    space_of,
    study_schema,
    total_slots,
    warnings_of,
)
from tuner_service.definition.published_schema import EXAMPLES
from tuner_service.errors import DefinitionError
from tuner_service.search.samplers.uniform import draw

SCHEMA = study_schema()
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)
FILES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))

GOOD: list[dict[str, Any]] = [
    *EXAMPLES,
    *(load_yaml(file.read_text()) for file in FILES),
    definition(
        objective=[{"metric": "val_accuracy"}, {"metric": "parameter_count"}],
        parameters={
            "optimizer": OPTIMIZER,
            "momentum": MOMENTUM,
            "hidden_layers": {"type": "int", "low": 1, "high": 3, "when": {"optimizer": "adam"}},
            "beta1": {
                "type": "float",
                "low": 0.5,
                "high": 0.9,
                "when": {"hidden_layers": [2, 3], "optimizer": "adam"},
            },
            "gradient_clip": {"type": "categorical", "choices": [None, 1, 0.5]},
        },
        enqueue=[{"optimizer": "sgd", "momentum": 0.5, "gradient_clip": None}],
    ),
]

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [0, 1, -1, 2**53, 2**63, 10**400, 5e-324, 1.7e308, math.nan, math.inf, "", "sgd", "adam",
         "\x00", "\ud800", "a/b~", "optimizer", b"", (), "1e-5", "true", "val_loss", "random",
         "grid", "median", "csv", "regression", "iris", "cnn", "learning_rate", "momentum"]
    )
)  # fmt: skip
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner)
    ),
    max_leaves=12,
)

relaxed = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def accepted(data: Any) -> StudyDefinition | None:
    """Parse; any exception but a sound DefinitionError fails the test."""
    try:
        return parse_definition(data)
    except DefinitionError as error:
        refusal = error
    check_refusal(refusal)
    return None


def check_refusal(refusal: DefinitionError) -> None:
    assert refusal.faults
    for fault in refusal.faults:
        json.dumps(fault.as_dict(), allow_nan=False).encode()
        assert fault.pointer == "" or fault.pointer.startswith("/")
        assert fault.detail
        assert fault.code


def check_works(parsed: StudyDefinition, seed: int) -> None:
    """A definition that was accepted can be stored, read back, planned and resolved."""
    dumped = parsed.model_dump(mode="json")
    text = json.dumps(dumped, allow_nan=False)
    assert parse_definition(json.loads(text)) == parsed
    assert StudyDefinition.model_validate(json.loads(text)) == parsed
    assert [error.message for error in VALIDATOR.iter_errors(dumped)] == []
    assert total_slots(parsed) >= 1
    assert parallel_trials(parsed) >= 1
    assert most_epochs(parsed) >= 1
    assert set(bindings(parsed)) == set(parsed.parameters) == {n for part in fusing(parsed)
                                                              for n in part}  # fmt: skip
    assert all(warnings_of(parsed))
    params = draw(space_of(parsed), seed=seed, slot=0, fixed={})
    check_spec(parsed, params)


def check_spec(parsed: StudyDefinition, params: dict[str, Any]) -> None:
    spec = resolve(parsed, params)
    values = {**spec.network, **spec.optimizer, **spec.schedule, **spec.dataset.options}
    values |= spec.model_dump()
    for name, value in params.items():
        if name in ("optimizer", "schedule"):
            assert getattr(spec, name)["type"] == value
        else:
            assert values[name] == value
    json.dumps(spec.model_dump(mode="json"), allow_nan=False)


@pytest.mark.parametrize("data", GOOD, ids=lambda data: data["name"])
def test_good_definitions_work(data: dict[str, Any]) -> None:
    parsed = parse_definition(data)
    for seed in range(20):
        check_works(parsed, seed)


@relaxed
@given(JSON)
def test_any_data(data: Any) -> None:
    accepted(data)


@relaxed
@given(st.fixed_dictionaries({key: JSON for key in definition()}))
def test_any_sections(data: dict[str, Any]) -> None:
    accepted(data)


@relaxed
@given(from_schema(SCHEMA, SCHEMA), st.integers(0, 99))
def test_what_the_schema_allows(data: dict[str, Any], seed: int) -> None:
    assume(VALIDATOR.is_valid(data))
    parsed = accepted(data)
    event("accepted" if parsed else "refused")
    if parsed is not None:
        check_works(parsed, seed)


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in pairs:
        yield from _places(value, (*path, key))


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """Return a good definition with up to three places changed, removed, renamed or copied."""
    data: Any = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(data))
        path = draw(st.sampled_from(places))
        if not path:
            continue
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        _mutate(draw, parent, path[-1], data, places)
    return data


def _mutate(draw: st.DrawFn, parent: Any, key: Any, data: Any, places: list[Any]) -> None:
    kind = draw(st.sampled_from(("replace", "remove", "rename", "copy", "nudge")))
    if kind == "replace":
        parent[key] = draw(JSON)
    elif kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["x", "momentum", "when", "optimizer"]))] = parent.pop(key)
    elif kind == "copy":
        value = data
        for part in draw(st.sampled_from(places)):
            value = value[part]
        parent[key] = copy.deepcopy(value)
    elif kind == "nudge" and isinstance(parent[key], (int, float)):
        parent[key] = parent[key] * draw(st.sampled_from((-1, 0, 2, 0.5, 1e9)))


@settings(relaxed, max_examples=600)
@given(mutations(), st.integers(0, 99))
def test_mutated_definitions(data: Any, seed: int) -> None:
    parsed = accepted(data)
    event("accepted" if parsed else "refused")
    if parsed is not None:
        check_works(parsed, seed)
