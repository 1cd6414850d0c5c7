"""Commands on studies that were submitted, all over REST."""

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from tuner_service.cli import show
from tuner_service.cli.codes import BAD_INPUT
from tuner_service.cli.frame import first_objective
from tuner_service.cli.options import (
    ApiKey,
    AsJson,
    Ref,
    Timeout,
    Url,
    Watch,
    check_timeout,
    connect,
)
from tuner_service.cli.watch import failure_lines, watch_to_end
from tuner_service.client import (
    DEFAULT_URL,
    StudyHandle,
    StudyStatus,
    Trial,
)
from tuner_service.errors import InputError

FOLLOW_SECONDS = 0.5


def list_studies(
    state: Annotated[str | None, typer.Option(help="Only studies in this state.")] = None,
    tag: Annotated[
        str | None, typer.Option(help="Only studies with this tag: key or key=value.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List the studies, the newest first."""
    with closing(connect(url, api_key)) as client:
        found = [study.last_status for study in client.studies(state=state, tag=tag)]
    if as_json:
        show.as_json([study.data for study in found])
    elif found:
        show.table(("name", "state", "trials", "best", "created (UTC)"), [_row(s) for s in found])
    else:
        show.err.print("No studies. Submit one with `tuner submit FILE`.")


def status(
    ref: Ref,
    watching: Watch = False,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show how a study stands; --watch follows it to its end."""
    check_timeout(timeout, watching)
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if watching:
            raise typer.Exit(watch_to_end(study, url, timeout=timeout, as_json=as_json))
        if as_json:
            show.as_json(study.last_status.data)
        else:
            show.status(study.last_status, failure_lines(study, url))


def trials(
    ref: Ref,
    state: Annotated[
        str | None, typer.Option(help="Only RUNNING, COMPLETE, PRUNED or FAIL trials.")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="number, -number, value or -value (- is downwards).")
    ] = "number",
    limit: Annotated[int, typer.Option(help="At most this many; 0 shows all.", min=0)] = 0,
    best_of: Annotated[
        int, typer.Option("--best", help="Only so many, the best first.", min=0, metavar="N")
    ] = 0,
    fits: Annotated[
        str, typer.Option("--filter", help="Terms that must all hold: lr<1e-2 optimizer:adam.")
    ] = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="With slot, attempt and group, for operators.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show a study's trials."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if best_of:
            maximize = first_objective(study.last_status)[1]
            sort, limit, state = "-value" if maximize else "value", best_of, "COMPLETE"
        pages = study.iter_trials(state=state.upper() if state else None, sort=sort, filter=fits)
        found = [trial for trial, _ in zip(pages, range(limit or sys.maxsize), strict=False)]
    if as_json:
        show.as_json([trial.data for trial in found])
    elif found:
        show.trials(found, verbose=verbose)
    else:
        kind = f"{state.upper()} trials" if state else "trials yet"
        show.err.print(f"Study {study.name} has no {kind}.")


def best(ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the best trial (with several objectives: those that no other dominates)."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        found = study.best_trials() or [study.best_trial]  # the latter raises, and says why
    if as_json:
        show.as_json([trial.data for trial in found] if len(found) > 1 else found[0].data)
        return
    for trial in found:
        show.best(trial)


def watch(
    ref: Ref,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Follow a study to its end: running trials, the best five, what is left."""
    with closing(connect(url, api_key)) as client:
        raise typer.Exit(watch_to_end(client.study(ref), url, timeout=timeout, as_json=as_json))


def pause(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Pause a study; running trials are saved and go on after `resume`."""
    with closing(connect(url, api_key)) as client:
        _show_status(client.study(ref).pause(), as_json)


def resume(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Resume a paused study."""
    with closing(connect(url, api_key)) as client:
        _show_status(client.study(ref).resume(), as_json)


def refit(
    ref: Ref,
    trial: Annotated[int | None, typer.Option(help="Its number; by default the best.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Train the best parameters on all rows, as a study of its own; `model` fetches the result."""
    with closing(connect(url, api_key)) as client:
        _show_status(client.study(ref).refit(trial).last_status, as_json)


def cancel(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Cancel a study: running trials are stopped, finished ones kept."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if study.last_status.is_final:
            show.err.print(
                f"Note: nothing was cancelled; {study.name} is {study.last_status.state} already."
            )
        _show_status(study.cancel(), as_json)


def delete(
    ref: Ref,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Delete a study that is not running, with its trials and models."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if not yes and not _confirmed(study.last_status):
            raise typer.Exit(BAD_INPUT)
        study.delete()
    show.out.print(f"Deleted {study.name}.")


def export(
    ref: Ref,
    form: Annotated[
        Literal["csv", "json"], typer.Option("--format", "-f", help="csv or json.")
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; by default stdout.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write all trials as CSV or JSON."""
    with closing(connect(url, api_key)) as client:
        text = client.study(ref).export(form)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"Cannot write {output}: {error.strerror}") from error
    show.err.print(f"Wrote {output}.")


def model(
    ref: Ref,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A directory; it is made.", metavar="DIR")
    ],
    trial: Annotated[
        int | None, typer.Option("--trial", help="A trial's number; by default the best.", min=0)
    ] = None,
    exporting: Annotated[
        bool,
        typer.Option("--export", help="Write model.pt2 too, of torch.export; needs torch here."),
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write the best trial's model: weights, and a Python file that predicts with them."""
    with closing(connect(url, api_key)) as client:
        client.study(ref).model(output, trial=trial)
    if (output / "predict.py").exists():
        show.err.print(f"Wrote {output}. Try: python {output / 'predict.py'} ROWS.csv")
    else:  # of a training loop, which alone knows its network
        show.err.print(f"Wrote {output}: weights, and the loop that trained them in loop.py.")
    if exporting:
        from tuner_service.cli.exporting import export  # noqa: PLC0415 - keeps `tuner status` quick

        show.err.print(f"Exported {export(output)}.")


def logs(
    ref: Ref,
    number: Annotated[int, typer.Argument(help="The trial's number.", metavar="NUMBER", min=0)],
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", help="Only the last lines.", min=0)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it prints until it ends.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show what a trial printed, or, where that is nothing, why it failed."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if follow:
            _follow(study, number, tail)
            return
        text = study.logs(number, tail=tail)
        if not text and tail != 0:
            _tell_of_silence(study.trial(number))
    sys.stdout.write(text)


def _follow(study: StudyHandle, number: int, tail: int | None) -> None:
    """Print what a trial prints, as it comes."""
    is_finished = study.trial(number).is_finished
    text = study.logs(number)
    shown = len(text)
    sys.stdout.write(text if tail is None else "".join(text.splitlines(keepends=True)[-tail:]))
    while not is_finished:
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)
        is_finished = study.trial(number).is_finished  # before the text: its last words count
        text = study.logs(number)
        sys.stdout.write(text[shown:])
        shown = len(text)


def _tell_of_silence(trial: Trial) -> None:
    show.err.print(f"Trial {trial.number} has printed nothing of its own.")
    failure = trial.data.get("failure") or {}
    if failure.get("traceback"):
        show.out.print(failure["traceback"].rstrip())
    elif trial.failure:
        show.out.print(trial.failure)


def _show_status(status: StudyStatus, as_json: bool) -> None:
    if as_json:
        show.as_json(status.data)
    else:
        show.status(status)


def _row(study: StudyStatus) -> list[str]:
    best = study.best_trial
    return [
        study.name,
        study.state,
        f"{study.progress.finished}/{study.progress.total}",
        "-" if best is None else show.result(best),
        str(study.data["created_at"])[:16].replace("T", " "),
    ]


def _confirmed(status: StudyStatus) -> bool:
    if not sys.stdin.isatty():
        raise InputError(f"Deleting {status.name} cannot be undone: say --yes")
    return typer.confirm(f"Delete {status.name} ({show.counts(status)}) for good?")
