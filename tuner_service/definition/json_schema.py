"""JSON Schema of the sections whose further keys come from the catalogue."""

from collections.abc import Iterable, Mapping
from typing import Any

from tuner_service.definition.catalogue import (
    DATASETS,
    LOSSES,
    METRICS,
    NETWORKS,
    OPTIMIZERS,
    SCHEDULES,
    TRAINING,
    UPLOAD_FORMATS,
    UPLOAD_NAME,
    Entry,
)
from tuner_service.definition.options import MAX_TEXT, Option, option_schema

JsonSchema = dict[str, Any]

_MODULE_OPTION: JsonSchema = {
    "type": ["boolean", "number", "string", "null"],
    "maxLength": MAX_TEXT,
}


def dataset_schema(base: JsonSchema) -> JsonSchema:
    """Return one alternative per data set of the catalogue, and one for data that users bring.

    `base` has `name`, `split`, and what only uploaded data has.
    """
    own = {key: base["properties"][key] for key in ("name", "split")}
    result = _alternatives({**base, "properties": own}, "name", DATASETS)
    formats = [DATASETS[name] for name in UPLOAD_FORMATS]
    options = {k: v for k, v in merged_options(formats).items() if k not in ("path", "test_path")}
    uploaded = {
        "title": "uploaded data, or a module of the workers that loads data",
        "type": "object",
        "properties": {
            **base["properties"],
            **options,
            "name": {
                "type": "string",
                "pattern": UPLOAD_NAME,
                "not": {"enum": list(DATASETS)},
            },
            "format": {"enum": [*UPLOAD_FORMATS, None], "description": "Filled in by the service."},
        },
        "required": ["name"],
        "additionalProperties": _MODULE_OPTION,
    }
    return {**result, "oneOf": [*result["oneOf"], uploaded]}


def network_schema(base: JsonSchema) -> JsonSchema:
    """Return one alternative per network, and one for modules that workers bring."""
    result = _alternatives(base, "type", NETWORKS)
    return {**result, "oneOf": [*result["oneOf"], _brought(NETWORKS, "a module of the workers")]}


def _brought(known: Mapping[str, Entry], title: str) -> JsonSchema:
    """Return the alternative of what only workers know: any name that is none of ours."""
    return {
        "title": title,
        "type": "object",
        "properties": {
            "type": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_TEXT,
                "not": {"enum": list(known)},
            }
        },
        "required": ["type"],
        "additionalProperties": _MODULE_OPTION,
    }


def method_schema(base: JsonSchema, methods: Mapping[str, Entry], *, default: str) -> JsonSchema:
    """Return one alternative per sampler or pruner; the default's type may be left out."""
    result = _alternatives(base, "type", methods)
    for alternative in result["oneOf"]:
        if alternative["properties"]["type"]["const"] == default:
            alternative["required"].remove("type")
    return {**result, "oneOf": [*result["oneOf"], _brought(methods, "a package of the workers")]}


def training_schema(base: JsonSchema) -> JsonSchema:
    """Return the training loop's fields with the options of all optimizers and schedules."""
    properties = {**base["properties"], **merged_options(TRAINING.values())}
    properties["optimizer"] = _one_of(OPTIMIZERS, "What updates the weights.", default="adam")
    properties["schedule"] = _one_of(SCHEDULES, "How the rate moves.", default="constant")
    properties["loss"] = _one_of(LOSSES, "What training minimises; default: by the task.")
    # Any text: a network's module may bring metrics of its own.
    properties["metrics"]["items"] |= {"examples": list(METRICS)}
    for kind in (OPTIMIZERS, SCHEDULES):
        properties |= merged_options(kind.values())
    return {**base, "properties": properties, "additionalProperties": False}


def merged_options(entries: Iterable[Entry]) -> dict[str, JsonSchema]:
    """Return the schema of every option that one of the entries knows, saying which do."""
    owners: dict[str, list[str]] = {}
    options: dict[str, Option] = {}
    for entry in entries:
        for option in entry.options:
            options.setdefault(option.name, option)
            owners.setdefault(option.name, []).append(entry.name)
    return {name: _owned(option, owners[name]) for name, option in options.items()}


def _owned(option: Option, owners: list[str]) -> JsonSchema:
    schema = option_schema(option)
    if owners == ["training"]:
        return schema
    schema.pop("default", None)  # it differs between owners
    schema["description"] = f"{option.description} For {', '.join(owners)}."
    return schema


def _one_of(entries: Mapping[str, Entry], description: str, default: str = "") -> JsonSchema:
    schema: JsonSchema = {"enum": [*entries, None], "description": description}
    return {**schema, "default": default} if default else schema


def _alternatives(base: JsonSchema, key: str, entries: Mapping[str, Entry]) -> JsonSchema:
    return {
        "title": base["title"],
        "description": base.get("description", ""),
        "oneOf": [_alternative(base, key, entry) for entry in entries.values()],
    }


def _alternative(base: JsonSchema, key: str, entry: Entry) -> JsonSchema:
    required = [option.name for option in entry.options if option.required]
    return {
        "title": entry.name,
        "description": entry.description,
        "type": "object",
        "properties": {
            **base["properties"],
            key: {"const": entry.name},
            **{option.name: option_schema(option) for option in entry.options},
        },
        "required": [key, *required],
        "additionalProperties": False,
    }
