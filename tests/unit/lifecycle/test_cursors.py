"""Cursors: what was encoded comes back, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner_service.errors import InputError
from tuner_service.reads.cursors import decode_cursor, encode_cursor


@given(value=st.floats(allow_nan=False, allow_infinity=False), number=st.integers(0, 2**40))
def test_a_cursor_comes_back_as_it_was(value: float, number: int) -> None:
    cursor = encode_cursor(value, number)
    assert decode_cursor(cursor, (int, float), int) == [value, number]


@given(text=st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        found = decode_cursor(text, int, str)
    except InputError:
        return
    assert isinstance(found[0], int)
    assert isinstance(found[1], str)


@pytest.mark.parametrize(
    "cursor",
    ["", "AAAA", encode_cursor("x"), encode_cursor(True), encode_cursor(None), encode_cursor(1, 2)],
)
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    with pytest.raises(InputError, match="cursor"):
        decode_cursor(cursor, int)
