"""Reading JSON bodies: what is read, and what is refused with a sentence that says where."""

from typing import Any

import pytest

from tuner_service.api.http.body import MAX_DEPTH, MalformedBodyError, parse_json


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b'"' + b"[" * 1000 + b'"', "[" * 1000),  # brackets in text are no depth
        (rb'"\"[[[["', '"[[[['),
        ('"ü 🙂"'.encode(), "ü 🙂"),
        (rb'"\ud83d\ude42"', "🙂"),
    ],
)
def test_json_is_read(body: bytes, value: Any) -> None:
    read = parse_json(body)
    assert value is None or read == value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deeper than 32"),
        (b'{"a":' * 100_000, "deeper than 32"),
        (b"NaN", "NaN is not"),
        (b"[-Infinity]", "-Infinity is not"),
        (b"1e999", "1e999 is too large"),
        (b"1" * 5000, "too long"),
        (b'{"low": 1, "low": 2}', "'low' stands twice"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (rb'{"a\u0000": 1}', "not text"),
        (rb'["\ud800"]', "not text"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(MalformedBodyError, match=said):
        parse_json(body)
