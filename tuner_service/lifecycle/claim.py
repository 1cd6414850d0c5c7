"""Claiming: which study's which slots a worker gets next."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal

from sqlalchemy import Connection, Select, bindparam, func, select, update

from tuner_service.lifecycle.claimable import (
    ClaimRequest,
    claimable,
    exclusive_slots,
    fresh_slots,
    handed_back_slots,
)
from tuner_service.lifecycle.counters import LOCKED, CounterChanges
from tuner_service.lifecycle.messages import Claimed, Lease, StudyWork
from tuner_service.reads.eligibility import able_workers
from tuner_service.reads.states import ACTIVE, timed_out, worked_seconds
from tuner_service.storage import Database
from tuner_service.storage.database import CLOCK
from tuner_service.storage.postgres import Row, among, integers, together
from tuner_service.storage.schema import slots, studies, trials

_WAITING: Final = (
    select(slots.c.study_id, func.count().label("waiting"))
    .where(
        among(slots.c.study_id, bindparam("ids")),
        slots.c.state == "open",
        slots.c.trial_id.is_not(None),
    )
    .group_by(slots.c.study_id)
)
_LEASED: Final = (
    update(slots)
    .where(among(slots.c.id, bindparam("ids")), slots.c.state == "open")
    .values(
        state="leased",
        worker_id=bindparam("worker"),
        lease_expires_at=bindparam("expires"),
        fencing_token=slots.c.fencing_token + 1,  # guard: claim-token
    )
    .returning(*slots.c)
)


def claim(
    db: Database,
    *,
    worker_id: str,
    queue: Literal["cpu", "cuda"],
    limit: int,
    lease_seconds: float,
    exclude_exclusive: bool = False,
    exclude_studies: Collection[int] = (),
    fair_share: bool = False,
    loops: int | None = None,
) -> Claimed:
    """Lease up to `limit` open slots: highest priority, then fewest running trials, then oldest.

    Slots are dealt out one by one, so that two studies both progress when many lanes are free.
    `parallel_trials` is never passed: the studies' rows are locked. A slot that must run alone
    comes first and by itself, unless such slots are excluded; of several, in the same order.

    Args:
        fair_share: Take no more of a study than an equal part of what may run at once, by the
            live workers of the queue, so that the first to ask does not leave others idle.
        loops: The most slots of training loops to take; each needs a process of its own. None
            for no bound.
    """
    if limit <= 0:
        return Claimed([], {})
    room = limit if loops is None else min(loops, limit)
    wanted = ClaimRequest(
        queue, worker_id, exclude_exclusive, frozenset(exclude_studies), limit, room
    )
    with db.read() as connection:  # waits for nobody, where there is nothing to claim
        found = claimable(connection, wanted)
    if not found:
        return Claimed([], {})
    with db.write() as connection:
        ids = {"ids": integers(connection, found)}
        # The clock last: waiting for the locks may have taken a while.
        locked, waiting, exclusive, clock = together(
            connection,
            (LOCKED, ids),
            (_WAITING, ids),
            (exclusive_slots(db.dialect), ids),
            (CLOCK[db.dialect], {}),
        )
        now = float(clock[0]["now"])
        rows = {row["id"]: row for row in locked if _open(row, now)}
        shares = _shares(connection, rows, worker_id, queue, now) if fair_share else {}
        offers = _offers(connection, rows, waiting, wanted, shares)
        first = None if exclude_exclusive else _first_exclusive(offers, exclusive)
        chosen = _pick(offers, wanted) if first is None else [first]  # guard: exclusive-first
        leases = _lease_slots(connection, chosen, worker_id=worker_id, expires=now + lease_seconds)
        used = {lease.study_id for lease in leases}
        return Claimed(leases, {i: _work(rows[i], now) for i in used})


@dataclass(frozen=True, slots=True)
class FairShare:
    """How a study's work is spread: what tells a worker that it has too much of it.

    Attributes:
        idle: Live workers that could run the study's trials and have nothing to do.
        part: An equal part, for each live worker, of what may run at once; rounded up.
    """

    idle: int
    part: int


def others(
    connection: Connection, study_id: int, queue: Literal["cpu", "cuda"], now: float
) -> FairShare:
    """Return how a study's work would be spread evenly over the live workers of a queue."""
    idle = able_workers(connection, [study_id], queue, now, idle=True).get(study_id, 0)
    able = able_workers(connection, [study_id], queue, now).get(study_id, 1)
    study = connection.execute(select(studies).where(studies.c.id == study_id)).mappings().first()
    return FairShare(idle if study is not None else 0, _equal_part(study, able) if study else 0)


