"""Opaque cursors: where a page ended, so that the next one costs no more than the first."""

import base64
import binascii
import json
from typing import Any

from tuner_service.errors import InputError

Kinds = type | tuple[type, ...]


def encode_cursor(*place: float | int | str | None) -> str:
    """Return the cursor of a place in an order."""
    text = json.dumps(place, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: Kinds) -> list[Any]:
    """Return the place a cursor names.

    Raises:
        InputError: It was not made by `encode_cursor` for such a place.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        place = json.loads(text)
    except (binascii.Error, ValueError):
        place = None
    if not isinstance(place, list) or len(place) != len(kinds) or not _fit(place, kinds):
        raise InputError(f"the cursor {cursor[:40]!r} is not one that this list gave")
    return place


def _fit(place: list[object], kinds: tuple[Kinds, ...]) -> bool:
    for value, kind in zip(place, kinds, strict=True):
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        if isinstance(value, int) and abs(value) >= 2**62:
            return False
    return True
