"""`tuner workers` and `tuner catalogue`: who trains, and what a definition may name."""

from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from tuner_service.cli import show
from tuner_service.cli.options import ApiKey, AsJson, Url, connect
from tuner_service.client import DEFAULT_URL
from tuner_service.errors import InputError


class Kind(StrEnum):
    """What the catalogue lists; the names are those of the addresses under `/v1`."""

    ACTIVATIONS = "activations"
    LOSSES = "losses"
    METRICS = "metrics"
    NETWORKS = "networks"
    OPTIMIZERS = "optimizers"
    PRUNERS = "pruners"
    SAMPLERS = "samplers"
    SCHEDULES = "schedules"
    TRAINING = "training"


_BROUGHT = (Kind.NETWORKS, Kind.SAMPLERS, Kind.PRUNERS)  # of which workers may have more


def workers(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the workers heard of lately: device, state, and the trials they train."""
    with closing(connect(url, api_key)) as client:
        found = client.workers()
    if as_json:
        show.as_json(found)
    elif found:
        show.table(
            ("worker", "device", "state", "heard of", "at once", "trains"),
            [_worker(one, datetime.now(UTC)) for one in found],
        )
    else:
        show.err.print("No workers. Start one with `tuner up` or `tuner worker`.")


def catalogue(
    kind: Annotated[Kind, typer.Argument(help=", ".join(Kind), metavar="KIND")],
    name: Annotated[
        str | None, typer.Argument(help="Only this one, with its parameters.", metavar="NAME")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List what a study file may name, with parameters, ranges and defaults."""
    with closing(connect(url, api_key)) as client:
        found = client.catalogue(kind)
        refused = client.refused_modules() if kind in _BROUGHT else []
    for one in refused:
        if name in (None, one["file"].removesuffix(".py")):
            show.err.print(f"{one['file']} is not offered: {one['reason']}", markup=False)
    if name is None and [one["name"] for one in found] == [kind]:
        name = kind  # a kind of one: what it is, is its options
    chosen = [one for one in found if name is None or one["name"] == name]
    if not chosen:
        known = ", ".join(one["name"] for one in found)
        raise InputError(f"There is no {name!r} among the {kind}: {known}")
    if as_json:
        show.as_json(chosen)
    elif name is None:
        show.table((kind, "what it is"), [[one["name"], one["description"]] for one in chosen])
    else:
        show.out.print(f"{chosen[0]['name']}: {chosen[0]['description']}")
        show.table(
            ("parameter", "type", "range", "default", "what it is"),
            [_option(option) for option in chosen[0]["options"]],
        )


def _worker(one: dict[str, Any], now: datetime) -> list[str]:
    """Return the cells of a worker; trials are counted by study."""
    silent = (now - datetime.fromisoformat(one["heartbeat_at"])).total_seconds()
    studies = [trial["study"] for trial in one["current_trials"]]
    trains = ", ".join(f"{study} ({studies.count(study)})" for study in dict.fromkeys(studies))
    return [
        one["id"],
        one["device"] or "-",
        one["state"],
        f"{max(0, round(silent))} s ago",
        str(one["lanes"]),
        trains or "-",
    ]


def _option(option: dict[str, Any]) -> list[str]:
    default = "required" if option["required"] else show.number(option["default"])
    return [option["name"], option["type"], _range(option), default, option["description"]]


def _range(option: dict[str, Any]) -> str:
    """Return the values an option may take, as in mathematics: `[0, 1)`, `> 0`, or its choices."""
    also = [show.number(value) for value in option["also"]]
    choices = [show.number(value) for value in option["choices"]]
    low, high = option["low"], option["high"]
    if low is not None and high is not None:
        opening, ending = "[("[option["low_open"]], "])"[option["high_open"]]
        choices = [f"{opening}{show.number(low)}, {show.number(high)}{ending}"]
    elif low is not None:
        choices = [f"{'>' if option['low_open'] else '>='} {show.number(low)}"]
    elif high is not None:
        choices = [f"{'<' if option['high_open'] else '<='} {show.number(high)}"]
    return ", ".join([*choices, *also]) or "-"
