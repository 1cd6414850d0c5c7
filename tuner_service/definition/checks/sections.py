"""Names and options of the data set, the network, the sampler, the pruner and the training loop."""

from collections.abc import Iterable, Mapping
from typing import Any

from tuner_service.definition.binding import DEFAULT_KIND, KINDS, Group, bind, owners
from tuner_service.definition.catalogue import (
    DATASETS,
    OPTIMIZERS,
    SCHEDULES,
    UPLOAD_FORMATS,
    Entry,
)
from tuner_service.definition.checks.context import CheckContext
from tuner_service.definition.faults import Path, did_you_mean
from tuner_service.definition.options import option_fault, show
from tuner_service.definition.sections import DEFAULT_TEST_SHARE, Dataset, Method, Split, Training
from tuner_service.definition.uploads import MOST_COLUMNS_KNOWN

COLUMNED = ("csv", "parquet", "npz")
"""Formats with columns, or arrays, beside inputs and target."""


def check_dataset(context: CheckContext) -> None:
    """The data is known, its options are its own, and the split leaves rows in every part."""
    dataset = context.draft.dataset
    if dataset is None:
        if not context.faults.below("/dataset"):
            context.faults.add(("dataset",), "dataset is required", code="missing")
        return
    _check_version(context, dataset)
    if context.dataset is None:
        known = (*DATASETS, *context.uploads, *context.loaders)
        context.add_unknown(("dataset", "name"), "data set", dataset.name, known)
        return
    _check_named(context, context.dataset, dataset.options, ("dataset",), own=("split",))
    if isinstance(dataset.options.get("scale"), str) and "standardize" in dataset.options:
        detail = "scale says what becomes of all columns of numbers; leave standardize out"
        context.faults.add(("dataset", "standardize"), detail, code="conflict")
    _check_columns(context, dataset)
    _check_split(context, dataset.split)


def _check_version(context: CheckContext, dataset: Dataset) -> None:
    """Only uploaded data has a format and a hash; the service fills both in."""
    for key in ("format", "sha256"):
        if getattr(dataset, key) is not None and dataset.name in DATASETS:
            detail = f"{dataset.name} is no uploaded data set; leave {key} out"
            context.faults.add(("dataset", key), detail, code="does_not_apply")
    upload = context.uploads.get(dataset.name)
    known = tuple(UPLOAD_FORMATS) if upload is None else (upload.format,)
    if dataset.format is not None and dataset.name not in DATASETS and dataset.format not in known:
        context.faults.unknown(("dataset", "format"), "format", dataset.format, known)


def _check_columns(context: CheckContext, dataset: Dataset) -> None:
    """An uploaded table has the columns that are named, as far as the service knows its header."""
    upload = context.uploads.get(dataset.name)
    if upload is None or dataset.sha256 not in (None, upload.sha256):
        return
    known = upload.columns or ()
    delimiter = dataset.options.get("delimiter", upload.delimiter or ",")
    # The upload's delimiter was a guess: a name that holds the study's own tells that it was wrong.
    guessed = upload.format == "csv" and any(str(delimiter) in name for name in known)
    headless = dataset.options.get("header", True) is not True
    if not known or len(known) >= MOST_COLUMNS_KNOWN or guessed or headless:
        return
    if upload.delimiter is not None and delimiter != upload.delimiter and len(known) > 1:
        detail = f"this file is split at {upload.delimiter!r}, not at {delimiter!r}; leave it out"
        context.faults.add(("dataset", "delimiter"), detail, code="conflict")
        return
    twice = next((name for at, name in enumerate(known) if name in known[:at]), None)
    if twice is not None:
        detail = (
            f"the first line names the column {twice!r} twice: set header to false if it is data"
        )
        context.faults.add(("dataset", "header"), detail, code="conflict")
        return
    named: dict[Path, Any] = {
        (key,): dataset.options.get(key) for key in ("target", "weight", "columns", "categorical")
    }
    for key in ("encode", "orders", "scale"):
        given = dataset.options.get(key)
        named[(key,)] = list(given) if isinstance(given, Mapping) else None
    if dataset.split.by is not None:
        named["split", dataset.split.by] = dataset.split.column
    for place, given in named.items():
        for name in given if isinstance(given, list) else [given]:
            if isinstance(name, str) and name.strip() not in {one.strip() for one in known}:
                context.faults.unknown(("dataset", *place), "column", name, known)


