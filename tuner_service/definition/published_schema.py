"""The published JSON Schema of study definitions, with examples."""

import re
from typing import Any

from tuner_service.definition.study import StudyDefinition

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

EXAMPLES: tuple[dict[str, Any], ...] = (
    {
        "name": "digits-tpe",
        "dataset": {"name": "digits"},
        "network": {"type": "mlp", "hidden_layers": 2, "hidden_units": 64},
        "objective": {"metric": "val_accuracy", "direction": "maximize"},
        "parameters": {
            "learning_rate": {"type": "float", "low": 1e-5, "high": 0.1, "log": True},
            "batch_size": {"type": "categorical", "choices": [16, 32, 64]},
            "optimizer": {"type": "categorical", "choices": ["sgd", "nesterov", "adam"]},
            "momentum": {
                "type": "float",
                "low": 0.1,
                "high": 0.99,
                "when": {"optimizer": ["sgd", "nesterov"]},
            },
        },
        "sampler": {"type": "tpe", "seed": 42},
        "pruner": {"type": "median", "startup_trials": 5, "warmup_steps": 3},
        "training": {"epochs": 20, "early_stopping": {"patience": 5}},
        "budget": {"trials": 50, "timeout": "2h"},
        "enqueue": [{"learning_rate": 0.001, "optimizer": "adam"}],
        "tags": {"team": "vision"},
    },
    {
        "name": "wine-grid",
        "dataset": {"name": "csv", "path": "wine.csv", "target": "quality", "task": "regression"},
        "network": {"type": "mlp"},
        "objective": {"metric": "val_r2"},
        "parameters": {
            "learning_rate": {
                "type": "float",
                "low": 1e-4,
                "high": 1e-2,
                "log": True,
                "steps": 5,
            },
            "hidden_units": {"type": "categorical", "choices": [32, 64, 128]},
        },
        "sampler": {"type": "grid"},
        "training": {"optimizer": "adamw", "schedule": "cosine", "epochs": 50},
    },
)


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study definition.

    What it cannot say (a parameter must bind to an option, conditions form no circle, the grid's
    size) is checked by `parse_definition`.
    """
    schema = StudyDefinition.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        _describe_fields(model)
    return {"$schema": DIALECT, **schema, "examples": list(EXAMPLES)}


def _describe_fields(model: dict[str, Any]) -> None:
    """Move what a model's docstring says of its attributes to the attributes."""
    summary, _, attributes = model.get("description", "").partition("\n\nAttributes:\n")
    model["description"] = " ".join(summary.split())
    for name, text in _ATTRIBUTE.findall(attributes):
        model["properties"][name].setdefault("description", " ".join(text.split()))
