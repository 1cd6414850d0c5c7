"""Bad definitions are refused with a pointer and a sentence that says what to change."""

import json
import math
from typing import Any

import pytest

from tests.unit.definition.bad_definitions import BAD, GRID, RATE
from tests.unit.definition.builders import (
    MOMENTUM,
    OPTIMIZER,
    choice,
    definition,
    faults_of,
    floats,
    ints,
    searching,
    the_fault,
)
from tuner_service.definition import (
    Limits,
    ModuleDescription,
    Option,
    load_yaml,
    parse_definition,
)


@pytest.mark.parametrize(
    ("data", "pointer", "part"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_bad_input_is_one_fault_with_a_pointer(
    data: dict[str, Any], pointer: str, part: str
) -> None:
    fault = the_fault(data)
    assert fault.pointer == pointer
    assert part in fault.detail
    assert fault.code


def test_base_definition_is_good() -> None:
    assert parse_definition(definition()).name == "digits"


@pytest.mark.parametrize("data", [None, [], "text", 3, True, [{"name": "a"}]])
def test_what_is_no_mapping_is_refused(data: Any) -> None:
    fault = the_fault(data)
    assert fault.pointer == ""
    assert "mapping" in fault.detail


def test_every_fault_is_reported_at_once() -> None:
    data = definition(
        name="a b",
        dataset={"name": "digits", "split": {"validation": 2}, "standardise": True},
        network={"type": "mlp", "hidden_units": 0, "depth": 3},
        parameters={
            "learning_rate": floats(1, 0.1),
            "momentum": floats(0.1, 0.9),
            "optimizer": choice("sgd", "adamm"),
            "lr": RATE,
        },
        sampler={"type": "tpee"},
        training={"epochs": "3", "optimiser": "adam"},
        budget={"timeout": "soon"},
        enqueue=[{"optimizer": "foo"}],
        extra=1,
    )
    assert {fault.pointer for fault in faults_of(data)} == {
        "/name",
        "/extra",
        "/dataset/split/validation",
        "/dataset/standardise",
        "/network/hidden_units",
        "/network/depth",
        "/parameters/learning_rate/high",
        "/parameters/optimizer/choices/1",
        "/parameters/lr",
        "/sampler/type",
        "/training/epochs",
        "/training/optimiser",
        "/budget/timeout",
        "/budget/trials",
        "/enqueue/0/optimizer",
    }


def test_a_struck_value_causes_no_further_fault() -> None:
    data = searching(learning_rate=floats(math.nan, math.nan), dropout=floats(0.5, 0.1))
    assert [fault.pointer for fault in faults_of(data)] == [
        "/parameters/learning_rate/low",
        "/parameters/learning_rate/high",
        "/parameters/dropout/high",
    ]


def test_pointers_are_escaped() -> None:
    assert the_fault(definition(**{"a/b~c": 1})).pointer == "/a~1b~0c"


def test_there_are_at_most_a_hundred_faults() -> None:
    bad = choice(*(f"optimizer-{i}" for i in range(1000)))
    assert len(faults_of(searching(optimizer=bad))) == 100


@pytest.mark.parametrize(
    "value",
    ["a\x00b", "\ud800", "line\nbreak", "\x7f", b"bytes", {1, 2}, object(), 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_or_a_database_cannot_hold_are_refused(value: Any) -> None:
    assert the_fault(definition(tags={"a": value})).pointer == "/tags/a"
    assert the_fault(definition(dataset={"name": value})).pointer == "/dataset/name"


@pytest.mark.parametrize("key", [1, None, True, "a\x00", "\ud800", ("a",)])
def test_keys_must_be_plain_text(key: Any) -> None:
    assert the_fault({**definition(), key: 1}).code == "bad_key"


def test_a_merge_key_is_named() -> None:
    text = """
learning_rate: &p {type: float, low: 1e-5, high: 1e-1, log: true}
weight_decay: {<<: *p, high: 1e-2}
"""
    fault = the_fault({**definition(), "parameters": load_yaml(text)})
    assert fault.pointer == "/parameters/weight_decay"
    assert fault.detail.startswith("`<<` would merge mappings in YAML 1.1")
    assert "write the keys out" in fault.detail


def test_depth_and_size_are_bounded() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert faults_of({**definition(), "tags": {"a": deep}})[0].code == "too_deep"
    wide = definition(enqueue=[{"learning_rate": 0.01}] * 200_000)
    assert the_fault(wide).code == "too_large"
    text = "a" * 4096  # an alias of YAML makes it many for a few bytes each
    heavy = definition(enqueue=[{"learning_rate": text}] * 300)
    assert "1000000 characters" in the_fault(heavy).detail


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop += [loop, loop, loop]
    assert faults_of({**definition(), "tags": {"a": loop}})[0].code in ("too_deep", "too_large")


def test_empty_sections_are_as_absent() -> None:
    empty = dict.fromkeys(("sampler", "pruner", "training", "resources", "enqueue", "tags"))
    assert parse_definition(definition(**empty)) == parse_definition(definition())


def test_a_definition_survives_json() -> None:
    data = definition(
        objective=[{"metric": "val_accuracy"}, {"metric": "parameter_count"}],
        parameters={
            "optimizer": OPTIMIZER,
            "momentum": MOMENTUM,
            "batch_size": choice(16, "full"),
            "gradient_clip": choice(None, 1.0, 5),
        },
        budget={"trials": 20, "timeout": "1h30m"},
        enqueue=[{"optimizer": "sgd", "gradient_clip": None}],
        training={"epochs": 3, "beta1": 0.8, "schedule": "step", "gamma": 0.5},
        tags={"team": "vision ☃"},
    )
    parsed = parse_definition(data)
    dumped = json.loads(json.dumps(parsed.model_dump(mode="json")))
    assert parse_definition(dumped) == parsed
    assert type(parsed).model_validate(dumped) == parsed
    assert dumped["budget"]["timeout"] == 5400.0
    assert "device" not in dumped


def test_enqueued_values_are_as_the_sampler_would_draw_them() -> None:
    parsed = parse_definition(
        definition(
            parameters={
                "hidden_units": ints(8, 64, log=True),
                "dropout": floats(0, 0.5),
                "batch_size": choice(16, "full"),
            },
            enqueue=[{"hidden_units": 32.0, "dropout": 0, "batch_size": 16.0}],
        )
    )
    point = parsed.enqueue[0]
    assert {name: (value, type(value)) for name, value in point.items()} == {
        "hidden_units": (32, int),
        "dropout": (0.0, float),
        "batch_size": (16, int),
    }


def test_a_single_objective_stays_a_mapping() -> None:
    parsed = parse_definition(definition(objective=[{"metric": "val_loss"}]))
    assert parsed.objective[0].direction == "minimize"
    assert parsed.model_dump(mode="json")["objective"] == {
        "metric": "val_loss",
        "direction": "minimize",
    }


def test_conditions_on_conditional_parameters() -> None:
    parsed = parse_definition(
        searching(
            beta1=floats(0.5, 0.9, when={"hidden_layers": 3}),
            hidden_layers=choice(2, 3, when={"optimizer": "adam"}),
            optimizer=choice("sgd", "adam"),
        )
    )
    assert parsed.parameters["beta1"].when == {"hidden_layers": (3,)}


def test_a_fixed_option_may_suit_some_of_the_searched_optimizers() -> None:
    data = definition(parameters={"optimizer": OPTIMIZER}, training={"momentum": 0.5})
    assert parse_definition(data).training.fixed == {"momentum": 0.5}


def test_limits_are_the_operators() -> None:
    few = Limits(grid=5, slots=9)
    assert the_fault(definition(), limits=few).pointer == "/budget/trials"
    grid = definition(sampler=GRID, budget=..., parameters={"learning_rate": {**RATE, "steps": 6}})
    assert the_fault(grid, limits=few).pointer == "/parameters"
    assert parse_definition(grid).sampler.type == "grid"


MODULE = ModuleDescription(
    name="my_net",
    source_hash="0" * 64,
    parameters=(
        Option(name="depth", type="int", low=1, high=9, default=2, description="Layers."),
        Option(name="kind", type="any", default="a", description="Anything."),
    ),
)


def test_modules_of_workers_are_networks() -> None:
    data = definition(network={"type": "my_net", "kind": "b"}, parameters={"depth": ints(1, 4)})
    assert parse_definition(data, modules={"my_net": MODULE}).network.options == {"kind": "b"}
    assert the_fault(data).pointer == "/network/type"
    wrong = definition(network={"type": "my_net", "width": 3}, parameters={"depth": ints(1, 40)})
    found = faults_of(wrong, modules={"my_net": MODULE})
    assert [fault.pointer for fault in found] == ["/network/width", "/parameters/depth/high"]


def test_the_task_may_follow_from_loss_or_metric() -> None:
    table = {"name": "csv", "path": "a.csv", "target": -1}
    parse_definition(definition(dataset=table))
    numbers = definition(
        dataset=table, objective={"metric": "val_loss"}, training={"loss": "huber"}
    )
    parse_definition(numbers)