def _check_split(context: CheckContext, split: Split) -> None:
    entry = context.dataset
    if entry is None:
        return
    path: Path = ("dataset", "split")
    _check_split_column(context, split)
    _check_folds(context, split)
    if context.draft.dataset and context.draft.dataset.options.get("test_path") and split.test:
        detail = "test_path is the test part; leave test out"
        context.faults.add((*path, "test"), detail, code="conflict")
    if entry.own_test and split.test:
        detail = f"{entry.name} has a test part of its own; leave test out"
        context.faults.add((*path, "test"), detail, code="conflict")
    taken = 0.0 if entry.own_test else DEFAULT_TEST_SHARE
    if split.test is None and not split.folds and split.validation + taken >= 1:
        detail = (
            f"`validation + test < 1` must hold, but got (validation={split.validation:g}, "
            f"test={taken:g}, the default); give test too"
        )
        context.faults.add((*path, "validation"), detail, code="out_of_range")
    rows = entry.rows
    if rows is None:
        return
    if split.folds and rows * (1 - (split.test or 0)) < 2 * split.folds:
        detail = f"{rows} rows are too few for {split.folds} folds; take fewer folds"
        context.faults.add((*path, "folds"), detail, code="out_of_range")
    for part, share in (("validation", split.validation), ("test", split.test)):
        if share and round(rows * share) < 1:
            detail = f"{share:g} of {rows} rows is no row; take a larger share"
            context.faults.add((*path, part), detail, code="out_of_range")


def _check_folds(context: CheckContext, split: Split) -> None:
    path: Path = ("dataset", "split")
    if split.folds and split.validation != Split().validation:
        detail = f"each of the {split.folds} folds is the validation part in turn; leave it out"
        context.faults.add((*path, "validation"), detail, code="conflict")
    if split.repeats and not split.folds:
        detail = "repeats is of folds; say how many, or leave it out"
        context.faults.add((*path, "repeats"), detail, code="conflict")
    if split.repeats and split.by == "order":
        detail = "rows in an order have one division into folds; leave repeats out"
        context.faults.add((*path, "repeats"), detail, code="conflict")


def _check_split_column(context: CheckContext, split: Split) -> None:
    """One column at most divides the rows, of data that has columns; nothing else then does."""
    path: Path = ("dataset", "split")
    by, dataset = split.by, context.draft.dataset
    if by is None or dataset is None:
        return
    read_as = dataset.format or dataset.name
    upload = context.uploads.get(dataset.name)
    if (upload.format if upload else read_as) not in COLUMNED:
        detail = f"{dataset.name} has no columns to split by; leave {by} out"
        context.faults.add((*path, by), detail, code="does_not_apply")
    others = [one for one in ("group", "part") if one != by and getattr(split, one) is not None]
    if others:
        detail = f"one column divides the rows, but there are {by} and {others[0]}; leave one out"
        context.faults.add((*path, others[0]), detail, code="conflict")
    if split.stratify:
        detail = f"rows that {by} divides cannot be stratified; leave stratify out"
        context.faults.add((*path, "stratify"), detail, code="conflict")
    default = Split()
    whole = not (split.validation or split.test or split.folds)
    for name in ("validation", "test", "folds", "seed") if by == "part" and not whole else ():
        if getattr(split, name) != getattr(default, name):
            detail = f"the column {split.part!r} names each row's part; leave {name} out"
            context.faults.add((*path, name), detail, code="conflict")


