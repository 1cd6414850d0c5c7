"""The counters of `tuner_studies`, moved by the transactions that move the slots."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, bindparam, func, select, update

from tuner_service.errors import NotFoundError
from tuner_service.reads.lookup import find_study
from tuner_service.storage.database import Database
from tuner_service.storage.postgres import DEFERRED, Row, among, integers
from tuner_service.storage.schema import GONE, studies

COUNTED = ("open", "leased", "done", "failed", "cancelled")

LOCKED: Final = (
    select(studies)
    .where(among(studies.c.id, bindparam("ids")))
    .order_by(studies.c.id)
    .with_for_update()  # guard: lock-studies
)
_TOUCHED: Final = (
    update(studies).where(studies.c.id == bindparam("b_id")).values(revision=studies.c.revision + 1)
)


def lock_rows(connection: Connection, study_ids: Iterable[int]) -> dict[int, Row]:
    """Lock studies, in the order of their ids so that two transactions cannot wait in a circle."""
    rows = connection.execute(LOCKED, {"ids": integers(connection, study_ids)}).mappings()
    return {row["id"]: row for row in rows}


class CounterChanges:
    """Changes of one transaction, by study; `write` adds them and raises the revisions."""

    def __init__(self) -> None:
        self._changes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def move(self, study_id: int, before: str, after: str, count: int = 1) -> None:
        """Count slots that went from one state to another."""
        self._changes[study_id][f"slots_{before}"] -= count
        self._changes[study_id][f"slots_{after}"] += count

    def add(self, study_id: int, column: str, count: int = 1) -> None:
        """Raise another counter."""
        self._changes[study_id][column] += count

    def touch(self, study_id: int) -> None:
        """Raise the study's revision, whatever else changes."""
        self._changes[study_id]

    def write(self, connection: Connection) -> None:
        """Write every change; the rows must be locked."""
        for study_id, changes in sorted(self._changes.items()):
            values = {name: studies.c[name] + count for name, count in changes.items() if count}
            statement = _TOUCHED.values(values) if values else _TOUCHED
            connection.execute(statement, {"b_id": study_id}, execution_options=DEFERRED)

    def moved(self, row: Row) -> Row:
        """Return a study's row, as it was when it was locked, with the counters as they are now."""
        changes = self._changes.get(row["id"], {})
        return {**row, **{name: row[name] + count for name, count in changes.items()}}


def study_counts(db: Database) -> dict[str, tuple[int, int]]:
    """Return, by state, how many studies there are, and how many open slots they have together."""
    open_slots = func.coalesce(func.sum(studies.c.slots_open), 0)
    query = select(studies.c.state, func.count(), open_slots)
    with db.read() as connection:
        rows = connection.execute(
            query.where(studies.c.state != GONE).group_by(studies.c.state).order_by(studies.c.state)
        )
        return {state: (count, int(slots)) for state, count, slots in rows}


def lock_study(connection: Connection, ref: str) -> Row:
    """Lock a study, and return its row as it then stands.

    Raises:
        NotFoundError: There is none, or it was deleted while we waited for the lock.
    """
    study_id = find_study(connection, ref)["id"]
    row = lock_rows(connection, [study_id]).get(study_id)
    if row is None or row["state"] == GONE:
        raise NotFoundError(f"there is no study with the id or name {ref!r}")
    return row
