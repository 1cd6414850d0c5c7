"""Train, validation and test rows, drawn with a seeded NumPy generator."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuner_service.definition.trial_spec import SplitSpec
from tuner_service.errors import DataError
from workers.training.data.split_by import BY, SplitRows

Index = NDArray[np.int64]


def split_rows(
    rows: int,
    spec: SplitSpec,
    *,
    classes: NDArray[np.int64] | None,
    own_test: bool,
    labels: Sequence[str] = (),
    beside: Sequence[str] | None = None,
) -> SplitRows:
    """Divide `rows` as `spec` says.

    Args:
        classes: [rows] class numbers; used when the split is stratified.
        own_test: The data brings its own test part: none is taken from these rows.
        labels: By class number, for messages.
        beside: [rows] What the split's column holds, if it has one.

    Raises:
        DataError: a part would be empty, or a class is too small to stratify.
    """
    test = 0 if own_test else round(rows * spec.test)
    if spec.is_whole:
        none = np.empty(0, np.int64)
        return SplitRows(np.arange(rows), none, none)
    if spec.by is not None and beside is not None:
        return BY[spec.by](beside, spec, test)
    if spec.stratify and classes is not None:
        _check_classes(classes, labels)
    if spec.folds is not None:
        return _fold_rows(rows, test, spec, classes)
    validation = round(rows * spec.validation)
    train = rows - test - validation
    if train < 1 or (validation < 1 and spec.validation):
        raise DataError(
            f"{rows} rows split into {train} for training, {validation} for validation and "
            f"{test} for test; bring more rows or change the fractions"
        )
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    if spec.stratify and classes is not None:
        order = _stratified_order(classes, (test, validation, train), generator)
    else:
        order = generator.permutation(rows)
    # Sorted, for files are read from end to end: the order of training is each epoch's own.
    return SplitRows(
        train=np.sort(order[test + validation :]),
        validation=np.sort(order[test : test + validation]),
        test=np.sort(order[:test]),
    )


def _fold_rows(
    rows: int, test: int, spec: SplitSpec, classes: NDArray[np.int64] | None
) -> SplitRows:
    """Divide what is not for the test into folds; one is for validation, the others to train."""
    folds, left = spec.folds or 1, rows - test
    if left < 2 * folds:
        raise DataError(
            f"{rows} rows, {test} of them for the test, are too few for {folds} folds; bring more "
            "rows or take fewer folds"
        )
    # The test part first, so that it is the same rows in every fold; the folds differ by one row.
    sizes = [test, *(left // folds + (fold < left % folds) for fold in range(folds))]
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    if spec.stratify and classes is not None:
        order = _stratified_order(classes, sizes, generator)
    else:
        order = generator.permutation(rows)
    repeat, fold = divmod(spec.fold or 0, folds)
    if repeat:
        order = _folded_anew(order, sizes, [spec.seed, repeat], classes if spec.stratify else None)
    parts = np.split(order, np.cumsum(sizes)[:-1])
    validation = parts.pop(1 + fold)
    return SplitRows(
        train=np.sort(np.concatenate(parts[1:])),
        validation=np.sort(validation),
        test=np.sort(parts[0]),
    )


def _folded_anew(
    order: Index, sizes: Sequence[int], seed: list[int], classes: NDArray[np.int64] | None
) -> Index:
    """Return row numbers with the same test part, and the others in other folds."""
    test, left = order[: sizes[0]], order[sizes[0] :]
    generator = np.random.Generator(np.random.PCG64(seed))
    if classes is None:
        return np.concatenate([test, generator.permutation(left)])
    return np.concatenate([test, left[_stratified_order(classes[left], sizes[1:], generator)]])


def _check_classes(classes: NDArray[np.int64], labels: Sequence[str]) -> None:
    numbers, counts = np.unique(classes, return_counts=True)
    if counts.min() < 2:
        number = int(numbers[counts.argmin()])
        name = repr(labels[number]) if labels else f"number {number}"
        raise DataError(
            f"class {name} has one row, too few to stratify; "
            "add rows, remove the class, or set split.stratify to false"
        )


def _stratified_order(
    classes: NDArray[np.int64], sizes: Sequence[int], generator: np.random.Generator
) -> Index:
    """Return row numbers, part after part (test first), each with its class shares."""
    pools = [generator.permutation(np.flatnonzero(classes == one)) for one in np.unique(classes)]
    parts: list[Index] = []
    # In proportion to what is left, part by part: rounding never asks a class for more than it has.
    for size in sizes:
        left = np.array([len(pool) for pool in pools])
        take = _shares(left, size)
        parts += [pool[:n] for pool, n in zip(pools, take, strict=True)]
        pools = [pool[n:] for pool, n in zip(pools, take, strict=True)]
    return np.concatenate(parts)


def _shares(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Divide `size` in proportion to `counts`, largest remainders first; sums to `size`."""
    exact = counts * (size / max(int(counts.sum()), 1))  # Hamilton's method
    take: Index = np.minimum(np.floor(exact).astype(np.int64), counts)
    # Stable: equal remainders go to the lower class number, whatever NumPy's sort does.
    order = np.argsort(-(exact - take), kind="stable")
    for at in order[: size - int(take.sum())]:
        take[at] += 1
    return take
