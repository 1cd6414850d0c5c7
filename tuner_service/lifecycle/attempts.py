"""Attempts that ended without a result: whom to blame, and what becomes of the slot.

blamed          its own trial is to blame: counts against `max_attempts`
repeated        the same exception at the same step as in an earlier attempt, whose parameters and
                seed are the same too: a further one would end so as well
shared death    the trainer died with several lanes on board: nobody is blamed; after the second
                such death the slot runs alone, and two blamed ends then are the last
lost lease      the worker vanished: nobody is blamed. Machines are taken away all the time, so
                it takes many before the slot runs alone, and very many before it fails: a trial
                that takes its whole worker down must not do so for ever
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, select

from tuner_service.lifecycle.counters import CounterChanges
from tuner_service.lifecycle.results import Result, write_results
from tuner_service.lifecycle.storable_text import fit
from tuner_service.reads.views import Failure
from tuner_service.settings import Settings
from tuner_service.storage.bulk import update_rows
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import slots, trials

SHARED_DEATHS_BEFORE_ALONE: Final = 2
BLAMED_ALONE: Final = 2
LOST_LEASES_BEFORE_ALONE: Final = 5
LOST_LEASES: Final = 20
LONGEST_BACKOFF_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """One attempt that ended; `slot` is the slot's row as it was."""

    slot: Row
    failure: Failure
    blamed: bool
    shared_death: bool
    retry: bool
    checkpoint_step: int | None
    lost_lease: bool = False


def end_attempts(
    connection: Connection,
    ended: Sequence[EndedAttempt],
    *,
    studies: Mapping[int, Row],
    tally: CounterChanges,
    settings: Settings,
    now: float,
) -> None:
    """Make the trials FAIL and open, fail or cancel their slots, in the caller's transaction."""
    if not ended:
        return
    write_results(
        connection,
        [
            Result(e.slot["trial_id"], "FAIL", failure=e.failure)
            for e in ended
            if e.slot["trial_id"] is not None  # guard: reaped-fails
        ],
        now=now,
    )
    ended = _without_vain_retries(connection, ended)
    rows = []
    for attempt in ended:
        row = _next_slot(attempt, studies[attempt.slot["study_id"]], settings, now)
        rows.append(row)
        tally.move(attempt.slot["study_id"], attempt.slot["state"], row["state"])
    update_rows(connection, slots, rows, match=("id", "fencing_token"))


def _without_vain_retries(
    connection: Connection, ended: Sequence[EndedAttempt]
) -> Sequence[EndedAttempt]:
    """Take the retry from those that ended with the exception of an earlier attempt."""
    # Without a traceback it was a process that died, perhaps for want of the machine's memory.
    suspects = [
        e.slot
        for e in ended
        if e.retry and e.failure.traceback is not None and e.slot["blamed_attempts"] > 0
    ]
    if not suspects:
        return ended
    earlier = connection.execute(
        select(trials.c.slot_id, trials.c.failure_message, trials.c.record).where(
            trials.c.slot_id.in_([slot["id"] for slot in suspects]),
            trials.c.trial_id.not_in([slot["trial_id"] for slot in suspects]),
            trials.c.failure_traceback.is_not(None),
        )
    )
    seen = {
        (slot_id, message, (record or {}).get("failure_step"))
        for slot_id, message, record in earlier
    }
    return [
        replace(e, retry=False)
        if (e.slot["id"], fit(e.failure.message), e.failure.step) in seen
        else e
        for e in ended
    ]


def backoff_seconds(deaths: int, base: float) -> float:
    """Return how long a slot waits after its n-th death: doubling from `base`."""
    return float(min(base * 2 ** min(max(deaths - 1, 0), 30), LONGEST_BACKOFF_SECONDS))


def _next_slot(attempt: EndedAttempt, study: Row, settings: Settings, now: float) -> dict[str, Any]:
    slot = attempt.slot
    blamed = slot["blamed_attempts"] + attempt.blamed
    shared = slot["shared_deaths"] + attempt.shared_death
    lost = slot["lost_leases"] + attempt.lost_lease
    state = _next_state(attempt, study, settings, blamed=blamed, lost=lost)
    ended = state != "open"
    step = attempt.checkpoint_step
    return {
        "id": slot["id"],
        "fencing_token": slot["fencing_token"],
        "state": state,
        "worker_id": None,
        "lease_expires_at": None,
        "trial_id": slot["trial_id"] if ended else None,
        "blamed_attempts": blamed,
        "shared_deaths": shared,
        "lost_leases": lost,
        "exclusive": slot["exclusive"]
        or shared >= SHARED_DEATHS_BEFORE_ALONE  # guard: shared-alone
        or lost >= LOST_LEASES_BEFORE_ALONE,
        "checkpoint_step": slot["checkpoint_step"] if step is None else step,
        "not_before": now + backoff_seconds(blamed + shared + lost, settings.retry_backoff_seconds),
        "failure_kind": attempt.failure.kind if ended else None,
        "failure_message": fit(attempt.failure.message) if ended else None,
    }


def _next_state(
    attempt: EndedAttempt, study: Row, settings: Settings, *, blamed: int, lost: int
) -> str:
    if study["state"] in ("cancelled", "failed"):
        return "cancelled"
    alone = attempt.slot["exclusive"]
    cap = min(settings.max_attempts, BLAMED_ALONE) if alone else None  # guard: alone-cap
    if (
        not attempt.retry
        or blamed >= (cap or settings.max_attempts)  # guard: blamed-cap
        or lost >= LOST_LEASES  # guard: lost-leases
    ):
        return "failed"
    return "open"
