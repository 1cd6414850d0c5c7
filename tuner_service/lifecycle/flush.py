"""Everything a worker has to say, written in one transaction.

A batch costs some twenty statements, whatever it holds. It may be sent again after an answer was
lost: what is done already is answered as done.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tuner_service.lifecycle.attempts import EndedAttempt, end_attempts
from tuner_service.lifecycle.best import keep_best
from tuner_service.lifecycle.counters import lock_rows
from tuner_service.lifecycle.ending import may_succeed, settle
from tuner_service.lifecycle.flush_transaction import FlushTransaction, Key
from tuner_service.lifecycle.messages import Batch, Fail, Finish, Flushed, HandBack, Lease, Report
from tuner_service.lifecycle.results import result_of, write_results
from tuner_service.lifecycle.starts import start_trials
from tuner_service.lifecycle.storable_text import fit
from tuner_service.reads.states import timed_out
from tuner_service.reads.views import Failure
from tuner_service.settings import Settings
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.bulk import insert_rows
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import epochs

FRESH: Final = 0.8  # a lease that has more than this share of its time left is not renewed


def flush(
    db: Database, *, worker_id: str, batch: Batch, lease_seconds: float, settings: Settings
) -> Flushed:
    """Write a batch in one transaction and say what is no longer this worker's.

    Raises:
        UnavailableError: The database cannot be reached; nothing or everything was written, and
            the same batch may be sent again.
    """
    leases = {lease.key: lease for lease in _leases(batch)}
    if not leases:
        return Flushed({}, set(), {}, [])
    with db.write() as connection:
        unit = FlushTransaction(
            db, connection, worker_id=worker_id, leases=list(leases.values()), settings=settings
        )
        start_trials(unit, batch.starts)
        _report(unit, batch.reports)
        _finish(unit, batch.finishes)
        _fail(unit, batch.fails)
        _hand_back(unit, batch.hand_backs)
        _note_checkpoints(unit, batch.checkpoints)
        _renew(unit, lease_seconds)
        return _close(unit, leases)


def _leases(batch: Batch) -> Iterable[Lease]:
    for items in (batch.starts, batch.reports, batch.finishes, batch.fails, batch.hand_backs):
        for item in items:
            yield item.lease
    yield from batch.renew
    for lease, _ in batch.checkpoints:
        yield lease


def _report(unit: FlushTransaction, reports: Sequence[Report]) -> None:
    """Write intermediate values and per-epoch records.

    A trial that goes on from an earlier checkpoint says some of its steps again: the later word
    stands, so that the curve is of one piece.
    """
    mine = [r for r in reports if unit.runs(r.lease, r.trial_id)]
    if not mine:
        return
    optuna_rows.report_values(
        unit.connection, [(r.trial_id, r.step, r.value) for r in mine if r.value is not None]
    )
    insert_rows(
        unit.connection,
        epochs,
        [{"trial_id": r.trial_id, "step": r.step, "record": r.record} for r in mine],
        replace=("trial_id", "step"),
    )
    for study_id in {r.lease.study_id for r in mine}:
        unit.tally.touch(study_id)


def _finish(unit: FlushTransaction, finishes: Sequence[Finish]) -> None:
    mine = [f for f in finishes if unit.runs(f.lease, f.trial_id)]
    if not mine:
        return
    written = write_results(unit.connection, [result_of(f) for f in mine], now=unit.now)
    mine = [f for f in mine if f.trial_id in written]
    unit.update_slots(
        [
            {"id": f.lease.slot_id, "fencing_token": f.lease.fencing_token, "state": "done"}
            for f in mine
        ]
    )
    for f in mine:
        row = unit.release(f.lease)
        unit.tally.move(row["study_id"], "leased", "done")
        if written[f.trial_id].state == "PRUNED":
            unit.tally.add(row["study_id"], "trials_pruned")
    for study_id in {f.lease.study_id for f in mine}:
        ended = [written[f.trial_id] for f in mine if f.lease.study_id == study_id]
        unit.drop_models += keep_best(unit.connection, unit.studies[study_id], ended)


def _fail(unit: FlushTransaction, fails: Sequence[Fail]) -> None:
    """End attempts without a result; their slots open again, or fail."""
    _note_hopeless(unit, fails)
    ended = [
        EndedAttempt(
            slot=unit.release(f.lease),
            failure=f.failure,
            blamed=f.blamed,
            shared_death=f.shared_death,
            retry=f.retry and not _ends_study(unit, f),
            checkpoint_step=f.checkpoint_step,
        )
        for f in fails
        if f.lease.key in unit.held
    ]
    end_attempts(
        unit.connection,
        ended,
        studies=unit.studies,
        tally=unit.tally,
        settings=unit.settings,
        now=unit.now,
    )


def _note_hopeless(unit: FlushTransaction, fails: Sequence[Fail]) -> None:
    """Find the studies that these failures end: those of which nothing else is to be expected."""
    said = {
        f.lease.study_id: f.nothing_trains
        for f in fails
        if f.nothing_trains is not None and f.lease.key in unit.held  # guard: lost-word
    }
    for study_id, why in said.items():
        now = unit.tally.moved(unit.studies[study_id])
        if not may_succeed(unit.connection, now, worker_id=unit.worker_id):
            unit.nothing_trains[study_id] = fit(why)


def _ends_study(unit: FlushTransaction, fail: Fail) -> bool:
    return fail.nothing_trains is not None and fail.lease.study_id in unit.nothing_trains


def _hand_back(unit: FlushTransaction, hand_backs: Sequence[HandBack]) -> None:
    """Open slots again, their trials still RUNNING; those of a cancelled study end instead."""
    over, opened = [], []
    for h in hand_backs:
        row = unit.held.get(h.lease.key)
        if row is None:
            continue
        study = unit.studies[row["study_id"]]
        if study["state"] in ("cancelled", "failed"):  # guard: hand-back-cancelled
            failure = Failure(kind="cancelled", message="The study was cancelled.")
            over.append(Fail(h.lease, row["trial_id"], failure, blamed=False, retry=False))
        else:
            opened.append((unit.release(h.lease), h.checkpoint_step))
    _fail(unit, over)
    unit.update_slots(
        [
            {
                "id": row["id"],
                "fencing_token": row["fencing_token"],
                "state": "open",
                "worker_id": None,
                "lease_expires_at": None,
                "checkpoint_step": row["checkpoint_step"] if step is None else step,
                "not_before": 0.0,  # guard: handed-back-now
            }
            for row, step in opened
        ]
    )
    for row, _ in opened:
        unit.tally.move(row["study_id"], "leased", "open")


def _note_checkpoints(unit: FlushTransaction, checkpoints: Sequence[tuple[Lease, int]]) -> None:
    unit.update_slots(
        [
            {"id": lease.slot_id, "fencing_token": lease.fencing_token, "checkpoint_step": step}
            for lease, step in checkpoints
            if lease.key in unit.held
        ]
    )


def _renew(unit: FlushTransaction, lease_seconds: float) -> None:
    """Renew the leases of the batch that are still held, but for those that are fresh.

    A flush comes with every epoch of a short trial; to renew each time would cost as much as the
    rest of it.
    """
    expires = unit.now + lease_seconds
    fresh = unit.now + FRESH * lease_seconds
    unit.update_slots(
        [
            {"id": row["id"], "fencing_token": row["fencing_token"], "lease_expires_at": expires}
            for row in unit.held.values()  # guard: flush-renews
            if not fresh < row["lease_expires_at"] <= expires
        ]
    )


def _close(unit: FlushTransaction, leases: Mapping[Key, Lease]) -> Flushed:
    """Write the counters, end studies that are through, and answer."""
    unit.tally.write(unit.connection)
    studies = {study_id: unit.tally.moved(row) for study_id, row in unit.studies.items()}
    why = unit.nothing_trains
    if settle(
        unit.connection, studies.values(), now=unit.now, nothing_trains=why
    ):  # guard: flush-ends
        studies = lock_rows(unit.connection, studies)  # as they stand now
    reasons = {study_id: _stop_reason(row, unit.now) for study_id, row in studies.items()}
    stop = {
        key: reason
        for key, row in unit.held.items()
        if (reason := reasons[leases[key].study_id] or _asked(row)) is not None
    }
    lost = set(leases) - set(unit.held) - unit.done
    return Flushed(unit.started, lost, stop, unit.drop_models)


def _asked(slot: Row) -> str | None:
    """Return whether somebody stops the slot's trial; an earlier attempt's stop is none of this."""
    asked = slot["stop_trial_id"]
    return "asked" if asked is not None and asked == slot["trial_id"] else None


def _stop_reason(study: Row, now: float) -> str | None:
    """Return why the running trials of a study shall stop; None: they shall not."""
    if study["state"] in ("cancelled", "failed"):  # guard: told-cancelled
        return "cancelled"
    if timed_out(study, now):
        return "timeout"
    return "paused" if study["state"] == "paused" else None
