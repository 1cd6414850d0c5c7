"""A study's trials in columns, in memory: what charts, filters and statistics read.

The copy is caught up by revision: only new trials, and those that were unfinished, are read again,
so that a question about 100,000 trials costs no statement over all of them. Trials that other
Optuna programs added are not among them: they have no parameters that this study must know.
"""

import heapq
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Text, cast, func, or_, select

from tuner_service.definition import StudyDefinition, space_of
from tuner_service.errors import NotFoundError
from tuner_service.reads.optuna_trials import read_values
from tuner_service.reads.stored import stored_definition
from tuner_service.storage import Database
from tuner_service.storage.schema import GONE, slots, studies, trials

MOST_STUDIES: Final = 16  # in memory at once: of 100,000 trials one takes about 100 MB
IDS_PER_QUERY: Final = 500
_READ: Final = (
    trials.c.trial_id,
    trials.c.number,
    trials.c.state,
    trials.c.value,
    trials.c.started_at,
    trials.c.finished_at,
    trials.c.failure_kind,
    trials.c.failure_message,
    trials.c.worker,
    # As text: of many points the reader is called once.
    func.coalesce(cast(slots.c.parameters, Text), "null"),
)
_OF_TRIAL: Final = ("state", "value", "started", "finished", "failure", "message", "worker")


@dataclass(slots=True)
class TrialColumns:
    """The trials of one study by column; the i-th entry of each is of the same trial.

    Attributes:
        study: The study's public id.
        revision: The study's when the copy was last caught up.
        values: Of the objectives, a column each; None where there is no value.
        parameters: By name, in the space's order; None where a condition leaves one out.
        changed: The revision at which the trial was last seen to change.
    """

    study: str
    study_id: int
    definition: StudyDefinition
    revision: int = 0
    trial_id: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    value: list[float | None] = field(default_factory=list)
    values: list[list[float | None]] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    finished: list[float | None] = field(default_factory=list)
    failure: list[str | None] = field(default_factory=list)
    message: list[str | None] = field(default_factory=list)
    worker: list[str | None] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    parameters: dict[str, list[Any]] = field(default_factory=dict)
    unfinished: dict[int, int] = field(default_factory=dict)  # Optuna's trial id to place
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __len__(self) -> int:
        return len(self.number)

    @property
    def maximizes(self) -> bool:
        """Whether the (first) objective is to be large."""
        return self.definition.objective[0].direction == "maximize"

    def with_state(self, *states: str) -> list[int]:
        """Return the places of the trials in these states."""
        return [place for place, state in enumerate(self.state) if state in states]

    def best(self, count: int, places: Iterable[int] | None = None) -> list[int]:
        """Return the places of the best complete trials, the best first."""
        sign = -1.0 if self.maximizes else 1.0
        state, value = self.state, self.value
        among = range(len(self)) if places is None else places
        valued = (
            (sign * found, place)
            for place in among
            if (found := value[place]) is not None and state[place] == "COMPLETE"
        )
        return [place for _, place in heapq.nsmallest(count, valued)]

    def catch_up(self, connection: Connection, revision: int) -> None:
        """Read what has changed. The caller holds the lock."""
        if revision == self.revision:
            return
        last = self.trial_id[-1] if self.trial_id else -1
        mine = select(*_READ).join(slots, slots.c.id == trials.c.slot_id)
        fresh = connection.execute(
            mine.where(trials.c.study_id == self.study_id, trials.c.trial_id > last).order_by(
                trials.c.trial_id
            )
        ).all()
        again: list[Any] = []
        open_ids = sorted(self.unfinished)
        for first in range(0, len(open_ids), IDS_PER_QUERY):
            some = open_ids[first : first + IDS_PER_QUERY]
            again += connection.execute(mine.where(trials.c.trial_id.in_(some)))
        further = self._further_values(connection, [row.trial_id for row in [*fresh, *again]])
        for row in again:
            self._renew(row, further, revision)
        self._append(fresh, further, revision)
        self.revision = revision

    def _further_values(self, connection: Connection, ids: list[int]) -> Mapping[int, list[float]]:
        if len(self.definition.objective) == 1:
            return {}
        found: dict[int, list[float]] = {}
        for first in range(0, len(ids), IDS_PER_QUERY):
            found |= read_values(connection, ids[first : first + IDS_PER_QUERY])
        return found

    def _renew(self, row: Any, further: Mapping[int, list[float]], revision: int) -> None:
        place = self.unfinished[row.trial_id]
        if row.state != "RUNNING":
            del self.unfinished[row.trial_id]
        for name, value in zip(_OF_TRIAL, row[2:-1], strict=True):
            getattr(self, name)[place] = value
        self.changed[place] = revision
        for index, column in enumerate(self.values):
            column[place] = _value(row, further, index)

    def _append(
        self, rows: Sequence[Any], further: Mapping[int, list[float]], revision: int
    ) -> None:
        """Add new trials, column by column: a loop over rows takes thrice as long."""
        if not self.parameters:
            self.parameters = {name: [] for name, _ in space_of(self.definition).parameters}
            self.values = [[] for _ in self.definition.objective]
        if not rows:
            return
        first = len(self)
        ids, numbers, *told, texts = zip(*rows, strict=True)
        points = json.loads(f"[{','.join(texts)}]")
        self.trial_id += ids
        self.number += numbers
        self.changed += [revision] * len(rows)
        for name, column in zip(_OF_TRIAL, told, strict=True):
            getattr(self, name).extend(column)
        for name, values in self.parameters.items():
            values += [point.get(name) if point else None for point in points]
        for index, objective in enumerate(self.values):
            objective += [_value(row, further, index) for row in rows]
        for place in range(first, len(self)):
            if self.state[place] == "RUNNING":
                self.unfinished[self.trial_id[place]] = place


