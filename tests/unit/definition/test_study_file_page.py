"""Every YAML block of the study file's page is a good definition, or a part of one."""

import re
from pathlib import Path

import pytest

from tests.unit.definition.builders import definition
from tuner_service.definition import load_yaml, parse_definition, total_slots
from tuner_service.definition.catalogue import (
    ACTIVATIONS,
    DATASETS,
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    PRUNERS,
    SAMPLERS,
    SCHEDULES,
    TRAINING,
)
from tuner_service.definition.sections import Training
from tuner_service.definition.study import StudyDefinition

PAGE = (Path(__file__).parents[3] / "docs" / "study-file.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_yaml_blocks_are_good(text: str) -> None:
    data = load_yaml(text)
    parse_definition(data if "name" in data else definition(**data))


def test_the_grids_size_is_the_one_told() -> None:
    (text,) = [block for block in BLOCKS if "type: grid" in block]
    assert total_slots(parse_definition(definition(**load_yaml(text)))) == 9


def test_everything_there_is_stands_on_the_page() -> None:
    kinds = (ACTIVATIONS, DATASETS, LOSSES, NETWORKS, OPTIMIZERS, PRUNERS, SAMPLERS, SCHEDULES)
    entries = [entry for kind in (*kinds, TRAINING) for entry in kind.values()]
    names = {entry.name for kind in kinds for entry in kind.values()} - {"none"}
    names |= {option.name for entry in entries for option in entry.options}
    names |= {*StudyDefinition.model_fields, *Training.model_fields}
    assert {name for name in names if not re.search(rf"\b{name}\b", PAGE)} == set()
