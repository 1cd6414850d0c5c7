"""From data to a checked definition, or to everything that is wrong with it.

Each section is read by itself, and what is faulty in one is struck out before the rest of it is
checked, so that one mistake hides no other.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from tuner_service.definition.checks import PartialDefinition, check
from tuner_service.definition.checks.json_tree import guarded
from tuner_service.definition.faults import Faults, Path, did_you_mean
from tuner_service.definition.limits import Limits
from tuner_service.definition.options import show
from tuner_service.definition.sections import Dataset, Objective
from tuner_service.definition.space import PARAMETER_TYPES, Parameter, canonical
from tuner_service.definition.study import MAX_OBJECTIVES, MAX_PARAMETERS, StudyDefinition
from tuner_service.definition.uploads import Upload, pinned_to
from tuner_service.definition.user_modules import ModuleDescription, RefusedModule

ModelT = TypeVar("ModelT", bound=BaseModel)

_SECTIONS = ("dataset", "network", "sampler", "pruner", "training", "budget", "resources")
_FIELDS = ("name", "enqueue", "tags", "priority")


def parse_definition(
    data: Mapping[str, Any],
    *,
    limits: Limits | None = None,
    modules: Mapping[str, ModuleDescription] | None = None,
    uploads: Mapping[str, Upload] | None = None,
    refused: Iterable[RefusedModule] = (),
) -> StudyDefinition:
    """Return the definition that the data describes.

    Args:
        data: As read from JSON or YAML.
        limits: How large a study may be.
        modules: Networks that workers bring, by name.
        uploads: Data that was uploaded, by name; the definition is pinned to its present version.
        refused: Modules that workers do not offer.

    Raises:
        DefinitionError: Something is wrong; it lists everything that is.
    """
    faults = Faults()
    # An empty section of a YAML file is null; so is what a program leaves out.
    clean = {key: value for key, value in guarded(data, faults).items() if value is not None}
    draft = _read(clean, faults)
    uploads = uploads or {}
    check(
        draft,
        faults,
        limits=limits or Limits(),
        modules=modules or {},
        uploads=uploads,
        refused=refused,
    )
    faults.raise_if_any()
    definition = _with_canonical_points(StudyDefinition.model_validate(clean | _sections(draft)))
    dataset = definition.dataset
    upload = None if dataset is None else uploads.get(dataset.name)
    if dataset is None or upload is None:
        return definition
    return definition.model_copy(update={"dataset": pinned_to(dataset, upload)})


def _sections(draft: PartialDefinition) -> dict[str, Any]:
    """Return what was read of a definition without faults: pydantic takes models as they are."""
    given = {key: getattr(draft, key) for key in _SECTIONS}
    read = {key: section for key, section in given.items() if section is not None}
    return {**read, "objective": draft.objectives, "parameters": dict(draft.parameters)}


def _with_canonical_points(definition: StudyDefinition) -> StudyDefinition:
    """Return the definition with its enqueued points as the sampler would have drawn them."""
    points = tuple(
        {name: canonical(definition.parameters[name], value) for name, value in point.items()}
        for point in definition.enqueue
    )
    return definition.model_copy(update={"enqueue": points}) if points else definition


def _read(data: dict[str, Any], faults: Faults) -> PartialDefinition:
    fields = StudyDefinition.model_fields
    for key in data:
        if key not in fields:
            detail = f"there is no key {show(key)} here{did_you_mean(key, fields)}"
            faults.add((key,), detail, code="unknown_key")
    for key, field in fields.items():
        if field.is_required() and key not in data:
            faults.add((key,), f"{key} is required", code="missing")
    for key in _FIELDS:
        if key in data:
            _read_field(data, key, faults)
    sections = {key: _read_section(data, key, faults) for key in _SECTIONS}
    return PartialDefinition(
        **sections,
        objectives=_read_objectives(data.get("objective"), faults),
        parameters=_read_parameters(data.get("parameters"), faults),
        enqueue=data.get("enqueue"),
    )


def _read_field(data: dict[str, Any], key: str, faults: Faults) -> None:
    try:
        _ADAPTERS[key].validate_python(data[key])
    except ValidationError as error:
        faults.add_validation(error, (key,), None)


def _adapter(key: str) -> TypeAdapter[Any]:
    field = StudyDefinition.model_fields[key]
    return TypeAdapter(field.rebuild_annotation())


_ADAPTERS = {key: _adapter(key) for key in _FIELDS}
_MODELS: dict[str, type[BaseModel]] = {
    "dataset": Dataset,
    **{
        key: annotation
        for key in _SECTIONS
        if isinstance(annotation := StudyDefinition.model_fields[key].annotation, type)
    },
}


def _read_section(data: dict[str, Any], key: str, faults: Faults) -> Any:
    model = _MODELS[key]
    if key not in data:
        return None if key in ("dataset", "network") else model()
    return _read_model(model, data[key], (key,), faults)


def _read_model(model: type[ModelT], data: Any, path: Path, faults: Faults) -> ModelT | None:
    """Return the model; without the faulty keys if it has any; None if it cannot be read so."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults.add_validation(error, path, model)
        if not isinstance(data, Mapping):
            return None
        faulty = {details["loc"][0] for details in error.errors() if details["loc"]}
    try:
        return model.model_validate({k: v for k, v in data.items() if k not in faulty})
    except ValidationError:
        return None


def _read_objectives(data: Any, faults: Faults) -> tuple[Objective | None, ...]:
    if data is None:
        return ()
    if not isinstance(data, list):
        return (_read_model(Objective, data, ("objective",), faults),)
    if not 1 <= len(data) <= MAX_OBJECTIVES:
        detail = f"1 to {MAX_OBJECTIVES} objectives are possible, but got {len(data)}"
        faults.add(("objective",), detail, code="wrong_size")
    return tuple(
        _read_model(Objective, item, ("objective", i), faults)
        for i, item in enumerate(data[:MAX_OBJECTIVES])
    )


def _read_parameters(data: Any, faults: Faults) -> dict[str, Parameter | None]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        detail = f"parameters must be a mapping of names to domains, but got {show(data)}"
        faults.add(("parameters",), detail, code="wrong_type")
        return {}
    if not 1 <= len(data) <= MAX_PARAMETERS:
        detail = f"1 to {MAX_PARAMETERS} parameters are possible, but got {len(data)}"
        faults.add(("parameters",), detail, code="wrong_size")
    first = list(data.items())[:MAX_PARAMETERS]
    return {name: _read_parameter(item, ("parameters", name), faults) for name, item in first}


def _read_parameter(data: Any, path: Path, faults: Faults) -> Parameter | None:
    if not isinstance(data, dict):
        detail = (
            "a parameter is a mapping such as {type: float, low: 0.1, high: 0.9}, but got "
            f"{show(data)}; what is fixed stands in network or training"
        )
        faults.add(path, detail, code="wrong_type")
        return None
    kind = data.get("type")
    model = PARAMETER_TYPES.get(kind) if isinstance(kind, str) else None
    if model is None:
        hint = did_you_mean(kind, PARAMETER_TYPES) if isinstance(kind, str) else ""
        detail = f"type must be 'float', 'int' or 'categorical', but got {show(kind)}{hint}"
        code = "unknown_name" if "type" in data else "missing"
        faults.add((*path, "type"), detail, code=code)
        return None
    return _read_model(model, data, path, faults)
