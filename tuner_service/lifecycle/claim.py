"""Claiming: which study's which slots a worker gets next."""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal

from sqlalchemy import Connection, RowMapping, Select, func, or_, select, update

from tuner_service.lifecycle.ability import (
    able_workers,
    has_modules,
    is_loop,
    on_queue,
    some_worker,
)
from tuner_service.lifecycle.attempts import LONGEST_BACKOFF_SECONDS
from tuner_service.lifecycle.ending import ACTIVE, timed_out, worked_seconds
from tuner_service.lifecycle.messages import Claimed, Lease, StudyWork
from tuner_service.lifecycle.tally import Tally, lock_rows
from tuner_service.storage import Database
from tuner_service.storage.schema import slots, studies, trials

# How many studies a claim looks at and locks: the first in the order of claiming, one for each slot
# that it wants, and some to spare for those that turn out to have none.
MOST_STUDIES: Final = 32
SPARE_STUDIES: Final = 7


def claim(
    db: Database,
    *,
    worker_id: str,
    queue: Literal["cpu", "cuda"],
    limit: int,
    lease_seconds: float,
    exclude_alone: bool = False,
    exclude_studies: Collection[int] = (),
    fair_share: bool = False,
    loops: int | None = None,
) -> Claimed:
    """Lease up to `limit` open slots: highest priority, then fewest running trials, then oldest.

    Slots are dealt out one by one, so that two studies both progress when many lanes are free.
    `parallel_trials` is never passed: the studies' rows are locked. A slot that must run alone
    comes first and by itself, unless such slots are excluded.

    Args:
        fair_share: Take no more of a study than an equal part of what may run at once, by the
            live workers of the queue, so that the first to ask does not leave others idle.
        loops: The most slots of training loops to take; each needs a process of its own. None
            for no bound.
    """
    room = limit if loops is None else min(loops, limit)
    wanted = _Wanted(queue, worker_id, exclude_alone, frozenset(exclude_studies), limit, room)
    if limit <= 0:
        return Claimed([], {})
    with db.read() as connection:  # waits for nobody, where there is nothing to claim
        if not _claimable(connection, wanted, db.now(connection)):
            return Claimed([], {})
    with db.write() as connection:
        rows = lock_rows(connection, _claimable(connection, wanted, db.now(connection)))
        now = db.now(connection)
        rows = {i: row for i, row in rows.items() if _open(row, now)}
        shares = _shares(connection, rows, worker_id, queue, now) if fair_share else {}
        ids = _choose(connection, rows, wanted, limit=limit, shares=shares, now=now)
        leases = _lease_slots(connection, ids, worker_id=worker_id, expires=now + lease_seconds)
        used = {lease.study_id for lease in leases}
        return Claimed(leases, {i: _work(rows[i], now) for i in used})


