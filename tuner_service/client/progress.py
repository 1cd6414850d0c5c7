"""Showing on stderr how a study goes, with nothing but the standard library.

On a terminal one line that rewrites itself; elsewhere a line per finished trial. The command line
has its own, richer display.
"""

import sys
from typing import TYPE_CHECKING, TextIO

from tuner_service.client.answers import StudyStatus, Trial

if TYPE_CHECKING:
    from tuner_service.client.study import StudyHandle

BAR_CELLS = 24


def show_progress(study: "StudyHandle", timeout: float | None) -> StudyStatus:
    """Wait for a study's end, showing how it goes; return its last status."""
    out = sys.stderr
    status = _line(study, timeout, out) if out.isatty() else _log(study, timeout, out)
    out.write(f"{final_sentence(status)}\n")
    return status


def _line(study: "StudyHandle", timeout: float | None, out: TextIO) -> StudyStatus:
    try:
        for status in study.updates(timeout):
            out.write(f"\r\x1b[K{bar(status)}")
            out.flush()
    finally:
        out.write("\n")
    return study.last_status


def _log(study: "StudyHandle", timeout: float | None, out: TextIO) -> StudyStatus:
    feed = study.feed(timeout)
    for _ in study.updates(timeout):
        for trial in feed.new():
            out.write(f"{trial_line(trial)}\n")
        out.flush()
    return study.last_status


def bar(status: StudyStatus) -> str:
    """Return a study's progress in one line."""
    progress = status.progress
    filled = BAR_CELLS * progress.finished // max(progress.total, 1)
    cells = "#" * filled + "." * (BAR_CELLS - filled)
    best = status.best_trial
    parts = [f"{status.name} [{cells}] {progress.finished}/{progress.total}", status.state]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if best is not None and best.value is not None:
        parts.append(f"best {best.value:.5g} (trial {best.number})")
    if status.eta_seconds is not None and not status.is_final:
        parts.append(f"{status.eta_seconds:.0f} s left")
    return ", ".join(parts)


def trial_line(trial: Trial) -> str:
    """Return a finished trial in one line."""
    result = "no value" if trial.value is None else f"{trial.value:.5g}"
    params = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
    why = f"  [{trial.failure}]" if trial.failure else ""
    again = f" (attempt {trial.attempt})" if trial.attempt > 1 else ""
    return f"trial {trial.number}{again}  {trial.state}  {result}  {params}{why}"


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
