"""Tables with text and gaps as numbers: what is fitted is fitted on the training part alone.

    n  rows,  C  columns as read,  F  features of the network's input

A table as read is [n, C] float64: numbers, or of a text column the number of the cell's text among
the column's labels; NaN stands for an empty cell. Encoded it is [n, F] without gaps.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tuner_service.errors import DataError
from workers.training.data.sources import Array, Columns

MAX_CATEGORIES = 1000


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """A column of numbers; `fill` replaces empty cells."""

    fill: float | None

    @property
    def width(self) -> int:
        """Features it becomes."""
        return 1

    def encode(self, values: Array) -> Array:
        """[n] -> [n, 1]."""
        filled = values if self.fill is None else np.where(np.isnan(values), self.fill, values)
        return filled[:, None]

    def described(self) -> dict[str, Any]:
        """Return the column as JSON, for new rows to be encoded alike."""
        return {"kind": "number", "fill": self.fill}


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A column of categories: a feature each, or their position among them.

    Attributes:
        kind: `one_hot`, `ordinal` or `frequency`.
        labels: Texts by the numbers that stand for them in the table as read.
        categories: Those of the training part, ascending; or all, in the study's order.
        fill: What an empty cell counts as; None: as no category. With `ordinal` it is also what a
            text counts as that the training part does not have.
        shares: Of the training part's rows, by category, which `frequency` makes of them; a text
            that it does not have has none.
    """

    kind: str
    labels: tuple[str, ...]
    categories: tuple[str, ...]
    fill: str | None
    shares: tuple[float, ...] | None = None

    @property
    def width(self) -> int:
        """Features it becomes."""
        return len(self.categories) if self.kind == "one_hot" else 1

    def encode(self, values: Array) -> Array:
        """[n] -> [n, categories] of zeros and ones, or [n, 1]."""
        place = {label: at for at, label in enumerate(self.categories)}
        nowhere = place.get(self.fill, -1) if self.kind == "ordinal" and self.fill else -1
        places = np.array([place.get(label, nowhere) for label in self.labels] + [-1])
        empty = np.isnan(values)
        codes = np.where(empty, len(self.labels), values).astype(np.int64)
        found = places[codes]
        if self.fill is not None:
            found = np.where(empty, place.get(self.fill, -1), found)
        if self.kind == "ordinal":
            return found[:, None].astype(np.float64)
        if self.shares is not None:
            shares = np.array([*self.shares, 0.0])  # of no category, -1: the last
            known: Array = shares[found][:, None]
            return known
        hot: Array = found[:, None] == np.arange(len(self.categories))
        return hot.astype(np.float64)

    def described(self) -> dict[str, Any]:
        """Return the column as JSON, for new rows to be encoded alike."""
        shares = {} if self.shares is None else {"shares": list(self.shares)}
        described = {"kind": self.kind, "categories": list(self.categories), "fill": self.fill}
        return {**described, **shares}


@dataclass(frozen=True, slots=True)
class Encoder:
    """One column after the other, as fitted on the training part."""

    columns: tuple[NumberColumn | TextColumn, ...]

    @classmethod
    def fit(cls, values: Array, table: Columns) -> Self:
        """Fit on the training part's rows.

        Args:
            values: [n, C].

        Raises:
            DataError: A column has too many categories to become a feature each.
        """
        return cls(
            tuple(
                _number(values[:, at], table)
                if labels is None
                else _text(values[:, at], labels, table, at)
                for at, labels in enumerate(table.labels)
            )
        )

    @property
    def scaled(self) -> Array:
        """[F] Whether a feature is a number to standardise, rather than a zero or one."""
        kinds = [(not _is_one_hot(column), column.width) for column in self.columns]
        return np.repeat([scaled for scaled, _ in kinds], [width for _, width in kinds])

    @property
    def width(self) -> int:
        """F."""
        return sum(column.width for column in self.columns)

    def encode(self, values: Array) -> Array:
        """[n, C] -> [n, F]."""
        parts = [column.encode(values[:, at]) for at, column in enumerate(self.columns)]
        return np.concatenate(parts, axis=1)

    def described(self) -> list[dict[str, Any]]:
        """Return the columns as JSON."""
        return [column.described() for column in self.columns]


def _is_one_hot(column: NumberColumn | TextColumn) -> bool:
    return isinstance(column, TextColumn) and column.kind == "one_hot"


def _number(values: Array, table: Columns) -> NumberColumn:
    present = values[~np.isnan(values)]
    if table.missing in ("refuse", "drop_rows"):
        return NumberColumn(None)
    if table.missing == "zero" or not len(present):
        return NumberColumn(0.0)
    if table.missing == "median":
        return NumberColumn(float(np.median(present)))
    # As a distance from one of them, so that a constant column is filled with its constant.
    return NumberColumn(float(present[0] + (present - present[0]).mean()))


def _text(values: Array, labels: tuple[str, ...], table: Columns, at: int) -> TextColumn:
    name, kind = table.names[at], table.encode[at]
    present = values[~np.isnan(values)].astype(np.int64)
    counts = np.bincount(present, minlength=len(labels))
    categories = tuple(label for label, count in zip(labels, counts, strict=True) if count)
    if kind == "one_hot" and len(categories) > MAX_CATEGORIES:
        raise DataError(
            f"column {name!r} has {len(categories):,} different texts, more than "
            f"{MAX_CATEGORIES:,}; leave it out of `columns`, or set encode to ordinal or frequency"
        )
    if name in table.orders:
        categories = tuple(table.orders[name])
        unknown = [label for label in labels if label not in categories]
        if unknown:
            raise DataError(
                f"column {name!r} holds {unknown[0]!r}, which `orders` does not name: "
                f"{', '.join(map(repr, categories[:20]))}"
            )
    # The most frequent one; of several, the first.
    usual = labels[int(counts.argmax())] if len(present) else None
    fills = table.missing in ("mean", "median") or kind == "ordinal"
    shares = None
    if kind == "frequency":
        shares = tuple(float(count) / len(values) for count in counts if count)
    return TextColumn(kind, labels, categories, usual if fills else None, shares)
