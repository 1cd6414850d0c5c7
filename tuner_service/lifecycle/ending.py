"""How studies end: out of slots, out of time, out of patience with failures, or cancelled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, func, select, update

from tuner_service.lifecycle.counters import CounterChanges
from tuner_service.lifecycle.foreign_trials import adopt, ended_outside, without
from tuner_service.lifecycle.results import INFEASIBLE, Result, write_results
from tuner_service.reads.states import ACTIVE, TIMEOUT, paused_seconds, timed_out
from tuner_service.reads.views import Failure
from tuner_service.storage import optuna_rows
from tuner_service.storage.postgres import Row
from tuner_service.storage.schema import epochs, slots, studies, trials, workers

_SAID: Final = {
    "diverged": "diverged (lower the learning rate, or clip the gradients)",
    "out_of_memory": "ran out of memory (lower batch_size or the size of the network)",
}


def settle(
    connection: Connection,
    rows: Iterable[Row],
    *,
    now: float,
    nothing_trains: Mapping[int, str] | None = None,
) -> list[str]:
    """End those studies that are through; return their public ids.

    Args:
        rows: The studies' rows, locked, as they stand now.
        hopeless: By study id, why none of its trials can succeed.
    """
    ended = []
    for study in rows:
        if study["state"] not in ACTIVE and study["state"] != "paused":  # guard: paused-ends
            continue
        why = (nothing_trains or {}).get(study["id"])
        state, reason = _end_of(connection, study, now) if why is None else ("failed", why)
        if state is not None:
            end_study(connection, study, state, reason, now=now)
            ended.append(str(study["public_id"]))
    return ended


def may_succeed(connection: Connection, study: Row, *, worker_id: str) -> bool:
    """Return whether a trial of the study has ended well or reported, or may do so elsewhere.

    What cannot be trained on one worker may be trained on another machine that has a slot of the
    study: on a larger device, or with a package that is missing here.
    """
    if study["slots_done"] > 0:
        return True
    me = workers.alias()
    alike = select(workers.c.id).where(
        workers.c.host == me.c.host, workers.c.device == me.c.device, me.c.id == worker_id
    )
    elsewhere = select(slots.c.id).where(
        slots.c.study_id == study["id"],
        slots.c.state == "leased",
        slots.c.worker_id != worker_id,
        slots.c.worker_id.not_in(alike),
    )
    if connection.execute(elsewhere.limit(1)).first() is not None:
        return True
    mine = select(trials.c.trial_id).where(trials.c.study_id == study["id"])
    found = connection.execute(select(epochs.c.step).where(epochs.c.trial_id.in_(mine)).limit(1))
    return found.first() is not None


def end_study(
    connection: Connection, study: Row, state: str, reason: str | None, *, now: float
) -> None:
    """Move a study to a final state; nothing stays open.

    Trials that were handed back and wait for a worker end too: those of a study whose time is up
    keep what they have, as PRUNED; the others FAIL as `cancelled`.
    """
    tally = CounterChanges()
    waiting = _handed_back(connection, study)  # guard: handed-back-end
    adopted = ended_outside(connection, waiting)
    adopt(connection, adopted, tally=tally, now=now)
    waiting = without(waiting, adopted)
    if state == "completed":
        _prune(connection, waiting, tally=tally, now=now)
    else:
        _throw_away(connection, waiting, now=now)
    cancelled = connection.execute(
        update(slots)
        .where(
            slots.c.study_id == study["id"],
            slots.c.state == "open",  # guard: cancel-closes
        )
        .values(state="cancelled", fencing_token=slots.c.fencing_token + 1)
    ).rowcount
    tally.move(study["id"], "open", "cancelled", cancelled)
    tally.write(connection)
    _end_enqueued(connection, study, now=now)
    connection.execute(
        update(studies)
        .where(studies.c.id == study["id"], studies.c.state == study["state"])
        .values(
            state=state,
            reason=reason,
            finished_at=now,
            paused_at=None,
            paused_seconds=paused_seconds(study, now),
        )
    )


def _handed_back(connection: Connection, study: Row) -> list[Row]:
    return list(
        connection.execute(
            select(slots).where(
                slots.c.study_id == study["id"],
                slots.c.state == "open",
                slots.c.trial_id.is_not(None),
            )
        ).mappings()
    )


def _prune(
    connection: Connection, waiting: Sequence[Row], *, tally: CounterChanges, now: float
) -> None:
    if not waiting:
        return
    failure = Failure(kind="timeout", message="The study's timeout passed before it was continued.")
    results = [Result(slot["trial_id"], "PRUNED", failure=failure) for slot in waiting]
    write_results(connection, results, now=now)
    connection.execute(
        update(slots)
        .where(slots.c.id.in_([slot["id"] for slot in waiting]), slots.c.state == "open")
        .values(state="done", fencing_token=slots.c.fencing_token + 1)
    )
    for slot in waiting:
        tally.move(slot["study_id"], "open", "done")
        tally.add(slot["study_id"], "trials_pruned")


def _end_enqueued(connection: Connection, study: Row, *, now: float) -> None:
    """End the trials that another Optuna program enqueued, which no worker takes up.

    They would be WAITING for ever, and a sampler of Optuna counts such trials as under way.
    """
    ended = optuna_rows.end_waiting(connection, study["optuna_study_id"], now=now)
    said = "no worker takes up what enqueue_trial adds; name points under `enqueue` of a definition"
    attrs = [(trial_id, "failure_message", said) for trial_id in ended]
    optuna_rows.set_attrs(connection, optuna_rows.USER_ATTRS, attrs)


def _throw_away(connection: Connection, waiting: Sequence[Row], *, now: float) -> None:
    failure = Failure(kind="cancelled", message="The study ended before it was continued.")
    results = [Result(slot["trial_id"], "FAIL", failure=failure) for slot in waiting]
    write_results(connection, results, now=now)


def _end_of(connection: Connection, study: Row, now: float) -> tuple[str | None, str | None]:
    if study["slots_failed"] > 0:
        unreadable = _data_failure(connection, study)
        if unreadable is not None:
            return "failed", f"the data cannot be used: {unreadable}"
    if study["slots_failed"] > study["max_failures"]:
        return "failed", _failures(connection, study)
    if study["slots_leased"] > 0:
        return None, None
    if timed_out(study, now):
        return "completed", TIMEOUT
    if study["slots_open"] > 0:
        return None, None
    return "completed", _no_result(connection, study)


def _no_result(connection: Connection, study: Row) -> str | None:
    """Return that no trial has a result, and why, if all were infeasible."""
    if study["slots_done"] == 0 or study["trials_pruned"] < study["slots_done"]:
        return None
    kinds = connection.execute(
        select(trials.c.failure_kind, func.count())
        .where(
            trials.c.study_id == study["id"],
            trials.c.state == "PRUNED",
            trials.c.failure_kind.in_(INFEASIBLE),
        )
        .group_by(trials.c.failure_kind)
        .order_by(func.count().desc(), trials.c.failure_kind)
    ).all()
    if sum(count for _, count in kinds) < study["slots_done"]:
        return None
    said = ", ".join(f"{count} {_SAID[kind]}" for kind, count in kinds)
    return f"no trial has a result: {said}"


def _data_failure(connection: Connection, study: Row) -> str | None:
    """Return why the data cannot be used, if a trial found that: no other trial could, then."""
    return connection.execute(
        select(slots.c.failure_message)
        .where(
            slots.c.study_id == study["id"],
            slots.c.state == "failed",
            slots.c.failure_kind == "data",
        )
        .limit(1)
    ).scalar()


def _failures(connection: Connection, study: Row) -> str:
    kinds = connection.execute(
        select(slots.c.failure_kind, func.count())
        .where(slots.c.study_id == study["id"], slots.c.state == "failed")
        .group_by(slots.c.failure_kind)
        .order_by(func.count().desc(), slots.c.failure_kind)
    ).all()
    summary = ", ".join(f"{count} × {kind}" for kind, count in kinds)
    return (
        f"{study['slots_failed']} trials failed ({summary}), "
        f"more than max_failures={study['max_failures']} allows"
    )