def _open(row: Row, now: float) -> bool:
    return (
        row["state"] in ACTIVE  # guard: claim-active
        and row["slots_open"] > 0
        and row["slots_leased"] < row["parallel_trials"]
        and not timed_out(row, now)
    )


# -- choosing -------------------------------------------------------------------------------


def _offers(
    connection: Connection,
    rows: Mapping[int, Row],
    waiting: Sequence[Row],
    wanted: ClaimRequest,
    shares: Mapping[int, int],
) -> dict[int, "_StudyQueue"]:
    handed_back = {row["study_id"]: row["waiting"] for row in waiting}
    return {
        i: _StudyQueue(
            connection,
            row,
            waiting=handed_back.get(i, 0),
            limit=min(wanted.limit, shares.get(i, wanted.limit)),
            exclude_exclusive=wanted.exclude_exclusive,
        )
        for i, row in rows.items()
    }


def _first_exclusive(offers: Mapping[int, "_StudyQueue"], exclusive: Sequence[Row]) -> int | None:
    """Return a slot that must run alone, of the first study that has one to give."""
    mine = [row for row in exclusive if row["study_id"] in offers]
    for row in sorted(mine, key=lambda row: (*offers[row["study_id"]].place, row["id"])):
        if offers[row["study_id"]].fits(running=row["trial_id"] is not None):
            return int(row["id"])
    return None


def _pick(offers: Mapping[int, "_StudyQueue"], wanted: ClaimRequest) -> list[int]:
    """Return the ids of slots to lease, in the order in which they are dealt."""
    order = [(*offer.place, i) for i, offer in offers.items()]
    heapify(order)
    chosen: list[int] = []
    loops = wanted.loops
    while order and len(chosen) < wanted.limit:
        study_id = heappop(order)[-1]
        if offers[study_id].is_user_loop and loops <= 0:
            continue
        slot_id = offers[study_id].take()
        if slot_id is not None:
            chosen.append(slot_id)
            loops -= offers[study_id].is_user_loop
            heappush(order, (*offers[study_id].place, study_id))
    return chosen


class _StudyQueue:
    """The slots that a study can give in one claim.

    Slots that were handed back go first: their trials are RUNNING already, and count as such
    whether or not this claim may take them.
    """

    def __init__(
        self,
        connection: Connection,
        study: Row,
        *,
        waiting: int,
        limit: int,
        exclude_exclusive: bool,
    ) -> None:
        self._connection = connection
        self._study = study
        self._exclude_exclusive = exclude_exclusive
        self._room = min(limit, study["parallel_trials"] - study["slots_leased"])
        self._leased = study["slots_leased"]
        self._waiting = waiting
        self._again = deque(self._look(handed_back_slots) if waiting else ())
        self._fresh: deque[int] | None = None

    @property
    def is_user_loop(self) -> bool:
        """Whether its trials are training loops."""
        return "dataset" not in self._study["definition"]

    @property
    def place(self) -> tuple[int, int, float]:
        """Where the study stands in the order of claiming."""
        return (-self._study["priority"], self._leased, self._study["created_at"])

    def fits(self, *, running: bool) -> bool:
        """Return whether `parallel_trials` lets one more slot go, whose trial is RUNNING or new."""
        taken = self._leased if running else self._leased + self._waiting  # guard: claim-place
        return bool(taken < self._study["parallel_trials"])

    def take(self) -> int | None:
        """Return the next slot; None: there is no more to have."""
        if self._leased - self._study["slots_leased"] >= self._room:
            return None
        if self._again and self.fits(running=True):
            self._waiting -= 1
            self._leased += 1
            return self._again.popleft()
        if not self.fits(running=False):
            return None
        if self._fresh is None:
            self._fresh = deque(self._look(fresh_slots))
        if not self._fresh:
            return None
        self._leased += 1
        return self._fresh.popleft()

    def _look(self, slots_of: Callable[..., Select[Any]]) -> list[int]:
        statement = slots_of(
            self._connection.dialect.name, exclude_exclusive=self._exclude_exclusive
        )
        values = {"study": self._study["id"], "most": self._room}
        return list(self._connection.execute(statement, values).scalars())


