"""Watching a study: a bar and a table on a terminal, a line per finished trial elsewhere."""

from collections import deque

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner_service.cli import show
from tuner_service.cli.codes import AWAY, DETACHED, code_of_study
from tuner_service.cli.options import url_option
from tuner_service.client import (
    ClientError,
    ConnectionFailedError,
    ServiceError,
    StudyHandle,
    StudyStatus,
    Trial,
)
from tuner_service.client.patience import OUTAGE_SECONDS, is_away
from tuner_service.client.progress import final_sentence, trial_line

ROWS = 10
FRAMES_PER_SECOND = 8


def watch(study: StudyHandle, *, timeout: float | None, quiet: bool = False) -> StudyStatus:
    """Show how a study goes until it ends, and return its last status.

    Args:
        quiet: Show nothing: stdout is for JSON.

    Raises:
        WaitTimeoutError: It is not over after `timeout` seconds.
    """
    if quiet:
        for _ in study.updates(timeout, on_outage=_tell_outage):
            pass
        return study.last_status
    final = _draw(study, timeout) if show.out.is_terminal else _log(study, timeout)
    show.out.print(final_sentence(final))
    return final


def watch_to_end(study: StudyHandle, url: str, *, timeout: float | None, as_json: bool) -> int:
    """Follow a study to its end, show what came of it, and return the exit code.

    Raises:
        WaitTimeoutError: It is not over after `timeout` seconds.
    """
    try:
        final = watch(study, timeout=timeout, quiet=as_json)
    except KeyboardInterrupt:
        show.err.print(detached_sentence(study.name, url))
        return DETACHED
    except ClientError as error:
        if not is_away(error):
            raise
        show.err.print(f"tuner: {error}")
        show.err.print(away_sentence(study.name, url))
        return AWAY
    if as_json:
        show.as_json(final.data)
        return code_of_study(final)
    try:
        show.pairs(show.titled("failed by", failure_lines(study, url)))
    except (ConnectionFailedError, ServiceError) as error:  # the study has ended all the same
        show.err.print(f"tuner: why trials failed cannot be asked: {error}")
    if final.best_trial is not None:
        show.best(final.best_trial)
    return code_of_study(final)


def failure_lines(study: StudyHandle, url: str) -> list[str]:
    """Return why slots failed, and how to read what is known of the last of their trials."""
    if not study.last_status.progress.failed:
        return []
    coverage = study.coverage()
    slots = {point["slot"] for point in coverage["failed_points"]}
    last = next(
        (t for t in study.iter_trials(state="FAIL", sort="-number") if t.data["slot"] in slots),
        None,
    )
    lines = show.failures(coverage)
    if last is not None and _left_words(study, last):
        lines.append(f"see `tuner logs {study.name} {last.number}{url_option(url)}`")
    return lines


def _left_words(study: StudyHandle, trial: Trial) -> bool:
    """Return whether `tuner logs` would show more of a failed trial than its message."""
    failure = trial.data.get("failure") or {}
    return bool(failure.get("traceback") or study.logs(trial.number, tail=1))


def detached_sentence(name: str, url: str) -> str:
    """Say that the study goes on, and how to come back to it."""
    more = url_option(url)
    return (
        f"Detached; the study goes on. Come back with `tuner status {name} --watch{more}`, "
        f"end it with `tuner cancel {name}{more}`."
    )


def away_sentence(name: str, url: str) -> str:
    """Say that only the watching has ended, and how to come back to it."""
    return (
        "The watching ends, as the service stays away; the study goes on. Come back with "
        f"`tuner status {name} --watch{url_option(url)}`."
    )


def outage_sentence(error: ClientError | None) -> str:
    """Say that the service is away, or with None that it is back."""
    if error is None:
        return "The service answers again."
    why = error.detail if isinstance(error, ServiceError) else "it cannot be reached"
    return (
        f"The service is away ({why}); the study goes on. "
        f"Waiting for up to {show.duration(OUTAGE_SECONDS)}."
    )


def _tell_outage(error: ClientError | None) -> None:
    show.err.print(outage_sentence(error))


def _log(study: StudyHandle, timeout: float | None) -> StudyStatus:
    feed = study.feed(timeout, on_outage=_tell_outage)
    reason = None
    for status in study.updates(timeout, on_outage=_tell_outage):
        if status.reason not in (None, reason) and not status.is_final:
            show.err.print(f"{status.name}: {status.reason}")
        reason = status.reason
        for trial in feed.new():
            show.out.print(trial_line(trial))
    return study.last_status


def _draw(study: StudyHandle, timeout: float | None) -> StudyStatus:
    last: deque[Trial] = deque(maxlen=ROWS)
    with Live(console=show.out, refresh_per_second=FRAMES_PER_SECOND, transient=True) as live:

        def tell(error: ClientError | None) -> None:
            live.console.print(outage_sentence(error))  # above what is drawn

        feed = study.feed(timeout, on_outage=tell)
        for status in study.updates(timeout, on_outage=tell):
            last.extend(feed.new())
            live.update(_frame(status, last, feed.running), refresh=True)
    return study.last_status


def _frame(status: StudyStatus, last: deque[Trial], running: list[Trial]) -> Group:
    lines: list[Table | Text] = [_bar(status)]
    if running and not status.is_final:
        lines.append(Text(running_sentence(running), style="dim"))
    if status.reason and not status.is_final:
        lines.append(Text(status.reason, style="yellow"))
    if status.best_trial is not None:
        lines.append(Text(f"best {show.best_sentence(status.best_trial)}", style="bold"))
    if last:
        parameters = show.trial_columns(last)
        head = [*show.TRIAL_HEAD, *parameters, *show.TRIAL_TAIL]
        rows = [show.trial_row(trial, parameters) for trial in last]
        lines += [Text(), show.rich_table(head, rows)]
    lines.append(Text("Ctrl-C detaches; the study goes on.", style="dim"))
    return Group(*lines)


def running_sentence(running: list[Trial]) -> str:
    """Say how far the running trials are."""
    steps = [trial.data.get("last_step") or 0 for trial in running]
    span = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    trials = "1 trial" if len(running) == 1 else f"{len(running)} trials"
    return f"{trials} running, {span} epochs behind them"


def _bar(status: StudyStatus) -> Table:
    progress = status.progress
    words = f"{show.counts(status)}"
    if status.eta_seconds is not None and not status.is_final:
        words += f", about {show.duration(status.eta_seconds)} left"
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(progress.total, 1), completed=progress.finished, width=30)
    line.add_row(Text(status.name, style="bold"), Text(status.state), bar, Text(words))
    return line