def claimable_queues(connection: Connection, now: float) -> list[str]:
    """Return the queues that have a slot a live worker could claim now."""
    return [queue for queue in ("cuda", "cpu") if _claimable(connection, _Wanted(queue), now)]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a worker would take; without a name, what any live worker of the queue would."""

    queue: str
    worker_id: str | None = None
    exclude_alone: bool = False
    excluded: frozenset[int] = frozenset()
    limit: int = 1
    loops: int = 1


def _claimable(connection: Connection, wanted: _Wanted, now: float) -> list[int]:
    """Return studies that have a slot ready, the first in the order of claiming."""
    mine = None if wanted.worker_id is None else has_modules(wanted.worker_id)
    ready = _ready(wanted, now).where(slots.c.study_id == studies.c.id).exists()
    return list(
        connection.execute(
            select(studies.c.id)
            .where(
                studies.c.state.in_(ACTIVE),
                on_queue(wanted.queue, now),
                some_worker(wanted.queue, now) if mine is None else mine,
                *(() if wanted.loops > 0 else (~is_loop(),)),
                studies.c.slots_open > 0,
                studies.c.slots_leased < studies.c.parallel_trials,
                studies.c.id.not_in(sorted(wanted.excluded)),
                ready,
            )
            .order_by(
                studies.c.priority.desc(),
                studies.c.slots_leased,
                studies.c.created_at,
                studies.c.id,
            )
            .limit(min(wanted.limit + SPARE_STUDIES, MOST_STUDIES))
        ).scalars()
    )


def _ready(wanted: _Wanted, now: float) -> Select[Any]:
    # A time beyond every back-off is from before the clock was set back.
    waited = or_(slots.c.not_before <= now, slots.c.not_before > now + 2 * LONGEST_BACKOFF_SECONDS)
    query = select(slots.c.id).where(slots.c.state == "open", waited)
    return query.where(slots.c.run_alone.is_(False)) if wanted.exclude_alone else query


def _open(row: RowMapping, now: float) -> bool:
    return (
        row["state"] in ACTIVE
        and row["slots_open"] > 0
        and row["slots_leased"] < row["parallel_trials"]
        and not timed_out(row, now)
    )


# -- choosing -------------------------------------------------------------------------------


def _choose(
    connection: Connection,
    rows: Mapping[int, RowMapping],
    wanted: _Wanted,
    *,
    limit: int,
    shares: Mapping[int, int],
    now: float,
) -> list[int]:
    """Return the ids of slots to lease, of locked studies, in the order in which they are dealt."""
    ready = _ready(wanted, now)
    handed_back = _handed_back(connection, list(rows))
    offers = {
        i: _Offer(connection, row, handed_back[i], ready, min(limit, shares.get(i, limit)))
        for i, row in rows.items()
    }
    if not wanted.exclude_alone:
        alone = _alone(connection, offers, ready)
        if alone is not None:
            return [alone]
    order = [(*offer.place, i) for i, offer in offers.items()]
    heapify(order)
    chosen: list[int] = []
    loops = wanted.loops
    while order and len(chosen) < limit:
        study_id = heappop(order)[-1]
        if offers[study_id].is_loop and loops <= 0:
            continue
        slot_id = offers[study_id].take()
        if slot_id is not None:
            chosen.append(slot_id)
            loops -= offers[study_id].is_loop
            heappush(order, (*offers[study_id].place, study_id))
    return chosen


class _Offer:
    """The slots that a study can give in one claim.

    Slots that were handed back go first: their trials are RUNNING already, and count as such
    whether or not this claim may take them.
    """

    def __init__(
        self,
        connection: Connection,
        study: RowMapping,
        handed_back: Sequence[RowMapping],
        ready: Select[Any],
        limit: int,
    ) -> None:
        self._connection = connection
        self._study = study
        self._ready = ready
        self._room = min(limit, study["parallel_trials"] - study["slots_leased"])
        self._leased = study["slots_leased"]
        self._waiting = len(handed_back)
        self._again = deque(self._among(handed_back))
        self._fresh: deque[int] | None = None

    @property
    def is_loop(self) -> bool:
        """Whether its trials are training loops."""
        return "dataset" not in self._study["definition"]

    @property
    def place(self) -> tuple[int, int, float]:
        """Where the study stands in the order of claiming."""
        return (-self._study["priority"], self._leased, self._study["created_at"])

    def fits(self, *, running: bool) -> bool:
        """Return whether `parallel_trials` lets one more slot go, whose trial is RUNNING or new."""
        taken = self._leased if running else self._leased + self._waiting
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
            self._fresh = deque(self._look(self._ready.where(slots.c.trial_id.is_(None))))
        if not self._fresh:
            return None
        self._leased += 1
        return self._fresh.popleft()

    def _among(self, handed_back: Sequence[RowMapping]) -> list[int]:
        if not handed_back:
            return []
        return self._look(self._ready.where(slots.c.id.in_([row["id"] for row in handed_back])))

    def _look(self, query: Select[Any]) -> list[int]:
        mine = query.where(slots.c.study_id == self._study["id"])
        return list(
            self._connection.execute(mine.order_by(slots.c.number).limit(self._room)).scalars()
        )


def _handed_back(
    connection: Connection, study_ids: Collection[int]
) -> Mapping[int, list[RowMapping]]:
    found: dict[int, list[RowMapping]] = defaultdict(list)
    rows = connection.execute(
        select(slots.c.id, slots.c.study_id).where(
            slots.c.study_id.in_(study_ids),
            slots.c.state == "open",
            slots.c.trial_id.is_not(None),
        )
    ).mappings()
    for row in rows:
        found[row["study_id"]].append(row)
    return found


def _alone(connection: Connection, offers: Mapping[int, _Offer], ready: Select[Any]) -> int | None:
    """Return a slot that must run alone, if there is one to have."""
    rows = connection.execute(
        ready.add_columns(slots.c.study_id, slots.c.trial_id)
        .where(slots.c.study_id.in_(list(offers)), slots.c.run_alone)
        .order_by(slots.c.id)
    )
    for slot_id, study_id, trial_id in rows:
        if offers[study_id].fits(running=trial_id is not None):
            return int(slot_id)
    return None


def _shares(
    connection: Connection,
    studies_by_id: Mapping[int, RowMapping],
    worker_id: str,
    queue: str,
    now: float,
) -> dict[int, int]:
    """Return how many more slots of each study an equal part for each worker leaves this one."""
    able = able_workers(connection, list(studies_by_id), queue, now)
    held = connection.execute(
        select(slots.c.study_id, func.count())
        .where(slots.c.state == "leased", slots.c.owner == worker_id)
        .group_by(slots.c.study_id)
    )
    mine = {study_id: leases for study_id, leases in held}
    shares = {}
    for i, study in studies_by_id.items():
        at_once = min(study["parallel_trials"], study["slots_open"] + study["slots_leased"])
        shares[i] = max(0, -(-at_once // able.get(i, 1)) - mine.get(i, 0))
    return shares


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
    taken = {
        row["id"]: row
        for row in connection.execute(
            update(slots)
            .where(slots.c.id.in_(ids), slots.c.state == "open")
            .values(
                state="leased",
                owner=worker_id,
                lease_expires_at=expires,
                epoch=slots.c.epoch + 1,
            )
            .returning(*slots.c)
        ).mappings()
    }
    tally = Tally()
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


def _lease(row: RowMapping, numbers: Mapping[int, int]) -> Lease:
    continued = row["trial_id"] is not None
    return Lease(
        slot_id=row["id"],
        epoch=row["epoch"],
        study_id=row["study_id"],
        number=row["number"],
        parameters=row["parameters"],
        enqueued=row["enqueued"],
        trial_id=row["trial_id"],
        trial_number=numbers.get(row["trial_id"]),
        checkpoint_step=row["checkpoint_step"],
        attempt=row["attempts"] + (0 if continued else 1),
        alone=row["run_alone"],
    )


def _work(row: RowMapping, now: float) -> StudyWork:
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
