"""Parts by what a column of the data says: which part a row is in, when it was, whose it is.

    n  rows

Every function takes the column's texts [n], as the file spells them. None looks at the classes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner_service.datasets.columns import number
from tuner_service.definition.trial_spec import SplitSpec
from tuner_service.errors import DataError

Index = NDArray[np.int64]
Labels = Sequence[str]

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Row numbers of each part, ascending; every row is in at most one."""

    train: Index
    validation: Index
    test: Index


def by_part(labels: Labels, spec: SplitSpec, test: int) -> SplitRows:
    """Return the parts that a column names.

    Raises:
        DataError: It names another one, or has no row of one.
    """
    del test
    found = [PARTS.get(label.strip().lower()) for label in labels]
    if None in found:
        raise DataError(
            f"column {spec.column!r} of split.part holds {labels[found.index(None)]!r}; it may "
            "hold train, validation and test"
        )
    parts = np.array(found)
    rows = {part: np.flatnonzero(parts == part) for part in ("train", "validation", "test")}
    for part in ("train", "validation"):
        if not len(rows[part]):
            raise DataError(f"column {spec.column!r} of split.part names no row {part}")
    return SplitRows(**rows)


def by_order(labels: Labels, spec: SplitSpec, test: int) -> SplitRows:
    """Return parts of which each comes after the one before; equals are never divided.

    With folds, each validates on the rows that follow those it trains on, of which there are more
    from fold to fold, as in scikit-learn's `TimeSeriesSplit`.

    Raises:
        DataError: The column has no order, or a part has no row.
    """
    values = _moments(labels, spec.column)
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def start(wanted: int) -> int:
        """Return the first place of the rows that equal the one at this place."""
        return int(np.searchsorted(ordered, ordered[wanted])) if wanted < len(ordered) else wanted

    last = start(len(order) - test)
    if spec.folds is None:
        first, end = start(last - round(len(order) * spec.validation)), last
    else:
        size, fold = last // (spec.folds + 1), spec.fold or 0
        if size < 1:
            raise DataError(f"{last} rows are too few for {spec.folds} folds")
        first, end = (start(last - (spec.folds - at) * size) for at in (fold, fold + 1))
    if first < 1 or (end <= first and (spec.validation or spec.folds)):
        raise DataError(
            f"in the order of {spec.column!r}, {first} rows would be for training, {end - first} "
            f"for validation and {len(order) - last} for test, since rows of one "
            "value stay together; change the shares, or take a finer column"
        )
    return SplitRows(np.sort(order[:first]), np.sort(order[first:end]), np.sort(order[last:]))


def by_group(labels: Labels, spec: SplitSpec, test: int) -> SplitRows:
    """Return parts that share no group; sizes are as near as whole groups allow.

    Raises:
        DataError: There are too few groups.
    """
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    groups = generator.permutation(len(names))
    held, groups = _filled(groups, counts, test)
    if spec.folds is None:
        checked, kept = _filled(groups, counts, round(len(labels) * spec.validation))
    else:
        if spec.fold is not None and spec.fold >= spec.folds:  # a repetition: the same test part
            repeat = spec.fold // spec.folds
            groups = np.random.Generator(np.random.PCG64([spec.seed, repeat])).permutation(groups)
        folds = _dealt(groups, counts, spec.folds)
        checked = folds.pop((spec.fold or 0) % spec.folds)
        kept = np.concatenate(folds)
    if not len(kept) or (not len(checked) and (spec.validation or spec.folds)):
        raise DataError(
            f"{spec.column!r} has {len(names)} groups, too few for the parts of the split; change "
            "the shares, or take fewer folds"
        )
    train, validation, tested = (np.flatnonzero(np.isin(codes, g)) for g in (kept, checked, held))
    return SplitRows(train, validation, tested)


def _filled(groups: Index, counts: Index, rows: int) -> tuple[Index, Index]:
    """Return the first groups that together have about so many rows, and the others."""
    together = np.concatenate([[0], np.cumsum(counts[groups])])
    taken = int(np.abs(together - rows).argmin())
    taken = max(taken, 1) if rows else 0
    return groups[:taken], groups[taken:]


def _dealt(groups: Index, counts: Index, folds: int) -> list[Index]:
    """Deal groups out, the largest first, each to the fold with the fewest rows."""
    dealt: list[list[int]] = [[] for _ in range(folds)]
    rows = np.zeros(folds, np.int64)
    for group in groups[np.argsort(-counts[groups], kind="stable")]:
        fold = int(rows.argmin())
        dealt[fold].append(int(group))
        rows[fold] += counts[group]
    return [np.array(one, np.int64) for one in dealt]


def _moments(labels: Labels, column: Any) -> NDArray[np.float64]:
    """Return numbers in the column's order: its own, or those of its dates.

    Raises:
        DataError: It holds neither numbers nor dates as ISO 8601 has them.
    """
    values = [number(label) for label in labels]
    if None not in values:
        return np.array(values, np.float64)
    moments, zones = [], set()
    for label in labels:
        text = f"{label}-01" if _MONTH.fullmatch(label.strip()) else label
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise DataError(
                f"column {column!r} of split.order holds {label!r}; it needs numbers, or dates "
                "with the year first, such as 2024-01-31 or 2024-01-31T12:30:00"
            ) from None
        zones.add(moment.tzinfo is None)
        moments.append(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    if len(zones) > 1:
        raise DataError(f"column {column!r} of split.order has a time zone in some rows only")
    return np.array([moment.timestamp() for moment in moments], np.float64)


BY: Mapping[str, Callable[[Labels, SplitSpec, int], SplitRows]] = {
    "part": by_part,
    "order": by_order,
    "group": by_group,
}