def _value(row: Any, further: Mapping[int, list[float]], index: int) -> float | None:
    """Return a trial's value of an objective; a pruned one of several has the first alone."""
    values = further.get(row[0], ())
    if index < len(values):
        return values[index]
    return row[3] if index == 0 else None


class ColumnCache:
    """The copies of the studies that were asked for last. Any thread may ask."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, TrialColumns] = OrderedDict()

    def get(self, ref: str) -> TrialColumns:
        """Return a study's columns as they are now; read them with their `lock` held.

        Raises:
            NotFoundError: There is no such study.
        """
        with self._db.read() as connection:
            public_id, revision = _standing(connection, ref)
            columns = self._of(connection, public_id)
            with columns.lock:
                try:
                    columns.catch_up(connection, max(revision, columns.revision))
                except BaseException:  # half a copy must not be taken for a whole one
                    self._forget(public_id)
                    raise
        return columns

    def _forget(self, public_id: str) -> None:
        with self._lock:
            self._kept.pop(public_id, None)

    def _of(self, connection: Connection, public_id: str) -> TrialColumns:
        with self._lock:
            if public_id in self._kept:
                self._kept.move_to_end(public_id)
                return self._kept[public_id]
        row = connection.execute(
            select(studies.c.id, studies.c.definition).where(studies.c.public_id == public_id)
        ).one()
        fresh = TrialColumns(public_id, row.id, stored_definition(row.definition))
        with self._lock:
            columns = self._kept.setdefault(public_id, fresh)
            while len(self._kept) > MOST_STUDIES:
                self._kept.popitem(last=False)
        return columns


def _standing(connection: Connection, ref: str) -> tuple[str, int]:
    """Return a study's public id and revision, by id or name; without its definition."""
    missing = NotFoundError(f"there is no study with the id or name {ref!r}")
    if "\x00" in ref:  # PostgreSQL would refuse the statement
        raise missing
    rows = connection.execute(
        select(studies.c.public_id, studies.c.revision).where(
            or_(studies.c.public_id == ref, studies.c.name == ref), studies.c.state != GONE
        )
    ).all()
    if not rows:
        raise missing
    public_id, revision = min(rows, key=lambda row: row.public_id != ref)
    return public_id, revision
