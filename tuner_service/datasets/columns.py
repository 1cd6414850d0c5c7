"""What a table's columns are: one kind per column, over all of its rows.

    n  rows

A text file's cell is a gap (one of the words for it), a number, or a text. A column whose cells
are all numbers holds numbers; one without any holds categories; one of both is refused, unless the
study declares it as categories. Categories keep the file's spelling; only 1 and 1.0 (and 1.00) are
the same one, since programs write whole numbers as such as soon as their column has a gap.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tuner_service.errors import DataError

Array = NDArray[Any]
Where = Callable[[int], str]
"""From a row of the chunk at hand to where its cell stands, for messages."""

GAPS: Final = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Words for an empty cell of a text file, unless the study names its own."""

TRUTHS: Final = {"True": 1.0, "TRUE": 1.0, "true": 1.0, "False": 0.0, "FALSE": 0.0, "false": 0.0}
EXACT: Final = 2.0**53  # beyond, a float64 does not tell whole numbers apart
MOST_TEXTS: Final = 1_000_000  # different ones of a column: each takes a hundred bytes
FEW: Final = 20  # different texts that any column may have, however short it is

_PLAIN = frozenset("0123456789+-.eE ")
_INFINITE = {"inf", "infinity"}
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")
_MONTH = r"(0?[1-9]|1[0-2])"
_DAY = r"(0?[1-9]|[12][0-9]|3[01])"
_NUMBER = r"[+-]?[0-9]+([.,][0-9]+)*"
_WRITTEN: Final = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (
            r"[+-]?[1-9][0-9]{0,2}([,. '’_\u00a0\u202f][0-9]{3})+([.,][0-9]+)?",
            "numbers with marks between thousands; take the marks away (or, where a comma stands "
            "before decimals, set decimal to ',')",
        ),
        (
            r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?",
            "numbers with a decimal comma; set decimal to ','",
        ),
        (rf"{_NUMBER} ?[%‰]", "numbers with a percent sign; take the sign away"),
        (
            rf"[+-]?[$€£¥₹] ?{_NUMBER}|{_NUMBER} ?([$€£¥₹]|USD|EUR|CHF|GBP)",
            "amounts with a currency; take all but the number away",
        ),
        (
            rf"[0-9]{{4}}[-/.]{_MONTH}[-/.]{_DAY}([T ].*)?"
            rf"|{_DAY}[-/.]{_DAY}[-/.][0-9]{{4}}( .*)?|{_DAY}/{_DAY}/[0-9]{{2}}( .*)?"
            rf"|{_DAY}\.?[ -][A-Za-z]{{3,9}}\.?[ -][0-9]{{2,4}}|[A-Za-z]{{3,9}} {_DAY}, [0-9]{{4}}"
            r"|[0-2]?[0-9]:[0-5][0-9](:[0-5][0-9].*)?",
            "dates or times; make numbers of them (a year, a month, days since the first)",
        ),
    )
)
"""Numbers as people write them, and what to do."""


def number(text: str, decimal: str = ".") -> float | None:
    """Return the number that a cell holds, or None: 1_000, 0x1F and ١ are texts."""
    plain = text.strip()
    if decimal != ".":
        plain = "x" if "." in plain else plain.replace(decimal, ".")
    if not _PLAIN.issuperset(plain) and plain.lower().lstrip("+-") not in _INFINITE:
        return None
    try:
        return float(plain)
    except ValueError:
        return None


def numbers(
    cells: Sequence[str], gaps: Mapping[str, str] = MappingProxyType({}), decimal: str = "."
) -> Array | None:
    """Return the numbers [n] that all of these cells hold, NaN for gaps; None if one is a text.

    Args:
        gaps: "nan" by each of the words for an empty cell.
    """
    joined = "".join(cells)
    if decimal == "." and joined.isascii() and "_" not in joined:  # what else float() would take
        # Most columns are whole: no cell is looked up that can be no gap.
        values = None if any(map(_is_number, gaps)) else _floats(cells)
        if values is not None and np.isfinite(values).all():
            return values
        values = _floats(list(map(gaps.get, cells, cells)))
        if values is None:
            return None
        # Of what float() takes, a column may hold other words for nan and infinity.
        finite = int(np.isfinite(values).sum())
        if finite == len(cells) or finite == len(cells) - sum(map(gaps.__contains__, cells)):
            return values
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        value = None if cell in gaps else number(cell, decimal)
        if value is not None:
            found[row] = value
        elif cell not in gaps:
            return None
    return found


