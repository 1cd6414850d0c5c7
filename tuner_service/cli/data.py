"""`tuner data`: bring data, see what there is, take it away."""

import re
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from tuner_service import extras
from tuner_service.cli import show
from tuner_service.cli.options import ApiKey, AsJson, DataDir, Url, connect
from tuner_service.client import DEFAULT_URL
from tuner_service.errors import InputError

data = typer.Typer(help="Bring data to train on.", no_args_is_help=True)

_UNITS = ("bytes", "kB", "MB", "GB")


@data.command("add")
def add(
    file: Annotated[
        Path, typer.Argument(help="CSV, Parquet, NumPy's .npz, or a zip of images.", metavar="FILE")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="By default the file's own, without its ending.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file; studies then use it as `dataset: {name: NAME}`."""
    if not file.is_file():
        raise InputError(f"There is no file {file}")
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", file.name.partition(".")[0]).strip("-_")
    with closing(connect(url, api_key)) as client:
        added = client.upload_dataset(name, file)
    if as_json:
        show.as_json(added)
        return
    show.out.print(
        f"Added {added['name']}: {added['format']}, {_rows(added)}, {_size(added['bytes'])}."
    )
    for warning in added.get("warnings", ()):
        show.err.print(f"Note: {warning}", markup=False)


@data.command("list")
def list_data(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the data sets there are: built-in, uploaded, and loaded by modules of the workers."""
    with closing(connect(url, api_key)) as client:
        found = client.datasets()
    if as_json:
        show.as_json(found)
        return
    header = ("name", "kind", "rows", "inputs", "size", "sha256")
    show.table(header, [_line(one) for one in found])


@data.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist or cifar10.", metavar="NAME")],
    data_dir: DataDir = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Another place with the same files.", metavar="URL")
    ] = None,
) -> None:
    """Download a public data set into the data directory of this machine, checked by SHA-256."""
    extras.require("storage", "`tuner data fetch`")
    from tuner_service.cli.service import settings_of  # noqa: PLC0415 - pydantic, only for this
    from tuner_service.datasets.fetch import fetch  # noqa: PLC0415

    settings = settings_of(data_dir=data_dir)
    settings.directory.prepare()
    folder = fetch(name, settings.directory.datasets, url=source)
    show.out.print(f"{name} is in {folder}.", soft_wrap=True)


@data.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="The data set's name.", metavar="NAME")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Delete an uploaded data set; refused while a study that has not ended uses it."""
    with closing(connect(url, api_key)) as client:
        client.remove_dataset(name)
    show.out.print(f"Removed {name}.")


def _rows(one: dict[str, Any]) -> str:
    rows = "-" if one["rows"] is None else f"{one['rows']:,} rows"
    if one.get("columns"):
        return f"{rows}, {len(one['columns'])} columns"
    shape = "×".join(map(str, one.get("shape") or ()))
    return f"{rows} of {shape}" if shape else rows


def _line(one: dict[str, Any]) -> list[str]:
    if one["kind"] != "uploaded":
        rows = "-" if one["rows"] is None else f"{one['rows']:,}"
        return [one["name"], one["kind"], rows, one["inputs"] or "-", "-", "-"]
    rows = "-" if one["rows"] is None else f"{one['rows']:,}"
    return [
        one["name"], one["format"], rows, one["inputs"] or "-", _size(one["bytes"]),
        one["sha256"][:12],
    ]  # fmt: skip


def _size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"
