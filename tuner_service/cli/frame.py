"""What `--watch` draws, fit to the width of the terminal.

A table takes the columns that are worth most and fit; a number is never broken over two lines.
Every line is as wide as the terminal at most.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.text import Text

from tuner_service.cli import show
from tuner_service.client import StudyStatus, Trial
from tuner_service.client.progress import clip

BEST_TRIALS: Final = 5
RUNNING_TRIALS: Final = 8
LONGEST_CELL: Final = 18
SHORTEST_NAME: Final = 8
NARROWEST_BAR: Final = 10
WIDEST_BAR: Final = 40
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SPARKLINE: Final = 12


@dataclass(slots=True)
class WatchedTrials:
    """What was seen of a study's trials: the best of those that ended, and who runs."""

    maximize: bool = True
    metric: str = "value"
    running: list[Trial] = field(default_factory=list)
    _best: list[tuple[float, int, Trial]] = field(default_factory=list)
    _curves: dict[int, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, status: StudyStatus) -> "WatchedTrials":
        """Return an empty one for a study, by its (first) objective."""
        metric, maximize = first_objective(status)
        return cls(maximize=maximize, metric=metric)

    def ended(self, trial: Trial) -> None:
        """Take note of a trial that has ended."""
        if trial.state != "COMPLETE" or trial.value is None:
            return
        entry = (trial.value if self.maximize else -trial.value, -trial.number, trial)
        heapq.heappush(self._best, entry)
        if len(self._best) > BEST_TRIALS:
            heapq.heappop(self._best)

    def runs(self, trials: Sequence[Trial]) -> None:
        """Take note of the trials that run now, with their latest values."""
        self.running = list(trials)
        numbers = {trial.number for trial in trials}
        self._curves = {n: curve for n, curve in self._curves.items() if n in numbers}
        for trial in trials:
            value = self.latest(trial)
            if value is not None:
                steps = self._curves.setdefault(trial.number, {})
                steps[trial.data.get("last_step") or 0] = value

    @property
    def best(self) -> list[Trial]:
        """The best trials, the best one first."""
        return [trial for _, _, trial in sorted(self._best, reverse=True)]

    def latest(self, trial: Trial) -> float | None:
        """Return what a running trial said of the objective last."""
        value = (trial.data.get("latest") or {}).get(self.metric)
        return value if isinstance(value, (int, float)) else None

    def curve(self, trial: Trial) -> list[float]:
        """Return the values that were seen of a running trial, by epoch."""
        return [value for _, value in sorted(self._curves.get(trial.number, {}).items())]


def first_objective(status: StudyStatus) -> tuple[str, bool]:
    """Return the (first) objective's metric, and whether it is to be large."""
    objective = (status.data.get("definition") or {}).get("objective") or {}
    first = objective[0] if isinstance(objective, list) else objective
    return first.get("metric", "value"), first.get("direction", "maximize") == "maximize"


def lines(status: StudyStatus, seen: WatchedTrials, width: int) -> list[Text]:
    """Return the lines of a frame."""
    drawn = [_head(status, width), Text(clip(_counts(status), width))]
    if status.reason and not status.is_final:
        drawn.append(Text(clip(status.reason, width), style="yellow"))
    if status.best_trial is not None:
        drawn.append(Text(_best_sentence(status.best_trial, width), style="bold"))
    if seen.running and not status.is_final:
        drawn += [Text(), *_running(seen, width)]
    if seen.best:
        drawn += [Text(), *_best(seen, width)]
    drawn.append(Text(clip("Ctrl-C detaches; the study goes on.", width), style="dim"))
    return drawn


def _best_sentence(trial: Trial, width: int) -> str:
    """Return the best trial in a line: of its parameters as many as fit whole."""
    text = clip(f"best {show.result(trial)} (trial {trial.number})", width)
    parts = [f"{name}={show.number(value)}" for name, value in trial.params.items()]
    for index, part in enumerate(parts):
        longer = f"{text}{', ' if index else ': '}{part}"
        if len(longer) + (3 if index + 1 < len(parts) else 0) > width:
            return f"{text}, …" if len(text) + 3 <= width else text
        text = longer
    return text


