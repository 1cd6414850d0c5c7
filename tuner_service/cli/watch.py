"""Watching a study: `frame` on a terminal, a line per finished trial elsewhere."""

from rich.console import Group
from rich.live import Live

from tuner_service.cli import frame, show
from tuner_service.cli.codes import AWAY, DETACHED, code_of_study
from tuner_service.cli.frame import WatchedTrials
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
    with Live(console=show.out, refresh_per_second=FRAMES_PER_SECOND, transient=True) as live:

        def tell(error: ClientError | None) -> None:
            live.console.print(outage_sentence(error))  # above what is drawn

        feed = study.feed(timeout, on_outage=tell)
        seen = WatchedTrials.of(study.last_status)
        for status in study.updates(timeout, on_outage=tell):
            for trial in feed.new():
                seen.ended(trial)
            seen.runs(feed.running)
            live.update(Group(*frame.lines(status, seen, live.console.width)), refresh=True)
    return study.last_status
