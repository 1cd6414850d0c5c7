"""Each example's first trial trains, for one epoch, from the file to the engine's result."""

import math
from pathlib import Path

import pytest

from examples import make_own_data
from tests.unit.training.builders import DATA, needs, only, run_all, start
from tuner_service.definition import load_yaml, parse_definition, resolve, space_of
from tuner_service.search.draw import draw
from workers.training.engine import Engine

FILES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_examples_first_trial_trains(file: Path, tmp_path: Path) -> None:
    make_own_data.main(tmp_path / "made")
    definition = parse_definition(load_yaml(file.read_text()))
    paths = definition.dataset.options.get("path", [])
    for path in [paths] if isinstance(paths, str) else paths:
        if not (tmp_path / "made" / path).exists():
            needs(path)
    fixed = definition.enqueue[0] if definition.enqueue else {}
    params = draw(space_of(definition), seed=0, slot=0, fixed=fixed)
    spec = resolve(definition, params).model_copy(update={"epochs": 1})
    engine = Engine("cpu", data_dirs=[DATA, tmp_path / "made"], threads=1)
    finished = only(run_all(engine, [start(1, spec, folder=tmp_path)]), 1, "finished")
    assert all(math.isfinite(value) for value in finished["values"])
    assert {f"test_{name}" for name in spec.metrics} <= _keys(finished["record"])


def _keys(record: object) -> set[str]:
    """Return every key of a record, at any depth."""
    if not isinstance(record, dict):
        return set()
    return set(record).union(*(_keys(value) for value in record.values()))