def _shares(
    connection: Connection,
    studies_by_id: Mapping[int, Row],
    worker_id: str,
    queue: str,
    now: float,
) -> dict[int, int]:
    """Return how many more slots of each study an equal part for each worker leaves this one."""
    able = able_workers(connection, list(studies_by_id), queue, now)
    held = connection.execute(
        select(slots.c.study_id, func.count())
        .where(slots.c.state == "leased", slots.c.worker_id == worker_id)
        .group_by(slots.c.study_id)
    )
    mine = {study_id: leases for study_id, leases in held}
    shares = {}
    for i, study in studies_by_id.items():
        shares[i] = max(0, _equal_part(study, able.get(i, 1)) - mine.get(i, 0))
    return shares


def _equal_part(study: Row, able: int) -> int:
    """Return a worker's part of what may run at once of a study, rounded up."""
    at_once = min(study["parallel_trials"], study["slots_open"] + study["slots_leased"])
    return int(-(-at_once // able))


# -- leasing --------------------------------------------------------------------------------


def _lease_slots(
    connection: Connection,
    ids: Sequence[int],
    *,
    worker_id: str,
    expires: float,
) -> list[Lease]:
    if not ids:
        return []
    values = {"ids": integers(connection, ids), "worker": worker_id, "expires": expires}
    taken = {row["id"]: row for row in connection.execute(_LEASED, values).mappings()}
    tally = CounterChanges()
    for row in taken.values():
        tally.move(row["study_id"], "open", "leased")
    tally.write(connection)
    running = [row["trial_id"] for row in taken.values() if row["trial_id"] is not None]
    numbers = _take_over(connection, running, worker_id)
    return [_lease(taken[i], numbers) for i in ids if i in taken]


def _take_over(connection: Connection, trial_ids: Sequence[int], worker_id: str) -> dict[int, int]:
    """Note who goes on with trials that were handed back; return their numbers."""
    if not trial_ids:
        return {}
    rows = connection.execute(
        update(trials)
        .where(trials.c.trial_id.in_(trial_ids))
        .values(worker=worker_id)
        .returning(trials.c.trial_id, trials.c.number)
    )
    return {trial_id: number for trial_id, number in rows}


def _lease(row: Row, numbers: Mapping[int, int]) -> Lease:
    continued = row["trial_id"] is not None
    return Lease(
        slot_id=row["id"],
        fencing_token=row["fencing_token"],
        study_id=row["study_id"],
        number=row["number"],
        parameters=row["parameters"],
        enqueued=row["enqueued"],
        trial_id=row["trial_id"],
        trial_number=numbers.get(row["trial_id"]),
        checkpoint_step=row["checkpoint_step"],
        attempt=row["attempts"] + (0 if continued else 1),
        exclusive=row["exclusive"],
    )


def _work(row: Row, now: float) -> StudyWork:
    remaining = None
    if row["timeout_seconds"] is not None:
        remaining = max(0.0, row["timeout_seconds"] - worked_seconds(row, now))
    return StudyWork(
        study_id=row["id"],
        public_id=row["public_id"],
        name=row["name"],
        optuna_study_id=row["optuna_study_id"],
        definition=row["definition"],
        remaining_seconds=remaining,
    )
