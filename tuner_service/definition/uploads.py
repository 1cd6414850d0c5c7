"""Data that somebody uploaded: what is known of it, and the catalogue's entry it stands for."""

from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from tuner_service.definition.catalogue import (
    BROUGHT_OPTIONS,
    DATASETS,
    UPLOAD_FORMATS,
    Dataset,
    Inputs,
)
from tuner_service.definition.options import Option
from tuner_service.definition.sections import Dataset as DatasetSection

FOLDER: Final = "uploads"  # of uploaded files, inside the data directory's `datasets`
MOST_COLUMNS_KNOWN: Final = 1000  # of a table's names, the first ones


class Upload(BaseModel):
    """One uploaded file, as it is now.

    Attributes:
        format: Which data set of the catalogue reads it.
        sha256: Of the file's bytes, in hexadecimal; a study keeps to the one it was submitted with.
        rows: Rows of data; None where only reading all of it would tell.
        columns: Names of a table's columns, at most the first thousand.
        shape: Of one row's input, where the file says it.
        inputs: What kind of inputs it holds; None where the file does not say.
        delimiter: What stands between two cells of a text table; a study's default.
        warnings: What is likely a mistake in it, with what to do.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    format: str
    sha256: str
    bytes: int
    rows: int | None = None
    columns: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    inputs: Inputs | None = None
    delimiter: str | None = None
    warnings: tuple[str, ...] = ()
    uploaded_at: datetime


def upload_path(name: str, file_format: str, sha256: str) -> str:
    """Return where a version of an uploaded file lies, relative to `datasets`."""
    return f"{FOLDER}/{sha256}/{name}.{UPLOAD_FORMATS[file_format]}"


def pinned_to(dataset: DatasetSection, upload: Upload) -> DatasetSection:
    """Return the section with the upload's format, hash and delimiter where it gives none."""
    missing = {"format": upload.format, "sha256": upload.sha256}
    given = {key: value for key in missing if (value := getattr(dataset, key)) is not None}
    pinned = {**dataset.model_dump(exclude_unset=True), **missing, **given}
    if upload.delimiter not in (None, ",") and pinned["sha256"] == upload.sha256:
        pinned.setdefault("delimiter", upload.delimiter)
    return DatasetSection.model_validate(pinned)


def brought_entry(name: str, parameters: tuple[Option, ...] = ()) -> Dataset:
    """Return the entry of data that a worker's module loads.

    Args:
        parameters: Of its `load_data`, where they are known.
    """
    own = tuple(one.model_copy(update={"searchable": False}) for one in parameters)
    return Dataset(
        name=name,
        description="Data that a module of the workers loads.",
        options=(*BROUGHT_OPTIONS, *own),
        task=None,
        inputs=None,
    )


def is_user_module(dataset: DatasetSection) -> bool:
    """Whether checked data is a module's: neither built in nor uploaded."""
    return dataset.name not in DATASETS and dataset.format is None


def dataset_entry(dataset: DatasetSection, upload: Upload | None = None) -> Dataset | None:
    """Return the catalogue's entry for a definition's data, or None where there is none.

    Args:
        upload: What is known of the data's present version, for uploaded data.
    """
    if dataset.name in DATASETS:
        return DATASETS[dataset.name]
    if upload is not None:
        dataset = pinned_to(dataset, upload)
    if dataset.format is None or dataset.sha256 is None or dataset.format not in UPLOAD_FORMATS:
        return None
    entry = DATASETS[dataset.format]
    known: dict[str, Any] = {
        "name": dataset.name,
        "options": tuple(o for o in entry.options if o.name not in ("path", "test_path")),
    }
    if upload is not None and upload.sha256 == dataset.sha256:
        known |= {"rows": upload.rows, "inputs": upload.inputs or entry.inputs}
    return entry.model_copy(update=known)