def check_network(context: CheckContext) -> None:
    """The network is known, takes this kind of data, and its options are its own."""
    network, entry = context.draft.network, context.network
    if network is None:
        return
    if entry is None:
        context.add_unknown(("network", "type"), "network", network.type, context.networks)
        return
    _check_named(context, entry, network.options, ("network",), own=("type",))
    inputs = context.dataset.inputs if context.dataset else None
    if context.dataset is not None and inputs is not None and inputs not in entry.inputs:
        takes = " or ".join(f"{kind}s" for kind in entry.inputs)
        got = f"{context.dataset.name} is a {context.dataset.inputs}"
        detail = f"{entry.name} takes {takes}, but {got}; use mlp"
        context.faults.add(("network", "type"), detail, code="does_not_fit")


def check_methods(context: CheckContext) -> None:
    """Sampler and pruner are known, and their options are their own."""
    _check_method(context, context.draft.sampler, context.samplers, "sampler")
    _check_method(context, context.draft.pruner, context.pruners, "pruner")


def _check_method(
    context: CheckContext, method: Method | None, entries: Mapping[str, Entry], key: str
) -> None:
    if method is None:
        return
    entry = entries.get(method.type)
    if entry is None:
        context.add_unknown((key, "type"), key, method.type, entries)
        return
    _check_named(context, entry, method.options, (key,), own=("type",))


def _check_named(
    context: CheckContext, entry: Entry, given: Mapping[str, Any], path: Path, *, own: Iterable[str]
) -> None:
    known = [option.name for option in entry.options]
    for name in given:
        if name not in known:
            context.faults.add(
                (*path, name),
                f"{entry.name} has no option {show(name)}{_elsewhere(name, (*known, *own))}",
                code="unknown_key",
            )
    context.check_options(given, entry.options, path)


def _elsewhere(name: str, known: Iterable[str]) -> str:
    """Return where the name would be known, or the nearest of the known names."""
    if bind(name, network=None, dataset=None) is not None:
        return f"; {name} stands in training when it is fixed, in parameters when it is searched"
    others = owners(name)
    return f"; {', '.join(others)} has" if others else did_you_mean(name, known)


def check_training(context: CheckContext) -> None:
    """Optimizer and schedule are known, and every further key is an option of one in use."""
    training = context.draft.training
    if training is None:
        return
    for group, kinds in KINDS.items():
        fixed = getattr(training, group)
        if fixed is not None and fixed not in kinds:
            context.faults.unknown(("training", group), group, fixed, kinds)
    for name, value in training.options.items():
        _check_training_option(context, name, value)


def _check_training_option(context: CheckContext, name: str, value: object) -> None:
    path: Path = ("training", name)
    binding = bind(name, network=None, dataset=None)
    if binding is None:
        context.faults.add(
            path, f"training knows no {show(name)}{_misplaced(context, name)}", code="unknown_key"
        )
        return
    fault = option_fault(binding.option, value)
    if fault:
        context.faults.add(path, fault, code="bad_option")
    possible = context.possible_kinds(binding.group)
    if possible and not set(possible) & set(binding.kinds):
        _add_useless(context, path, name, group=binding.group, kinds=binding.kinds)


def _misplaced(context: CheckContext, name: str) -> str:
    for section, entry in (("network", context.network), ("dataset", context.dataset)):
        if entry is not None and entry.option(name) is not None:
            return f"; it stands in {section}"
    others = owners(name)
    if others:
        return f"; {', '.join(others)} has"
    known = [
        option.name
        for kinds in (OPTIMIZERS, SCHEDULES)
        for e in kinds.values()
        for option in e.options
    ]
    return did_you_mean(name, dict.fromkeys((*Training.model_fields, *known)))


def _add_useless(
    context: CheckContext, path: Path, name: str, *, group: Group, kinds: Iterable[str]
) -> None:
    used = ", ".join(context.possible_kinds(group)) or DEFAULT_KIND[group]
    detail = f"{name} is an option of {', '.join(kinds)}, but this study's {group} is {used}"
    context.faults.add(path, detail, code="does_not_apply")
