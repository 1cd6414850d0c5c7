"""Definitions to start from, and what reads the faults of a bad one."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from tuner_service.definition import parse_definition
from tuner_service.errors import DefinitionError, Fault

BASE: dict[str, Any] = {
    "name": "digits",
    "dataset": {"name": "digits"},
    "network": {"type": "mlp"},
    "objective": {"metric": "val_accuracy", "direction": "maximize"},
    "parameters": {"learning_rate": {"type": "float", "low": 1e-5, "high": 0.1, "log": True}},
    "budget": {"trials": 10},
}

OPTIMIZER = {"type": "categorical", "choices": ["sgd", "nesterov", "adam"]}
MOMENTUM = {"type": "float", "low": 0.1, "high": 0.9, "when": {"optimizer": ["sgd", "nesterov"]}}


def definition(**changes: Any) -> dict[str, Any]:
    """Return a good definition with top-level keys replaced; `...` removes one."""
    merged = {**copy.deepcopy(BASE), **copy.deepcopy(changes)}
    return {key: value for key, value in merged.items() if value is not ...}


def searching(**parameters: Any) -> dict[str, Any]:
    """Return a good definition that searches these parameters only."""
    return definition(parameters=parameters)


def choice(*choices: Any, **more: Any) -> dict[str, Any]:
    return {"type": "categorical", "choices": list(choices), **more}


def floats(low: Any, high: Any, **more: Any) -> dict[str, Any]:
    return {"type": "float", "low": low, "high": high, **more}


def ints(low: Any, high: Any, **more: Any) -> dict[str, Any]:
    return {"type": "int", "low": low, "high": high, **more}


def faults_of(data: Any, **kwargs: Any) -> list[Fault]:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(data, **kwargs)
    return caught.value.faults


def the_fault(data: Mapping[str, Any], **kwargs: Any) -> Fault:
    faults = faults_of(data, **kwargs)
    assert len(faults) == 1, [fault.as_dict() for fault in faults]
    return faults[0]
