"""Describing modules without importing them."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tuner_service.definition import (
    ModuleDescription,
    parse_definition,
    required_modules,
    resolve,
    resolve_user_loop,
)
from tuner_service.definition.user_modules import NOT_OFFERED
from tuner_service.errors import DefinitionError, SettingsError
from workers.user_modules import (
    FolderContents,
    ModuleFaultError,
    ModuleFolder,
    describe,
    open_folder,
)

SOURCE = '''"""A tower of layers.

More of it.
"""
from typing import Literal
import this_is_never_imported

def build(inputs, outputs, width: int, depth: int = 2, slope: float = 0.1, kind="relu",
          norm: Literal["batch", "none"] = "none", cut: float | None = None, *, wide: bool = False):
    """Build it.

    Args:
        width: Units of a layer.
        depth (int): Layers.
    """

def loss(output, target):
    pass
'''


def write(folder: Path, source: str, name: str = "tower.py") -> Path:
    path = folder / name
    path.write_text(source)
    return path


def fault(folder: Path, source: str, name: str = "tower.py") -> str:
    with pytest.raises(ModuleFaultError) as caught:
        describe(write(folder, source, name))
    return str(caught.value)


def test_parameters_come_from_the_signature(tmp_path: Path) -> None:
    found = describe(write(tmp_path, SOURCE))
    assert (found.name, found.description, found.defines) == (
        "tower",
        "A tower of layers.",
        ("build", "loss"),
    )
    by_name = {option.name: option for option in found.parameters}
    assert list(by_name) == ["width", "depth", "slope", "kind", "norm", "cut", "wide"]
    kinds = {name: option.type for name, option in by_name.items()}
    assert kinds["width"] == kinds["depth"] == "int"
    assert (kinds["slope"], kinds["kind"], kinds["wide"]) == ("float", "string", "boolean")
    assert by_name["width"].required
    assert not by_name["depth"].required
    assert by_name["depth"].default == 2
    assert by_name["norm"].choices == ("batch", "none")
    assert by_name["cut"].also == (None,)
    assert by_name["width"].description == "Units of a layer."
    assert by_name["depth"].description == "Layers."


@pytest.mark.parametrize(
    ("note", "type_", "choices", "also"),
    [
        ("'int'", "int", None, ()),
        ("'int | None'", "int", None, (None,)),
        ("'Optional[int]'", "int", None, (None,)),
        ("Optional[int]", "int", None, (None,)),
        ("typing.Optional[float]", "float", None, (None,)),
        ("t.Union[str, None]", "string", None, (None,)),
        ("Optional['bool']", "boolean", None, (None,)),
        ("t.Literal['a', 'b']", "any", ("a", "b"), ()),
        ("Optional[t.Literal['a', 'b']]", "any", ("a", "b"), (None,)),
        ("'Literal[1, 2] | None'", "any", (1, 2), (None,)),
    ],
)
def test_annotations_are_read_however_they_are_written(
    tmp_path: Path, note: str, type_: str, choices: Any, also: Any
) -> None:
    (option,) = describe(write(tmp_path, f"def build(width: {note}): pass")).parameters
    assert (option.type, option.choices or None, option.also) == (type_, choices, also)


@pytest.mark.parametrize(
    "note", ["'int |'", "int | str", "Optional[list]", "Union[int, str, None]"]
)
def test_an_annotation_of_no_parameter_says_what_would_do(tmp_path: Path, note: str) -> None:
    assert "must be of type int" in fault(tmp_path, f"def build(width: {note}): pass")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def build(inputs, **options): pass", "no **kwargs"),
        ("def build(*sizes): pass", "no *args"),
        ("def build(width, /): pass", "positional-only"),
        ("def build(width: list[int]): pass", "must be of type int"),
        ("def build(learning_rate: float = 0.1): pass", "means something in training"),
        ("def build(momentum: float = 0.1): pass", "means something in training"),
        ("def build(missing: str = 'drop'): pass", "option of data"),
        ("def build(standardize: bool = True): pass", "option of data"),
        ("def make(): pass", "must have `def build"),
        ("def build(:", "is not Python"),
        ("x = '\0'", "is not Python"),
    ],
)
def test_what_cannot_be_offered_says_why(tmp_path: Path, source: str, said: str) -> None:
    assert said in fault(tmp_path, source)


@pytest.mark.parametrize("name", ["mlp.py", "2nd.py", "with-dash.py", "class.py"])
def test_names_are_pythons_and_not_taken(tmp_path: Path, name: str) -> None:
    assert "name" in fault(tmp_path, "def build(): pass", name)


def test_a_folder_is_read_when_a_file_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ModuleFolder(tmp_path)
    assert folder.changed() == FolderContents({}, ())
    assert folder.changed() is None
    path = write(tmp_path, "def build(width: int = 1): pass")
    write(tmp_path, "def build(**options): pass", "broken.py")
    write(tmp_path, "def build(): pass", "_shared.py")
    with caplog.at_level(logging.WARNING):
        first = folder.changed()
    assert first is not None
    assert list(first.sound) == ["tower"]
    (broken,) = first.refused
    assert (broken.file, "no **kwargs" in broken.reason) == ("broken.py", True)
    assert f"module broken.py {NOT_OFFERED}{broken.reason}" in caplog.text
    assert folder.changed() is None
    path.write_text("def build(width: int = 22): pass")
    os.utime(path, ns=(1, 1))
    second = folder.changed()
    assert second is not None
    assert first.sound["tower"].source_hash != second.sound["tower"].source_hash
    path.unlink()
    left = FolderContents({}, (broken,))
    assert folder.changed() == left
    folder.forget()
    assert folder.changed() == left


@pytest.mark.parametrize(
    ("section", "pointer"),
    [
        ({"network": {"type": "tower"}}, "/network/type"),
        ({"dataset": {"name": "tower"}}, "/dataset/name"),
    ],
)
def test_a_study_that_names_a_refused_module_is_told_why(
    tmp_path: Path, section: dict[str, Any], pointer: str
) -> None:
    write(tmp_path, "import torch\n\ndef build(:\n")
    refused = ModuleFolder(tmp_path).read().refused
    body = definition() | {"network": {"type": "mlp"}} | section
    with pytest.raises(DefinitionError) as caught:
        parse_definition(body, refused=refused)
    (told,) = (one for one in caught.value.faults if one.pointer == pointer)
    assert told.code == "invalid_module"
    for words in (f"tower.py {NOT_OFFERED}", "not Python", "line 3"):
        assert words in told.detail


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        open_folder(tmp_path / "nowhere")


def definition(**network: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "dataset": {"name": "iris"},
        "network": {"type": "tower", **network},
        "objective": {"metric": "val_accuracy"},
        "parameters": {"depth": {"type": "int", "low": 1, "high": 4}},
        "sampler": {"type": "random"},
        "budget": {"trials": 2},
    }


def test_definitions_are_checked_against_it(tmp_path: Path) -> None:
    published = describe(write(tmp_path, SOURCE)).model_dump(mode="json")
    modules = {"tower": ModuleDescription.model_validate(published)}
    parse_definition(definition(width=3), modules=modules)
    for network, pointer in (
        ({}, "/network/width"),
        ({"width": "wide"}, "/network/width"),
        ({"width": 3, "norm": "layer"}, "/network/norm"),
        ({"width": 3, "widht": 4}, "/network/widht"),
    ):
        with pytest.raises(DefinitionError) as caught:
            parse_definition(definition(**network), modules=modules)
        assert [one.pointer for one in caught.value.faults] == [pointer]
    with pytest.raises(DefinitionError):
        parse_definition(definition(width=3))


EXTRAS = """
metrics = {"margin": lambda output, target: 0.0}

