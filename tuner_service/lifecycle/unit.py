"""The unit of work of one flush: its transaction, its locks, and which leases still hold.

Locks are taken in one order by every transaction that moves slots: our studies' rows by id, then
Optuna's studies' rows, then Optuna's trials' rows. Under them nothing moves underneath; each
UPDATE of a slot carries the lease's epoch all the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, select

from tuner_service.lifecycle.messages import Lease, StartedTrial
from tuner_service.lifecycle.outside import adopt, ended_outside
from tuner_service.lifecycle.tally import Tally, lock_rows
from tuner_service.settings import Settings
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.bulk import update_rows
from tuner_service.storage.schema import slots

Key = tuple[int, int]

# Without the JSON, which no part of a flush looks at and which costs more than the rest.
_COLUMNS: Final = [column for column in slots.c if column.name not in ("parameters", "enqueued")]
_SLOTS: Final = select(*_COLUMNS).where(slots.c.id.in_(bindparam("ids", expanding=True)))


class Unit:
    """What the parts of one flush share.

    Attributes:
        studies: By id, the rows of the studies as they were when they were locked.
        held: By lease key, the rows of slots that are leased to this worker in this epoch. One
            leaves when its trial ends or it is handed back.
        done: Keys of leases that ended as this worker said, now or in an earlier flush whose
            answer was lost.
        started: What `Start`s created.
        drop_models: Paths of model files that are outdone.
        hopeless: By study id, why none of its trials can succeed.
    """

    def __init__(
        self,
        db: Database,
        connection: Connection,
        *,
        worker_id: str,
        leases: Sequence[Lease],
        settings: Settings,
    ) -> None:
        self.connection = connection
        self.worker_id = worker_id
        self.settings = settings
        self.tally = Tally()
        self.done: set[Key] = set()
        self.started: dict[Key, StartedTrial] = {}
        self.drop_models: list[str] = []
        self.hopeless: dict[int, str] = {}
        self.studies = lock_rows(connection, (lease.study_id for lease in leases))
        optuna_rows.lock_studies(
            connection, (row["optuna_study_id"] for row in self.studies.values())
        )
        # After the locks: waiting for them may have taken a while.
        self.now = db.now(connection)
        self.held = self._held(leases)
        self._let_go_of_ended()

    def _held(self, leases: Sequence[Lease]) -> dict[Key, RowMapping]:
        keys = {lease.key for lease in leases}
        held = {}
        for row in self._slots(sorted({slot_id for slot_id, _ in keys})):
            key = (row["id"], row["epoch"])
            if key not in keys or row["owner"] != self.worker_id:
                continue
            if row["state"] == "leased":
                held[key] = row
            else:
                # Ended by us already: the answer of that flush was lost.
                self.done.add(key)
        return held

    def _slots(self, ids: Sequence[int]) -> Sequence[RowMapping]:
        return list(self.connection.execute(_SLOTS, {"ids": ids}).mappings())

    def _let_go_of_ended(self) -> None:
        """Give up slots whose trial somebody else has ended: what they wrote stands."""
        ended = ended_outside(self.connection, list(self.held.values()))
        adopt(self.connection, ended, tally=self.tally, now=self.now)
        for row in ended:
            del self.held[row["id"], row["epoch"]]

    def runs(self, lease: Lease, trial_id: int) -> bool:
        """Return whether the lease holds and the trial is the slot's."""
        row = self.held.get(lease.key)
        return row is not None and row["trial_id"] == trial_id

    def release(self, lease: Lease) -> RowMapping:
        """Take a slot out of those held: its lease has ended as this worker said."""
        self.done.add(lease.key)
        return self.held.pop(lease.key)

    def update_slots(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Update leased slots; each row carries `id` and `epoch`, and the same columns."""
        update_rows(self.connection, slots, rows, match=("id", "epoch"), where={"state": "leased"})

    def reread(self, leases: Sequence[Lease]) -> None:
        """Read slots again that this flush has changed: later parts of it look at them."""
        rows = {row["id"]: row for row in self._slots([lease.slot_id for lease in leases])}
        self.held.update({lease.key: rows[lease.slot_id] for lease in leases})
