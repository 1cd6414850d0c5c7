"""`tuner update` and `tuner coverage`: a change of a study, and what became of its budget."""

from contextlib import closing
from typing import Annotated, Any

import typer

from tuner_service.cli import show
from tuner_service.cli.options import ApiKey, AsJson, Ref, Url, connect
from tuner_service.client import DEFAULT_URL, StudyHandle
from tuner_service.errors import InputError

# What the JSON calls a state, and what a person does.
_STATES = {
    "done": "done",
    "failed": "failed",
    "leased": "running",
    "open": "waiting",
    "cancelled": "cancelled",
}


def update(
    ref: Ref,
    trials: Annotated[int | None, typer.Option(help="The budget: trials in all.")] = None,
    timeout: Annotated[
        str | None, typer.Option(help="The study's wall time, as 90s, 30m or 12h.", metavar="TIME")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(help="Failed trials that it bears in all.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="-100 to 100; higher goes first.")] = None,
    parallel_trials: Annotated[int | None, typer.Option(help="Trials at once, at most.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Adds or replaces a tag; once for each.", metavar="KEY=VALUE"),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Change a study's budget, priority, parallelism or tags; the rest stays as it is."""
    asked = {
        "trials": trials,
        "timeout": timeout,
        "max_failures": max_failures,
        "priority": priority,
        "parallel_trials": parallel_trials,
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    tags = dict(map(_pair, tag or ()))
    if not changes and not tags:
        raise InputError("Nothing to change: give --trials, --timeout, --priority or the like")
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        status = study.update(**changes, **_all_tags(study, tags))
    if as_json:
        show.as_json(status.data)
    else:
        show.status(status)


def coverage(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Say what became of every point of a grid (or trial of the budget), naming the failed ones."""
    with closing(connect(url, api_key)) as client:
        found = client.study(ref).coverage()
    if as_json:
        show.as_json(found)
        return
    counts = ", ".join(f"{found[state]} {word}" for state, word in _STATES.items() if found[state])
    show.out.print(f"{found['total']} in all: {counts}")
    points = found["failed_points"]
    parameters = list(dict.fromkeys(name for point in points for name in point["parameters"] or {}))
    if points:
        show.table(("point", *parameters, "failure"), [_row(point, parameters) for point in points])


def _row(point: dict[str, Any], parameters: list[str]) -> list[str]:
    tried = point["parameters"] or {}
    failure = f"{point['failure']['kind']}: {point['failure']['message']}"
    return [str(point["slot"]), *(show.number(tried.get(name)) for name in parameters), failure]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"A tag looks like KEY=VALUE, but got {text!r}")
    return key, value


def _all_tags(study: StudyHandle, added: dict[str, str]) -> dict[str, Any]:
    """Return the study's tags with these: the service takes all of them or none."""
    return {"tags": {**study.last_status.data["tags"], **added}} if added else {}