def _head(status: StudyStatus, width: int) -> Text:
    done, total = status.progress.finished, max(status.progress.total, 1)
    told = f"{done}/{status.progress.total}"
    name = clip(status.name, max(8, width - len(status.state) - len(told) - NARROWEST_BAR - 3))
    room = width - len(name) - len(status.state) - len(told) - 3
    bar = min(max(room, 0), WIDEST_BAR)
    full = min(bar, round(bar * done / total))
    style = show.STATE_STYLES.get(status.state, "")
    return Text.assemble(
        (name, "bold"), " ", (status.state, style), " ",
        ("━" * full, "cyan"), ("─" * (bar - full), "dim"), " ", told,
    )  # fmt: skip


def _counts(status: StudyStatus) -> str:
    words = show.counts(status)
    if status.eta_seconds is not None and not status.is_final:
        words = f"about {show.duration(status.eta_seconds)} left, {words}"
    return words


def _running(seen: WatchedTrials, width: int) -> list[Text]:
    newest = seen.running[-RUNNING_TRIALS:]
    count = len(seen.running)
    title = "1 trial running" if count == 1 else f"{count} trials running"
    if count > len(newest):
        title += f", the newest {len(newest)} of them"
    head = ["trial", "epoch", seen.metric, "curve"]
    rows = [
        [
            str(trial.number),
            show.number(trial.data.get("last_step")),
            show.number(seen.latest(trial)),
            sparkline(seen.curve(trial)),
        ]
        for trial in newest
    ]
    return [Text(clip(title, width), style="cyan"), *_with_parameters(head, rows, newest, width)]


def _best(seen: WatchedTrials, width: int) -> list[Text]:
    found = seen.best
    head = ["trial", seen.metric]
    rows = [[str(trial.number), show.result(trial)] for trial in found]
    title = f"best {len(found)}" if len(found) > 1 else "best"
    return [Text(clip(title, width), style="green"), *_with_parameters(head, rows, found, width)]


def _with_parameters(
    head: list[str], rows: list[list[str]], trials: Sequence[Trial], width: int
) -> list[Text]:
    names = show.trial_columns(trials)
    cells = [
        [*row, *(_cell(trial.params.get(name)) for name in names)]
        for row, trial in zip(rows, trials, strict=True)
    ]
    return fitted([*head, *names], cells, width)


def _cell(value: Any) -> str:
    return clip(show.number(value), LONGEST_CELL)


def fitted(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Text]:
    """Return a table of the first columns that fit, and how many are left out.

    Numbers stand to the right; a column's name is cut where its values are much shorter.
    """
    columns, left = [], width
    sizes = [max((len(row[index]) for row in rows), default=0) for index in range(len(head))]
    whole = [max(size, len(name)) for size, name in zip(sizes, head, strict=True)]
    has_room = sum(whole) + 2 * len(whole) <= width + 2
    for index, name in enumerate(head):
        cells = [row[index] for row in rows]
        size = whole[index] if has_room else max(sizes[index], min(len(name), SHORTEST_NAME))
        # Of what comes after it, something must still say that it is not all.
        reserve = 4 if index + 1 < len(head) else 0
        if size > left - reserve:
            break
        columns.append((clip(name, size), cells, size))
        left -= size + 2
    more = len(head) - len(columns)
    top = "  ".join(name.rjust(size) for name, _, size in columns) + (f"  +{more}" if more else "")
    body = ["  ".join(cells[i].rjust(size) for _, cells, size in columns) for i in range(len(rows))]
    return [Text(top[:width], style="bold"), *(Text(line[:width]) for line in body)]


def thinned(values: Sequence[float]) -> list[float]:
    """Return as many of the values as a sparkline holds, evenly, the first and last among them."""
    last = len(values) - 1
    if last < _SPARKLINE:
        return list(values)
    return [values[round(i * last / (_SPARKLINE - 1))] for i in range(_SPARKLINE)]


def sparkline(values: Sequence[float]) -> str:
    """Return the last values as a line of blocks."""
    last = list(values)[-_SPARKLINE:]
    if not last:
        return ""
    low, high = min(last), max(last)
    span = high - low
    return "".join(
        _BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span else 3] for value in last
    )
