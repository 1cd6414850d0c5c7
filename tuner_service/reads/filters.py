"""The filter of trials: `lr<1e-2 state:running optimizer:adam value>=0.9`.

Terms are separated by spaces, and all must hold. A term is a name, an operator and a value; a name
is a parameter's, or one of `FIELDS`. `:` and `=` are equality, of words without regard to case. A
trial without the value (a condition left the parameter out) fits `name:n/a` and no other term.
"""

import operator
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final

from tuner_service.errors import InputError
from tuner_service.reads.columns import TrialColumns

FIELDS: Final = ("number", "state", "value", "failure", "message", "worker", "seconds")
MOST_CHARACTERS: Final = 500
_TERM: Final = re.compile(
    r"(?P<name>[A-Za-z_]\w*)(?P<sign><=|>=|!=|[<>=:])(?P<value>.*)", re.DOTALL
)
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MISSING: Final = "n/a"


def matching(columns: TrialColumns, text: str) -> list[int]:
    """Return the places of the trials that fit a filter.

    Raises:
        InputError: A term is not of the grammar, or names nothing of this study.
    """
    places: Sequence[int] = range(len(columns))
    for term in _terms(text):
        found = _TERM.fullmatch(term)
        if found is None:
            raise InputError(
                f"a filter's term must be name, operator and value, as in lr<1e-2, but got {term!r}"
            )
        column = _column(columns, found["name"])
        places = _narrowed(places, column, found["sign"], found["value"])
    return list(places)


def _narrowed(places: Sequence[int], column: Sequence[Any], sign: str, wanted: str) -> list[int]:
    if sign in _ORDER:
        compare, bound = _ORDER[sign], _number(wanted)
        if bound is None:
            raise InputError(f"{sign} needs a number after it, but got {wanted!r}")
        return [
            place
            for place in places
            if isinstance(value := column[place], (float, int)) and compare(value, bound)
        ]
    equal = _equality(wanted)
    return _fitting(places, column, equal if sign != "!=" else lambda value: not equal(value))


def _fitting(
    places: Sequence[int], column: Sequence[Any], fits: Callable[[Any], bool]
) -> list[int]:
    """Ask once for each value there is: choices and states have few."""
    known: dict[Any, bool] = {}
    kept = []
    for place in places:
        value = column[place]
        key = (value, type(value)) if isinstance(value, bool) else value
        fit = known.get(key)
        if fit is None:
            fit = known[key] = fits(value)
        if fit:
            kept.append(place)
    return kept


def _terms(text: str) -> list[str]:
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"a filter has at most {MOST_CHARACTERS} characters, but got {len(text)}")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"a filter's quotes must close, but got {text!r}") from error


def _column(columns: TrialColumns, name: str) -> Sequence[Any]:
    if name in columns.parameters:
        return columns.parameters[name]
    if name == "seconds":
        return [
            None if end is None else end - begin
            for begin, end in zip(columns.started, columns.finished, strict=True)
        ]
    for index, objective in enumerate(columns.definition.objective):
        if name == objective.metric and columns.values:
            return columns.values[index]
    if name in FIELDS:
        column: Sequence[Any] = getattr(columns, name)
        return column
    known = ", ".join([*(space for space in columns.parameters), *FIELDS])
    raise InputError(f"a filter can name {known}, but got {name!r}")


def _equality(wanted: str) -> Callable[[Any], bool]:
    if wanted.lower() == _MISSING:
        return lambda value: value is None
    number, word = _number(wanted), wanted.lower()
    return lambda value: (
        value is not None
        and (
            (number is not None and not isinstance(value, (str, bool)) and value == number)
            or str(value).lower() == word
        )
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def ordered(columns: TrialColumns, places: Sequence[int], sort: str) -> list[int]:
    """Return places by number or value (`-`: the highest first); by value only those with one."""
    down = sort.startswith("-")
    if sort.endswith("number"):
        return sorted(places, key=lambda place: columns.number[place], reverse=down)
    value = columns.value
    valued = [place for place in places if value[place] is not None]
    return sorted(valued, key=lambda place: value[place] or 0.0, reverse=down)
