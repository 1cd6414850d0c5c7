"""Text from user code, made fit to store.

A message or a traceback may hold anything, and a gigabyte of output helps nobody.
"""

from typing import Final

from tuner_service.json_values import storable
from tuner_service.reads.views import Failure

MESSAGE_CHARACTERS: Final = 4_000
TRACEBACK_CHARACTERS: Final = 20_000
_CUT: Final = " […] "


def fit(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """Return the text as it can be stored; of one that is too long, its two ends."""
    if len(text) > limit:
        half = (limit - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:]
    return storable(text)


def fit_or_none(text: str | None, limit: int = MESSAGE_CHARACTERS) -> str | None:
    """Return `fit` of a text, and None of None."""
    return None if text is None else fit(text, limit)


def storable_failure(failure: Failure) -> Failure:
    """Return the failure with texts that can be stored."""
    return failure.model_copy(
        update={
            "message": fit(failure.message),
            "traceback": fit_or_none(failure.traceback, TRACEBACK_CHARACTERS),
        }
    )
