"""What the commands print: tables and sentences on stdout, the rest on stderr."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuner_service.client import StudyStatus, Trial

# Study and trial texts come from others: no markup and no highlighting in them.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

MOST_FAILURES = 3
LONGEST_WORD = 60
INFEASIBLE = {"diverged": "DIVERGED", "out_of_memory": "OUT OF MEMORY"}

STATE_STYLES = {
    "completed": "green",
    "COMPLETE": "green",
    "running": "cyan",
    "RUNNING": "cyan",
    "paused": "yellow",
    "PRUNED": "yellow",
    "failed": "red",
    "FAIL": "red",
    "DIVERGED": "red",
    "OUT OF MEMORY": "red",
    "cancelled": "magenta",
}


def as_json(data: object) -> None:
    """Print JSON."""
    out.print(json.dumps(data, indent=2), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, aligned columns of whole words elsewhere."""
    if out.is_terminal:
        out.print(rich_table(columns, rows), soft_wrap=False)
        return
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        out.print("  ".join(cells).rstrip())


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table for a terminal."""
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    return drawn


def number(value: object) -> str:
    """Return a value as a person wants to read it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"
    return "-" if value is None else str(value)


def result(trial: Trial) -> str:
    """Return a trial's value, or its values."""
    if trial.values is not None and len(trial.values) > 1:
        return ", ".join(map(number, trial.values))
    return number(trial.value)


def state_word(trial: Trial) -> str:
    """Return a trial's state: diverged, where no pruner stopped it; foreign, where it is not ours.

    A foreign trial is never the study's best, whatever its value beside the others.
    """
    if trial.data.get("foreign"):
        return f"{trial.state} (foreign)"
    kind = str((trial.data.get("failure") or {}).get("kind"))
    return INFEASIBLE.get(kind, trial.state) if trial.state == "PRUNED" else trial.state


def trial_columns(trials: Sequence[Trial]) -> list[str]:
    """Return the parameters that any of these trials has, in order of appearance."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def trial_row(trial: Trial, parameters: Sequence[str]) -> list[str]:
    """Return the cells of `TRIAL_HEAD`, the parameters, and `TRIAL_TAIL`."""
    return [
        str(trial.number),
        state_word(trial),
        result(trial),
        *(number(trial.params.get(name)) for name in parameters),
        "-" if trial.seconds is None else f"{trial.seconds:.1f}",
        trial.failure or "",
    ]


GROUP_LETTERS = 6  # enough to tell the groups of a study apart
VERBOSE_TAIL = ("slot", "attempt", "group")  # for operators: how the service keeps it
TRIAL_HEAD = ("trial", "state", "value")
TRIAL_TAIL = ("seconds", "failure")


def trials(found: Sequence[Trial], *, verbose: bool = False) -> None:
    """Print trials as a table: what they tried, what came of it, and how they were trained.

    Args:
        verbose: With what an operator may ask for: slot, attempt, and the group it trained in.
    """
    parameters = trial_columns(found)
    head = [*TRIAL_HEAD, *parameters, TRIAL_TAIL[0], "samples/s", "backend"]
    head += [*(VERBOSE_TAIL if verbose else ()), TRIAL_TAIL[1]]
    rows = []
    for trial in found:
        *told, failure = trial_row(trial, parameters)
        rows.append([*told, *_how(trial), *(_where(trial) if verbose else ()), failure])
    if not any(trial.failure for trial in found):
        head, rows = head[:-1], [row[:-1] for row in rows]
    table(head, rows)


def _how(trial: Trial) -> list[str]:
    """Return a trial's speed, and what ran it."""
    speed = trial.record.get("samples_per_second")
    return ["-" if speed is None else f"{speed:,.0f}", trial.data.get("backend") or "-"]


def _where(trial: Trial) -> list[str]:
    """Return the cells of `VERBOSE_TAIL`."""
    group = trial.data.get("group") or "-"
    return [str(trial.data["slot"]), str(trial.attempt), group[:GROUP_LETTERS]]


def status(study: StudyStatus, failures: Sequence[str] = ()) -> None:
    """Print one study, with what went wrong in its failed trials."""
    out.print(Text(study.name, style="bold"), Text(study.state, STATE_STYLES.get(study.state, "")))
    lines = [("id", study.id), ("trials", counts(study))]
    if study.reason:
        lines.append(("reason", study.reason))
    lines += [("note", warning) for warning in study.warnings]
    lines += titled("failures", failures)
    if study.best_trial is not None:
        lines.append(("best", best_sentence(study.best_trial)))
    if study.eta_seconds is not None and not study.is_final:
        lines.append(("time left", f"about {duration(study.eta_seconds)}"))
    pairs(lines)


def best(trial: Trial) -> None:
    """Print a trial with all its parameters and what it reached."""
    out.print(Text(f"trial {trial.number}: {result(trial)}", style="bold"))
    pairs([("parameters", "")])
    pairs([(f"  {name}", number(value)) for name, value in trial.params.items()])
    reached = scalars(trial.record)
    if reached:
        pairs([("reached", "")])
        pairs([(f"  {name}", number(value)) for name, value in reached.items()])


def scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers and short words of a trial's record (hashes are for `--json`)."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < LONGEST_WORD)
    }


def pairs(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        out.print(f"  {name.ljust(width)}  {value}".rstrip())


def titled(title: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return the lines for `pairs`, the first one with the title."""
    return [(title if i == 0 else "", line) for i, line in enumerate(lines)]


def counts(study: StudyStatus) -> str:
    """Say how much of the budget is used, and how."""
    progress = study.progress
    parts = [f"{progress.done} of {progress.total} done"]
    if progress.pruned:
        parts[0] += f" ({progress.pruned} pruned)"
    if progress.leased:
        parts.append(f"{progress.leased} running")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.cancelled:
        parts.append(f"{progress.cancelled} cancelled")
    return ", ".join(parts)


def best_sentence(trial: Trial) -> str:
    """Return a trial's value and parameters in one line."""
    params = ", ".join(f"{name}={number(value)}" for name, value in trial.params.items())
    return f"{result(trial)} (trial {trial.number}): {params}"


def duration(seconds: float) -> str:
    """Return seconds as `45 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def failures(coverage: Mapping[str, Any]) -> list[str]:
    """Return the commonest reasons of failed trials, each with its count."""
    reasons = Counter(
        f"{point['failure']['kind']}: {point['failure']['message']}"
        for point in coverage["failed_points"]
    )
    return [
        reason if count == 1 else f"{reason} ({count} times)"
        for reason, count in reasons.most_common(MOST_FAILURES)
    ]


def faults(
    errors: Sequence[Mapping[str, Any]], file: str = "", lines: Mapping[str, int] | None = None
) -> None:
    """Print what is wrong with a definition: where it stands, a pointer and a sentence each.

    Args:
        file: What it was read from.
        lines: Where values begin in it, by pointer; of one that is missing, what it belongs into.
    """
    places = "one place" if len(errors) == 1 else f"{len(errors)} places"
    err.print(f"tuner: the definition is wrong in {places}:")
    for fault in errors:
        where = str(fault.get("pointer") or "")
        line = _line_of(where, lines or {})
        place = f"{file}:{line} " if line else ""
        err.print(Text(f"  {place}{where or '/'}", style="bold"), f"{fault.get('detail')}")


def _line_of(where: str, lines: Mapping[str, int]) -> int | None:
    while where and where not in lines:
        where = where.rpartition("/")[0]
    return lines.get(where)
