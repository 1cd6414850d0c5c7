"""The published JSON Schema: valid, in force, described, with examples."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.unit.definition.bad_definitions import BAD
from tests.unit.definition.builders import definition
from tuner_service.definition import load_yaml, parse_definition, study_schema
from tuner_service.definition.catalogue import DATASETS, NETWORKS, OPTIMIZERS, SCHEDULES

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
SCHEMA = study_schema()
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)

STRUCTURAL = {
    "no name", "empty name", "name with slash", "unknown key", "priority is text", "data is text",
    "unknown data option", "network option out of range", "dropout of one", "bound is text",
    "bound is true", "empty choices", "unknown type", "a bare value", "unknown parameter key",
    "unknown sampler option", "epochs as text", "epochs of zero",
    "unknown optimizer", "unknown schedule", "unknown loss", "zero trials",
    "trials as text", "timeout in words", "unknown device", "no lanes", "unknown training key",
    "absolute path", "path of home", "backslashes", "csv without path",
    "tag name with space", "enqueued list", "four objectives", "direction",
}  # fmt: skip


def test_it_is_a_json_schema() -> None:
    jsonschema_rs.meta.validate(SCHEMA)


@pytest.mark.parametrize("data", SCHEMA["examples"], ids=lambda data: data["name"])
def test_its_examples_are_good(data: dict[str, Any]) -> None:
    VALIDATOR.validate(data)
    parse_definition(data)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_files_fit_it(file: Path) -> None:
    data = load_yaml(file.read_text())
    VALIDATOR.validate(data)
    assert parse_definition(data).name == file.stem


@pytest.mark.parametrize(
    "data", [row[1] for row in BAD if row[0] in STRUCTURAL], ids=sorted(STRUCTURAL)
)
def test_it_refuses_what_structure_shows(data: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(data)


def test_structural_cases_all_exist() -> None:
    assert {row[0] for row in BAD} >= STRUCTURAL


def test_every_option_of_the_catalogue_is_in_it() -> None:
    training = SCHEMA["$defs"]["Training"]["properties"]
    for entry in (*OPTIMIZERS.values(), *SCHEDULES.values()):
        assert {option.name for option in entry.options} <= training.keys()
    for section, key, entries in (("Dataset", "name", DATASETS), ("Network", "type", NETWORKS)):
        alternatives = SCHEMA["$defs"][section]["oneOf"]
        named = {one["properties"][key].get("const"): one for one in alternatives}
        for name, entry in entries.items():
            assert {option.name for option in entry.options} <= named[name]["properties"].keys()


def test_every_option_is_described() -> None:
    for name, schema in SCHEMA["$defs"]["Training"]["properties"].items():
        assert schema.get("description") or "$ref" in schema or name == "early_stopping", name


def test_modules_of_workers_fit_it() -> None:
    VALIDATOR.validate(definition(network={"type": "my_net", "depth": 3}))
    VALIDATOR.validate(definition(sampler={"type": "theirs", "anew": 0.5}, pruner={"type": "own"}))
