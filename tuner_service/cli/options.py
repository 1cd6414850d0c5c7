"""Options that several commands have."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from tuner_service.client import DEFAULT_URL, TunerClient
from tuner_service.errors import InputError

Url = Annotated[
    str,
    typer.Option("--url", envvar="TUNER_URL", help="Address of the service.", metavar="URL"),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="TUNER_API_KEY",
        help="Needed when the service is on another machine. The variable is safer than the "
        "option, which others may see in the list of processes.",
        show_envvar=True,
        metavar="KEY",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Ref = Annotated[str, typer.Argument(help="The study's name or id.", metavar="STUDY")]
DefinitionFile = Annotated[
    Path,
    typer.Argument(help="A study file (YAML or JSON); - reads stdin.", metavar="FILE"),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="TUNER_DATA_DIR",
        help="Database, models, logs; by default ~/.local/share/tuner.",
        metavar="DIR",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(envvar="TUNER_DEVICE", help="auto, cpu or cuda.")
]

Modules = Annotated[
    Path | None,
    typer.Option(
        "--modules",
        envvar="TUNER_MODULES_DIR",
        help="Where modules of your own lie: Python files with a build() or a train().",
        metavar="DIR",
        exists=True,
        file_okay=False,
    ),
]

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show how it goes until it ends.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", help="Stop watching after this long (exit code 124).", metavar="SECONDS", min=0
    ),
]


def check_timeout(timeout: float | None, watching: bool) -> None:
    """Refuse a timeout of nothing.

    Raises:
        InputError: It is given without --watch.
    """
    if timeout is not None and not watching:
        raise InputError(f"--timeout {timeout:g} ends --watch, which is not given: add --watch")


def connect(url: str, api_key: str | None) -> TunerClient:
    """Return a client of a service that is there.

    Raises:
        ConnectionFailedError: It is not.
    """
    client = TunerClient(url, api_key=api_key)
    client.ping()
    return client


def url_option(url: str) -> str:
    """Return what to add to a command that is suggested to the user."""
    return "" if url in (DEFAULT_URL, os.environ.get("TUNER_URL")) else f" --url {url}"
