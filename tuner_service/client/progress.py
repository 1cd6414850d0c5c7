"""Showing on stderr how a study goes.

On a terminal a bar that redraws its one line; elsewhere a line per finished trial, of 80 columns at
most. The command line has its own, richer display.
"""

import os
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from tuner_service.client.answers import StudyStatus, Trial
from tuner_service.client.feed import TrialFeed

LINE_COLUMNS = 80  # of a log, and of a terminal that does not know its width
NAME_COLUMNS = 20
_BAR = "{desc} |{bar:16}| {n_fmt}/{total_fmt}{postfix}"


class Watchable(Protocol):
    """What is watched: a `StudyHandle`, which shows itself here."""

    @property
    def last_status(self) -> StudyStatus: ...  # noqa: D102
    def updates(self, timeout: float | None) -> Iterator[StudyStatus]: ...  # noqa: D102
    def feed(self, timeout: float | None) -> TrialFeed: ...  # noqa: D102


def show_progress(study: Watchable, timeout: float | None) -> StudyStatus:
    """Wait for a study's end, showing how it goes; return its last status."""
    out = sys.stderr
    status = _draw(study, timeout, out) if out.isatty() else _log(study, timeout, out)
    out.write(f"{final_sentence(status)}\n")
    return status


def _draw(study: Watchable, timeout: float | None, out: TextIO) -> StudyStatus:
    from tqdm import tqdm  # noqa: PLC0415 - only for a terminal

    draw = tqdm.status_printer(out)
    try:
        for status in study.updates(timeout):
            line = tqdm.format_meter(
                status.progress.finished,
                status.progress.total,
                elapsed=0,  # the service knows better what is left
                ncols=_columns(out),  # the window may have changed
                prefix=clip(status.name, NAME_COLUMNS),
                postfix=state_words(status),
                bar_format=_BAR,
            )
            draw(line)
    finally:
        out.write("\n")
    return study.last_status


def _columns(out: TextIO) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns or LINE_COLUMNS
    except OSError:
        return LINE_COLUMNS


def _log(study: Watchable, timeout: float | None, out: TextIO) -> StudyStatus:
    feed = study.feed(timeout)
    for _ in study.updates(timeout):
        for trial in feed.new():
            out.write(f"{trial_line(trial)}\n")
        out.flush()
    return study.last_status


def state_words(status: StudyStatus) -> str:
    """Return what there is to say beside a study's bar, the most telling first."""
    best = status.best_trial
    parts = [status.state]
    if best is not None and best.value is not None:
        parts.append(f"best {best.value:.5g} (trial {best.number})")
    if status.progress.failed:
        parts.append(f"{status.progress.failed} failed")
    if status.eta_seconds is not None and not status.is_final:
        parts.append(f"{status.eta_seconds:.0f} s left")
    return ", ".join(parts)


def trial_line(trial: Trial) -> str:
    """Return a finished trial in one line that fits 80 columns, why it failed before the rest."""
    result = "no value" if trial.value is None else f"{trial.value:.5g}"
    params = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
    why = f"[{trial.failure}]  " if trial.failure else ""
    again = f" (attempt {trial.attempt})" if trial.attempt > 1 else ""
    line = f"trial {trial.number}{again}  {trial.state}  {result}  {why}{params}"
    return clip(" ".join(line.splitlines()), LINE_COLUMNS)


def clip(text: str, columns: int) -> str:
    """Return a text of at most so many characters, with an ellipsis for what is left out."""
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def final_sentence(status: StudyStatus) -> str:
    """Say how a study ended."""
    progress = status.progress
    counts = f"{progress.done} of {progress.total} trials done"
    if progress.pruned:
        counts += f" ({progress.pruned} of them pruned)"
    if progress.failed:
        counts += f", {progress.failed} failed"
    if progress.cancelled:
        counts += f", {progress.cancelled} cancelled"
    reason = f": {status.reason}" if status.reason else ""
    nothing = "" if progress.complete else " No trial has a result."
    return f"Study {status.name} is {status.state}{reason}. {counts}.{nothing}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
