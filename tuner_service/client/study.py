"""A handle on one study of the service."""

import io
import time
import zipfile
from collections.abc import Iterator, Mapping
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from tuner_service.client import figures
from tuner_service.client.answers import StudyStatus, Trial
from tuner_service.client.errors import NoResultError, ServiceError, WaitTimeoutError
from tuner_service.client.feed import TrialFeed
from tuner_service.client.patience import OnOutage, OutageRetry, deadline_of
from tuner_service.client.progress import show_progress
from tuner_service.client.transport import Transport
from tuner_service.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

HOLD_SECONDS = 30.0  # how long the service holds one question before it answers "unchanged"
PAGE = 200

ExportFormat = Literal["csv", "json"]


class StudyHandle:
    """One study: what became of it, and what may be done with it.

    Attributes:
        id: The study's id, which never changes.
        name: Its name, which is also the Optuna study's.
    """

    def __init__(self, transport: Transport, status: StudyStatus) -> None:
        self._transport = transport
        self._last = status
        self.id = status.id
        self.name = status.name

    def __repr__(self) -> str:
        return f"StudyHandle(name={self.name!r}, id={self.id!r}, state={self._last.state!r})"

    def _repr_html_(self) -> str:
        """Return how the study stands, for a notebook; names are text in it."""
        status = self._last
        best = status.best_trial
        rows = [
            ("state", status.state + (f" ({status.reason})" if status.reason else "")),
            ("trials", f"{status.progress.finished} of {status.progress.total}"),
            *([("best", f"{best.value} (trial {best.number})")] if best else []),
            *(sorted(best.params.items()) if best else []),
        ]
        cells = "".join(f"<tr><th>{escape(n)}</th><td>{escape(str(v))}</td></tr>" for n, v in rows)
        return f"<table><caption>{escape(self.name)}</caption>{cells}</table>"

    @property
    def last_status(self) -> StudyStatus:
        """The newest status this handle has seen, without asking again."""
        return self._last

    def status(self) -> StudyStatus:
        """Ask the service for the study as it is now."""
        return self._note(self._transport.get(self._path()).json())

    def wait(self, *, progress: bool = False, timeout: float | None = None) -> StudyStatus:
        """Return when the study has ended, in whatever way: see `state` and `reason`.

        A service that restarts meanwhile is borne with for two minutes.

        Args:
            progress: Show how it goes on stderr: a bar on a terminal, else a line per trial.
            timeout: The longest to wait, in seconds; the study itself goes on.

        Raises:
            WaitTimeoutError: It is not over after `timeout` seconds.
        """
        if progress:
            return show_progress(self, timeout)
        for status in self.updates(timeout):
            if status.is_final:
                return status
        raise AssertionError("updates end with a final status")

    def updates(
        self, timeout: float | None = None, *, on_outage: OnOutage | None = None
    ) -> Iterator[StudyStatus]:
        """Yield the study's status now and after every change, up to its final one.

        A service that is away is borne with for two minutes.

        Args:
            on_outage: Is told the error once when the service is away, and None when it is back.

        Raises:
            WaitTimeoutError: It is not over after `timeout` seconds.
        """
        deadline = deadline_of(timeout)
        patience = OutageRetry(self.name, deadline=deadline, on_outage=on_outage)
        status = patience.ask(self.status)
        yield status
        while not status.is_final:
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"Study {self.name!r} is still {status.state} after {timeout:g} s; it goes on."
                )
            changed = self._next(status, deadline, patience)
            if changed is not None:
                status = changed
                yield status

    def trial(self, number: int) -> Trial:
        """Return one trial; its `data` has the per-epoch records under `epochs`."""
        return Trial.of(self._transport.get(f"{self._path()}/trials/{number}").json())

    def trials(
        self, *, state: str | None = None, sort: str = "number", filter: str = ""
    ) -> list[Trial]:
        """Return the trials.

        Args:
            state: Only those in this state (RUNNING, COMPLETE, PRUNED, FAIL).
            sort: `number`, or `value` and `-value`, which leave out trials without one.
            filter: Terms that must all hold, such as `lr<1e-2 optimizer:adam`.
        """
        return list(self.iter_trials(state=state, sort=sort, filter=filter))

    def iter_trials(
        self, *, state: str | None = None, sort: str = "number", filter: str = ""
    ) -> Iterator[Trial]:
        """Yield the trials, reading a page at a time."""
        cursor = None
        while True:
            page = self._page(cursor, state=state, sort=sort, filter=filter)
            yield from (Trial.of(item) for item in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def feed(self, timeout: float | None = None, *, on_outage: OnOutage | None = None) -> TrialFeed:
        """Return a feed that gives each trial once, when it has finished.

        It bears with a service that is away as `updates` does, in all for `timeout` seconds.
        """
        patience = OutageRetry(self.name, deadline=deadline_of(timeout), on_outage=on_outage)
        return TrialFeed(lambda cursor: patience.ask(lambda: self._page(cursor)))

    def trials_dataframe(self) -> "DataFrame":
        """Return the trials as a pandas table: one row each, parameters as `params_NAME`.

        Raises:
            MissingExtraError: pandas is not installed here.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - half a second that other callers need not spend
        except ModuleNotFoundError as error:
            raise MissingExtraError("trials_dataframe needs pandas: pip install pandas") from error
        rows = self._transport.get(f"{self._path()}/export", {"format": "json"}).json()
        return pd.DataFrame(rows)

    @property
    def best_trial(self) -> Trial:
        """The best trial so far; with several objectives the first of `best_trials`.

        Raises:
            NoResultError: No trial has a result.
        """
        best = self.best_trials()
        if best:
            return best[0]
        status = self.status()
        raise NoResultError(
            f"Study {self.name!r} has no trial with a result: it is {status.state}"
            + (f" ({status.reason})" if status.reason else "")
            + f", {status.progress.done} of {status.progress.total} trials done."
        )

    def best_trials(self) -> list[Trial]:
        """Return the best trial, or with several objectives those that no other dominates."""
        body = self._transport.get(f"{self._path()}/best").json()
        return [Trial.of(item) for item in _items(body)]

    def model(self, path: str | Path, *, trial: int | None = None) -> Path:
        """Write a trial's model into a directory: weights, definition, `predict.py`, ….

        Args:
            path: The directory; it is made if need be, and files of these names are replaced.
            trial: The trial's number; by default the best one's.

        Raises:
            NotFoundError: Its weights were not kept (code `not_kept`).
            NoResultError: No trial has a result.
        """
        number = self.best_trial.number if trial is None else trial
        answer = self._transport.get(f"{self._path()}/trials/{number}/model")
        return unpack(answer.content, Path(path))

    def logs(self, trial: int, *, tail: int | None = None) -> str:
        """Return what a trial printed, or its last lines."""
        return self._transport.get(f"{self._path()}/trials/{trial}/logs", {"tail": tail}).text

    def columns(self, *, filter: str = "", most: int = 5000) -> dict[str, Any]:
        """Return the trials by column: numbers, states, values and parameters.

        Args:
            filter: Terms that must all hold, such as `lr<1e-2 state:complete`.
            most: Of more trials than this, a part with the best and the running ones.
        """
        query: dict[str, str | int | None] = {"filter": filter or None, "most": most}
        return dict(self._transport.get(f"{self._path()}/columns", query).json())

    def curves(self, metric: str | None = None, *, since: int | None = None) -> dict[str, Any]:
        """Return what trials reported epoch by epoch, and what the pruner asks of them.

        Args:
            metric: By default the (first) objective.
            since: A `revision` of an earlier answer: only what has changed after it.
        """
        query: dict[str, str | int | None] = {"metric": metric, "since": since}
        return dict(self._transport.get(f"{self._path()}/curves", query).json())

    def failures(self) -> dict[str, Any]:
        """Return failures by message, each with the region of the space that explains it."""
        return dict(self._transport.get(f"{self._path()}/failures").json())

    def importances(self) -> dict[str, float]:
        """Return how much each parameter matters; empty while too few trials are complete."""
        found = self._transport.get(f"{self._path()}/importances").json()
        return dict(found["importances"])

    def plot_history(self) -> "Figure":
        """Return values by trial and the best so far, as a Plotly figure."""
        return figures.figure(figures.history(self.columns()))

    def plot_curves(self, metric: str | None = None) -> "Figure":
        """Return what trials reported by epoch and the pruner's threshold, as a Plotly figure."""
        return figures.figure(figures.curves(self.curves(metric)))

    def plot_parallel(self) -> "Figure":
        """Return parallel coordinates of the complete trials, as a Plotly figure."""
        return figures.figure(figures.parallel(self.columns()))

    def plot_importances(self) -> "Figure":
        """Return how much each parameter matters, as a Plotly figure."""
        return figures.figure(figures.importances(self.importances()))

    def coverage(self) -> dict[str, Any]:
        """Say what became of every grid point (or slot), naming the failed ones."""
        return dict(self._transport.get(f"{self._path()}/coverage").json())

    def pause(self) -> StudyStatus:
        """Stop after handing running trials back; `resume` goes on where they stand."""
        return self._act("pause")

    def resume(self) -> StudyStatus:
        """Go on after a pause."""
        return self._act("resume")

    def cancel(self) -> StudyStatus:
        """End the study; running trials are stopped, finished ones kept."""
        return self._act("cancel")

    def add_points(self, *points: Mapping[str, Any]) -> StudyStatus:
        """Try these points as well: a trial more for each; what one leaves out is sampled.

        Raises:
            InvalidInputError: A point is not of the search space, or the study is a grid.
        """
        body = {"points": [dict(point) for point in points]}
        return self._note(self._transport.post(f"{self._path()}/points", body))

    def stop_trial(self, trial: int) -> StudyStatus:
        """End a running trial at its next report, as PRUNED with the value it has then.

        Raises:
            ConflictError: It has ended.
        """
        return self._act(f"trials/{trial}/stop")

    def rerun(self, trial: int) -> StudyStatus:
        """Try a trial's parameters once more, with another seed."""
        return self._act(f"trials/{trial}/rerun")

    def refit(self, trial: int | None = None) -> "StudyHandle":
        """Train a trial's parameters on all rows, for the epochs it took, as a study of its own.

        Args:
            trial: Its number; by default the best one's.

        Raises:
            ServiceError: There is no such result, or the study is a training loop.
        """
        chosen = "" if trial is None else f"?trial={trial}"
        answer = self._transport.post(f"{self._path()}/refit{chosen}")
        return StudyHandle(self._transport, StudyStatus.of(answer))

    def delete(self) -> None:
        """Delete the study with its trials and files. It must have ended, or be paused."""
        self._transport.delete(self._path())

    def update(self, **changes: Any) -> StudyStatus:
        """Change budget, priority, parallelism or tags, as `PATCH /v1/studies/{id}` has it."""
        return self._note(self._transport.patch(self._path(), changes))

    def export(self, format: ExportFormat = "csv") -> str:
        """Return all trials as a text, CSV or JSON."""
        return self._transport.get(f"{self._path()}/export", {"format": format}).text

    def _act(self, action: str) -> StudyStatus:
        return self._note(self._transport.post(f"{self._path()}/{action}"))

    def _path(self) -> str:
        return f"/studies/{self.id}"

    def _note(self, data: Mapping[str, Any]) -> StudyStatus:
        self._last = StudyStatus.of(data)
        return self._last

    def _page(
        self,
        cursor: str | None,
        *,
        state: str | None = None,
        sort: str = "number",
        filter: str = "",
    ) -> dict[str, Any]:
        query: dict[str, str | int | None] = {
            "cursor": cursor,
            "limit": PAGE,
            "state": state,
            "sort": sort,
            "filter": filter or None,
        }
        return dict(self._transport.get(f"{self._path()}/trials", query).json())

    def _next(
        self, known: StudyStatus, deadline: float | None, patience: OutageRetry
    ) -> StudyStatus | None:
        """Hold until the study is no longer as known; None if nothing changed for a while."""
        response = patience.ask(lambda: self._hold(known, deadline))
        if response.status_code == HTTPStatus.NOT_MODIFIED:
            return None
        status = self._note(response.json())
        return status if status.revision != known.revision else None

    def _hold(self, known: StudyStatus, deadline: float | None) -> httpx2.Response:
        hold = HOLD_SECONDS
        if deadline is not None:
            hold = max(min(hold, deadline - time.monotonic()), 0.1)
        headers = {"If-None-Match": f'"{known.revision}"'}
        return self._transport.get(self._path(), headers=headers, wait=hold)


def _items(body: Any) -> list[dict[str, Any]]:
    return list(body["items"]) if isinstance(body, Mapping) else list(body)


def unpack(content: bytes, directory: Path) -> Path:
    """Write the files of a model's zip into the directory; none may lie elsewhere."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if any(Path(name).name != name or name in ("", ".", "..") for name in names):
                detail = f"the model's zip must hold plain files only, but got {names}"
                raise ServiceError(HTTPStatus.OK, "bad_answer", detail)
            archive.extractall(directory)
    except zipfile.BadZipFile as error:
        raise ServiceError(HTTPStatus.OK, "bad_answer", f"the model is no zip: {error}") from error
    return directory
