"""Commands that look closer: one trial, some beside each other, what matters."""

from contextlib import closing
from typing import Annotated, Any, Final

import typer

from tuner_service.cli import frame, show
from tuner_service.cli.options import ApiKey, AsJson, Ref, Url, connect
from tuner_service.client import DEFAULT_URL, Trial
from tuner_service.errors import InputError

MOST_COMPARED: Final = 5
BAR_COLUMNS: Final = 30
_Number = Annotated[int, typer.Argument(help="The trial's number.", metavar="NUMBER", min=0)]


def trial(
    ref: Ref,
    number: _Number,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show one trial: what it tried, its values by epoch, what it reached, why it failed."""
    with closing(connect(url, api_key)) as client:
        found = client.study(ref).trial(number)
    if as_json:
        show.as_json(found.data)
        return
    show.best(found)
    show.pairs([("state", found.state), *show.titled("failed by", _failure(found))])
    curves = _curves(found)
    if curves:
        show.pairs([("by epoch", ""), *((f"  {name}", text) for name, text in curves)])


def _failure(found: Trial) -> list[str]:
    return found.failure.splitlines() if found.failure else []


def _curves(found: Trial) -> list[tuple[str, str]]:
    """Return a sparkline of each number that the trial reported, with its first and last value."""
    columns: dict[str, list[float]] = {}
    for record in found.data.get("epochs") or []:
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                columns.setdefault(name, []).append(value)
    return [(name, _curve(values)) for name, values in columns.items()]


def _curve(values: list[float]) -> str:
    ends = f"{show.number(values[0])} to {show.number(values[-1])}"
    return f"{frame.sparkline(frame.thinned(values))}  {ends}"


def compare(
    ref: Ref,
    numbers: Annotated[
        list[int], typer.Argument(help="Two to five trials' numbers.", metavar="NUMBER...", min=0)
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show trials beside each other, the parameters in which they differ first."""
    if not 2 <= len(set(numbers)) <= MOST_COMPARED:
        raise InputError(
            f"compare takes 2 to {MOST_COMPARED} different trials, but got {len(set(numbers))}"
        )
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        found = [study.trial(number) for number in dict.fromkeys(numbers)]
    if as_json:
        show.as_json([one.data for one in found])
        return
    parameters = [
        _row(name, [one.params.get(name) for one in found]) for name in show.trial_columns(found)
    ]
    reached = dict.fromkeys(name for one in found for name in show.scalars(one.record))
    rows = [["value", *map(show.result, found)], ["state", *(one.state for one in found)]]
    rows += sorted(parameters, key=lambda row: len(set(row[1:])) == 1)
    rows += [_row(name, [one.record.get(name) for one in found]) for name in reached]
    show.table(["", *(f"trial {one.number}" for one in found)], rows)


def _row(name: str, values: list[Any]) -> list[str]:
    return [name, *map(show.number, values)]


def importance(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show how much each parameter matters for the (first) objective."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        found = study.importances()
    if as_json:
        show.as_json(found)
    elif not found:
        show.err.print(f"Study {study.name} has too few complete trials to tell.")
    else:
        ranked = sorted(found.items(), key=lambda item: -item[1])
        show.pairs([(name, f"{_bar(share)} {share:4.0%}") for name, share in ranked])


def _bar(share: float) -> str:
    return ("█" * round(BAR_COLUMNS * share)).ljust(BAR_COLUMNS)
