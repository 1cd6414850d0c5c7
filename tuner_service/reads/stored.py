"""Stored definitions, read once: a worker's flushes look at the same few again and again."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tuner_service.definition import StudyDefinition


def stored_definition(data: Mapping[str, Any]) -> StudyDefinition:
    """Return the model of a definition that was checked when it was stored."""
    return _parsed(json.dumps(data, sort_keys=False))


@lru_cache(maxsize=256)
def _parsed(text: str) -> StudyDefinition:
    return StudyDefinition.model_validate_json(text)
