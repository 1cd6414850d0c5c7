"""The trials of a running study as they finish, without reading the whole list every time."""

from collections.abc import Callable, Iterator
from typing import Any

from tuner_service.client.answers import Trial

Pages = Callable[[str | None], dict[str, Any]]


class TrialFeed:
    """Yields each finished trial once.

    Trials finish out of order, so a page is read again until all on it have finished; then the
    feed moves on. What it costs is the pages with running trials, not the study.

    Attributes:
        running: The trials that were running at the last call of `new`.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._settled: str | None = None  # cursor of the first page that is still read
        self._seen: set[int] = set()
        self.running: list[Trial] = []

    def new(self) -> Iterator[Trial]:
        """Yield the trials that finished since the last call, by number."""
        cursor = self._settled
        settled = True
        self.running = []
        while True:
            page = self._pages(cursor)
            trials = [Trial.of(item) for item in page["items"]]
            self.running += [trial for trial in trials if not trial.is_finished]
            yield from self._unseen(trials)
            settled = settled and all(trial.is_finished for trial in trials)
            cursor = page["next_cursor"]
            if cursor is None:
                return
            if settled:
                self._settled = cursor
                self._seen.difference_update(trial.number for trial in trials)

    def _unseen(self, trials: list[Trial]) -> Iterator[Trial]:
        for trial in trials:
            if trial.is_finished and trial.number not in self._seen:
                self._seen.add(trial.number)
                yield trial