@lru_cache(maxsize=1024)
def _is_number(text: str) -> bool:
    return number(text) is not None


def _floats(texts: Sequence[str]) -> Array | None:
    try:
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        return None


def whole(label: str) -> int | None:
    """Return the whole number that a category stands for: 1 and 1.0 are one, 01 is a text."""
    return int(label.partition(".")[0]) if _WHOLE.fullmatch(label) else None


def written(texts: Collection[str]) -> tuple[str, str] | None:
    """Return one of the texts, and what they are, if all are numbers as people write them."""
    for pattern, what in _WRITTEN if texts else ():
        if all(pattern.fullmatch(text.strip()) for text in texts):
            return next(iter(texts)), what
    return None


class _Codes(dict[str | None, float]):
    """Numbers of texts, in the order in which they came; a gap's is NaN."""

    def __init__(self, gaps: Collection[str]) -> None:
        super().__init__(dict.fromkeys((None, *gaps), math.nan))
        self.texts: list[str] = []

    def __missing__(self, text: str) -> float:
        code = self[text] = float(len(self.texts))
        self.texts.append(text)
        return code


class Column:
    """One column of a table, taken chunk by chunk.

    Args:
        gaps: Words for an empty cell.
        declared: Its cells are categories, whatever they look like.
        typed: Its file tells numbers from texts by itself: a text is one, true as well.
    """

    def __init__(
        self,
        name: str,
        *,
        gaps: Collection[str] = (),
        decimal: str = ".",
        declared: bool = False,
        typed: bool = False,
    ) -> None:
        self.name = name
        self.declared = declared
        self._typed = typed
        self.present = 0  # cells that are no gaps
        self.beyond: str | None = None  # where the first whole number stands that loses digits
        self._gaps = dict.fromkeys(gaps, "nan")
        self._decimal = decimal
        self._codes = _Codes(self._gaps)
        self._kind: str | None = "text" if declared else None
        self._first: tuple[str, str] | None = None  # the kind's first text, or "", and its place
        self._before: str | None = None  # the kind in files before

    @property
    def is_text(self) -> bool:
        """Whether it holds categories; a text file's column of truth values alone holds numbers."""
        certain = self.declared or self._typed
        return self._kind == "text" and (certain or not TRUTHS.keys() >= {*self.texts})

    @property
    def texts(self) -> list[str]:
        """Its different texts, in the order in which they came."""
        return self._codes.texts

    @property
    def first_text(self) -> tuple[str, str] | None:
        """The first text of a column that is text but for truth values, and where it stands."""
        return self._first if self._kind == "text" else None

    def begin_file(self) -> None:
        """Take what follows for the same column in another file."""
        self._before = self._kind

    def take(self, cells: Sequence[str], where: Where) -> Array:
        """Return a chunk's cells [n]: numbers, or of texts their codes; NaN for gaps.

        Raises:
            DataError: A cell is a text among numbers, or not finite.
        """
        if self._kind == "text" and self.declared:
            return self.take_texts(cells, where)
        if self._kind == "text":
            new = set(cells).difference(self._codes)  # the others were found to be texts
            if all(number(text, self._decimal) is None for text in new):
                return self.take_texts(cells, where)
        else:
            found = numbers(cells, self._gaps, self._decimal)
            if found is not None:
                return self.take_numbers(found, where)
        present = [at for at, cell in enumerate(cells) if cell not in self._gaps]
        self._check_texts(cells, present, where)
        return self.take_texts(cells, where)

    def take_numbers(self, values: Array, where: Where) -> Array:
        """Take numbers [n] float64 as they are; NaN is a gap.

        Raises:
            DataError: One is not finite.
        """
        there = ~np.isnan(values)
        if self._kind == "text" and there.any():
            raise DataError(self._differs())
        if self._kind is None and there.any():
            self._kind, self._first = "number", ("", where(int(there.argmax())))
        self.present += int(there.sum())
        large = there & (np.abs(values) >= EXACT)
        if large.any():
            row = int(large.argmax())
            if not np.isfinite(values[row]):
                raise DataError(f"{where(row)} is not finite; fill in a number or remove the row")
            self.beyond = self.beyond or where(row)
        return values

    def take_texts(self, texts: Sequence[str | None], where: Where) -> Array:
        """Take texts [n] as categories; None is a gap.

        Raises:
            DataError: There are too many, or numbers were there before.
        """
        codes = np.fromiter(map(self._codes.__getitem__, texts), np.float64, len(texts))
        there = ~np.isnan(codes)
        if len(self.texts) > MOST_TEXTS:
            raise DataError(
                f"column {self.name!r} has more than {MOST_TEXTS:,} different texts; leave it out "
                "of `columns`"
            )
        if self._kind == "number" and there.any():
            raise DataError(self._differs())
        self.present += int(there.sum())
        if self._first is None and there.any():
            row = int(there.argmax())
            self._kind, self._first = "text", (str(texts[row]), where(row))
        return codes

    def _check_texts(self, cells: Sequence[str], present: Sequence[int], where: Where) -> None:
        """Refuse texts among numbers."""
        kinds = [number(cells[at], self._decimal) is None for at in present]
        texts = [at for at, is_text in zip(present, kinds, strict=True) if is_text]
        if len(texts) == len(present) and self._kind != "number":
            return
        if self._before is not None and len(texts) in (0, len(present)):
            raise DataError(self._differs())
        if texts and self._kind != "text":
            text, place = cells[texts[0]], where(texts[0])
        else:
            assert self._first is not None
            text, place = self._first
        raise DataError(self._mixed(text, place))

    def _differs(self) -> str:
        return (
            f"column {self.name!r} is text in one file and numbers in another; name it in "
            "`categorical`, or correct it"
        )

    def _mixed(self, text: str, place: str) -> str:
        said = (
            f"{place} is the text {text!r} where a number is expected; correct it, name the column "
            "in `categorical`, or leave it out of `columns`"
        )
        told = written([text])
        return said if told is None else f"{said} (it looks like {told[1]})"

    def labels(self, values: Array) -> tuple[str, ...] | None:
        """Return the texts that the column's codes stand for, ascending; None if it holds numbers.

        Args:
            values: [n] What `take` returned, chunk after chunk; changed to the codes of the labels.
        """
        if self._kind != "text":
            return None
        if not self.is_text:
            _renumber(values, np.array([TRUTHS[text] for text in self.texts]))
            return None
        spelled = _spelled(self.texts)
        labels = sorted(set(spelled))
        place = {label: at for at, label in enumerate(labels)}
        _renumber(values, np.array([place[label] for label in spelled], np.float64))
        return tuple(labels)

    def doubt(self) -> str | None:
        """Return what is likely a mistake in the column, with what to do.

        Raises:
            DataError: It holds numbers that are written so that they are texts.
        """
        if not self.is_text or self.declared:
            if self.beyond is None:
                return None
            return (
                f"{self.beyond} is beyond 2**53, where numbers lose digits; name the column in "
                "`categorical` if it holds ids, or leave it out of `columns`"
            )
        different = len(self.texts)
        told = written(self.texts)
        if told is not None:
            raise DataError(
                f"column {self.name!r} holds texts such as {told[0]!r}, which would be "
                f"{different:,} categories: they look like {told[1]}, leave the column out of "
                "`columns`, or name it in `categorical` if it holds categories"
            )
        if different > FEW and different > self.present / 2:
            assert self._first is not None
            return (
                f"column {self.name!r} has {different:,} different texts in {self.present:,} rows "
                f"({self._first[0][:40]!r}, …), each a category of its own; leave it out of "
                "`columns`, or name it in `categorical` to say that it is right"
            )
        return None


def _renumber(values: Array, codes: Array) -> None:
    there = ~np.isnan(values)
    values[there] = codes[values[there].astype(np.int64)]


def _spelled(texts: Sequence[str]) -> list[str]:
    """Return how each text is written as a category: of 1 and 1.0, the shorter one."""
    shortest: dict[int, str] = {}
    for text in texts:
        value = whole(text)
        if value is not None:
            known = shortest.get(value)
            if known is None or (len(text), text) < (len(known), known):
                shortest[value] = text
    return [text if (value := whole(text)) is None else shortest[value] for text in texts]
