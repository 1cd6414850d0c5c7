"""Text from user code, as it is stored."""

import pytest

from tuner_service.lifecycle.results import _note
from tuner_service.lifecycle.storable_text import fit, fit_or_none, storable_failure
from tuner_service.reads.views import Failure


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("nul \x00", "nul \ufffd"),
        ("half \ud800 a pair", "half \ufffd a pair"),
        ("grüße 🌍", "grüße 🌍"),
        ("", ""),
    ],
)
def test_text_is_made_fit_to_store(text: str, stored: str) -> None:
    assert fit(text) == stored
    fit(text).encode("utf-8")


def test_long_text_keeps_both_ends() -> None:
    stored = fit("a" * 5000 + "b" * 5000, 100)
    assert len(stored) <= 100
    assert stored.startswith("aaa")
    assert stored.endswith("bbb")
    assert "[…]" in stored


def test_none_stays_none() -> None:
    assert fit_or_none(None) is None


def test_a_failure_keeps_its_kind_and_step() -> None:
    failure = Failure(kind="user_code", message="\x00", step=3, traceback="t" * 100_000)
    stored = storable_failure(failure)
    assert (stored.kind, stored.step, stored.message) == ("user_code", 3, "\ufffd")
    assert len(stored.traceback or "") <= 20_000


@pytest.mark.parametrize("message", ["short", "m" * 2000, "m" * 4000])
@pytest.mark.parametrize("traceback", [None, "", "t" * 3000])
def test_a_note_fits_one_attribute_of_the_dashboard(message: str, traceback: str | None) -> None:
    note = _note(Failure(kind="diverged", message=message, step=2, traceback=traceback))
    assert note.startswith("**diverged** at step 2: ")
    assert len(note) <= 2045