def build(inputs, outputs): ...

def load_data(rows: int, noise: float = 0.1): ...
"""


def faults_of(body: dict[str, Any], modules: dict[str, ModuleDescription]) -> dict[str, str]:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(body, modules=modules)
    return {one.pointer: one.detail for one in caught.value.faults}


def test_metrics_and_data_of_a_module_are_known_by_name(tmp_path: Path) -> None:
    found = describe(write(tmp_path, EXTRAS))
    assert (found.defines, found.metrics) == (("build", "load_data", "metrics"), ("margin",))
    modules = {"tower": found}
    good = {
        **definition(),
        "dataset": {"name": "tower", "rows": 30, "task": "classification"},
        "objective": {"metric": "val_margin", "direction": "minimize"},
        "parameters": {"learning_rate": {"type": "float", "low": 0.1, "high": 0.2}},
        "training": {"metrics": ["margin", "accuracy"]},
    }
    parsed = parse_definition(good, modules=modules)
    assert required_modules(parsed) == ("tower",)
    trial = resolve(parsed, {"learning_rate": 0.1})
    assert trial.metrics == ("margin", "accuracy")
    assert trial.dataset.options == {
        "rows": 30, "task": "classification", "standardize": True, "target_scale": None,
        "positive": None,
    }  # fmt: skip
    wrong = {
        **good,
        "dataset": {"name": "tower", "row": 30, "task": "classification"},
        "objective": {"metric": "val_margn"},
        "training": {"metrics": ["margins"]},
    }
    said = faults_of(wrong, modules)
    assert "did you mean 'rows'" in said["/dataset/row"]
    assert "rows is required" in said["/dataset/rows"]
    assert "did you mean 'val_margin'" in said["/objective/metric"]
    assert "did you mean 'margin'" in said["/training/metrics/0"]
    undirected = {**good, "objective": {"metric": "val_margin"}}
    assert list(faults_of(undirected, modules)) == ["/objective/direction"]


def test_what_is_searched_goes_to_the_network_or_to_the_data_as_it_was_checked(
    tmp_path: Path,
) -> None:
    source = "def build(inputs, outputs, image_size: int = 8): ...\ndef load_data(): ..."
    modules = {"tower": describe(write(tmp_path, source))}
    side = {"image_size": {"type": "int", "low": 4, "high": 8}}
    images = {"name": "images", "path": "photos"}
    trial = resolve(
        parse_definition({**definition(), "dataset": images, "parameters": side}, modules=modules),
        {"image_size": 6},
    )
    assert (trial.network["image_size"], trial.dataset.options["image_size"]) == (6, None)
    scaled = {"standardize": {"type": "categorical", "choices": [True, False]}}
    brought = {"name": "tower", "task": "classification"}
    trial = resolve(
        parse_definition(
            {**definition(), "dataset": brought, "parameters": scaled}, modules=modules
        ),
        {"standardize": False},
    )
    assert "standardize" not in trial.network
    assert trial.dataset.options["standardize"] is False


def test_a_loop_names_its_parameters_or_takes_any(tmp_path: Path) -> None:
    loop = {"tower": describe(write(tmp_path, "def train(trial, learning_rate: float): ..."))}
    free = {"tower": describe(write(tmp_path, "def train(trial): ..."))}
    body = {
        **definition(),
        "objective": {"metric": "score", "direction": "maximize"},
        "parameters": {"learning_rate": {"type": "float", "low": 0.1, "high": 0.2}},
    }
    del body["dataset"]
    assert (loop["tower"].open, free["tower"].open) == (False, True)
    for modules in (loop, free):
        spec = resolve_user_loop(parse_definition(body, modules=modules), {"learning_rate": 0.1})
        assert (spec.module, spec.parameters) == ("tower", {"learning_rate": 0.1})
    other = {**body, "parameters": {"anything": {"type": "int", "low": 1, "high": 2}}}
    assert parse_definition(other, modules=free).is_user_loop
    said = faults_of(other, loop)
    assert "tower has no parameter 'anything'" in said["/parameters/anything"]
    assert "/network/learning_rate" in said
