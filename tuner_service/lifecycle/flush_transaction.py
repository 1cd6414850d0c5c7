"""The unit of work of one flush: its transaction, its locks, and which leases still hold.

Locks are taken in one order by every transaction that moves slots: our studies' rows by id, then
Optuna's studies' rows, then Optuna's trials' rows. Under them nothing moves underneath; each
UPDATE of a slot carries the lease's fencing token all the same.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from sqlalchemy import Connection, String, bindparam, cast, select

from tuner_service.lifecycle.counters import LOCKED, CounterChanges
from tuner_service.lifecycle.foreign_trials import ENDED, adopt
from tuner_service.lifecycle.messages import Lease, StartedTrial
from tuner_service.settings import Settings
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.bulk import update_rows
from tuner_service.storage.database import CLOCK
from tuner_service.storage.postgres import Row, among, integers, together
from tuner_service.storage.schema import slots, studies

Key = tuple[int, int]

# Without the JSON, which no part of a flush looks at and which costs more than the rest.
_COLUMNS: Final = [column for column in slots.c if column.name not in ("parameters", "enqueued")]
_SLOTS: Final = select(*_COLUMNS).where(among(slots.c.id, bindparam("ids")))
_OPTUNA_STUDIES: Final = (
    select(optuna_rows.STUDIES.c.study_id)
    .where(
        optuna_rows.STUDIES.c.study_id.in_(
            select(studies.c.optuna_study_id).where(among(studies.c.id, bindparam("ids")))
        )
    )
    .order_by(optuna_rows.STUDIES.c.study_id)
    .with_for_update()  # guard: lock-optuna-study
)
_TRIALS: Final = (
    select(optuna_rows.TRIALS.c.trial_id, cast(optuna_rows.TRIALS.c.state, String).label("state"))
    .where(
        optuna_rows.TRIALS.c.trial_id.in_(
            select(slots.c.trial_id).where(among(slots.c.id, bindparam("ids")))
        )
    )
    .order_by(optuna_rows.TRIALS.c.trial_id)
    .with_for_update()  # guard: lock-optuna-trials
)


class FlushTransaction:
    """What the parts of one flush share.

    Attributes:
        studies: By id, the rows of the studies as they were when they were locked; the tally
            has the changes of their counters.
        held: By lease key, the rows of slots that are leased to this worker under this fencing
            token, as they stand. One leaves when its trial ends or it is handed back.
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
        self.tally = CounterChanges()
        self.done: set[Key] = set()
        self.started: dict[Key, StartedTrial] = {}
        self.drop_models: list[str] = []
        self.nothing_trains: dict[int, str] = {}
        study_ids = integers(connection, {lease.study_id for lease in leases})
        slot_ids = integers(connection, {lease.slot_id for lease in leases})
        # The clock after the locks: waiting for them may have taken a while.
        rows, _, slot_rows, trials, clock = together(
            connection,
            (LOCKED, {"ids": study_ids}),
            (_OPTUNA_STUDIES, {"ids": study_ids}),
            (_SLOTS, {"ids": slot_ids}),
            (_TRIALS, {"ids": slot_ids}),
            (CLOCK[db.dialect], {}),
        )
        self.studies = {row["id"]: row for row in rows}
        self.now = float(clock[0]["now"])
        self.held = self._held(leases, slot_rows)
        ended = {row["trial_id"] for row in trials if row["state"] in ENDED}  # guard: ended-stands
        self._let_go_of_ended(ended)

    def _held(self, leases: Sequence[Lease], rows: Sequence[Row]) -> dict[Key, Row]:
        keys = {lease.key for lease in leases}
        held = {}
        for row in rows:
            key = (row["id"], row["fencing_token"])  # guard: lease-token
            if key not in keys or row["worker_id"] != self.worker_id:  # guard: lease-worker
                continue
            if row["state"] == "leased":  # guard: result-once
                held[key] = row
            else:
                # Ended by us already: the answer of that flush was lost.
                self.done.add(key)
        return held

    def _let_go_of_ended(self, trial_ids: Set[int]) -> None:
        """Give up slots whose trial somebody else has ended: what they wrote stands."""
        ended = [row for row in self.held.values() if row["trial_id"] in trial_ids]
        adopt(self.connection, ended, tally=self.tally, now=self.now)
        for row in ended:
            del self.held[row["id"], row["fencing_token"]]

    def runs(self, lease: Lease, trial_id: int) -> bool:
        """Return whether the lease holds and the trial is the slot's."""
        row = self.held.get(lease.key)
        return row is not None and row["trial_id"] == trial_id  # guard: lease-of-trial

    def release(self, lease: Lease) -> Row:
        """Take a slot out of those held: its lease has ended as this worker said."""
        self.done.add(lease.key)
        return self.held.pop(lease.key)

    def update_slots(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Update leased slots; each row carries `id` and `fencing_token`, and the same columns."""
        update_rows(
            self.connection,
            slots,
            rows,
            match=("id", "fencing_token"),  # guard: update-token
            where={"state": "leased"},  # guard: update-leased
        )
        for row in rows:
            key = (row["id"], row["fencing_token"])
            if key in self.held:
                self.held[key] = {**self.held[key], **row}
