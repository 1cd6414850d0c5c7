"""Which texts and numbers can be stored and sent: one rule for what comes in and what goes out.

PostgreSQL stores no NUL, no database half of a surrogate pair, and JSON has no NaN and no infinity.
What a user writes is refused for it; what user code says of itself is made storable.
"""

import math
import re
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_storable(text: str) -> bool:
    """Return whether both databases can store the text, and compare with it."""
    return _UNSTORABLE.search(text) is None


def storable(text: str) -> str:
    """Return the text with U+FFFD for what cannot be stored."""
    return _UNSTORABLE.sub("\ufffd", text)


def has_control(text: str) -> bool:
    """Return whether the text holds control characters, line separators or lone surrogates."""
    return _CONTROL.search(text) is not None


def finite(value: Any) -> Any:
    """Return JSON data with null for numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
