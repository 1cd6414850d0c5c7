"""The invariants of the lifecycle, read from the database at any moment.

`check_invariants` holds I1, I2, I3, I5 and I9 against what the tables say now. I4, I6, I7 and I8
are about what happens over time: `Watch` remembers enough to check I2 and I7 from one look to the
next; the rest are the tests' own. A study that was deleted, and whose rows are going, has no budget
left to keep (I3, I9), and nobody who runs its trials (I5).
"""

from collections import Counter
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, and_, func, or_, select

from tuner_service.definition import StudyDefinition, space_of
from tuner_service.definition.grid import grid_points
from tuner_service.settings import Settings
from tuner_service.storage import Database
from tuner_service.storage.optuna_rows import INTERMEDIATE, TRIALS, VALUES, read_value
from tuner_service.storage.schema import GONE, epochs, slots, studies, trials

RESULTS = (TrialState.COMPLETE, TrialState.PRUNED)
_THERE = select(studies).where(studies.c.state != GONE)
SLOT_STATES = ("open", "leased", "done", "failed", "cancelled")


def check_invariants(db: Database, *, settings: Settings, grace_seconds: float = 60.0) -> None:
    """Raise AssertionError with the invariant's name when one does not hold.

    Args:
        grace_seconds: How long after a lease ran out its trial may still be RUNNING.
    """
    with db.read() as connection:
        _one_result_per_slot(connection)
        _slots_are_where_their_trials_are(connection)
        _both_tables_agree(connection)
        _budgets_are_exact(connection, settings)
        _running_trials_are_held(connection, db.now(connection) - grace_seconds)
        _parallel_trials_is_kept(connection)
        _numbers_are_dense(connection)
        _nothing_without_a_study(connection)
        _ended_studies_have_ended(connection)
        _grids_are_covered(connection)


def _one_result_per_slot(connection: Connection) -> None:
    rows = connection.execute(
        select(trials.c.slot_id, func.count())
        .join(TRIALS, TRIALS.c.trial_id == trials.c.trial_id)
        .where(TRIALS.c.state.in_(RESULTS))
        .group_by(trials.c.slot_id)
        .having(func.count() > 1)
    ).all()
    assert not rows, f"I1: slots with more than one result: {rows}"


def _slots_are_where_their_trials_are(connection: Connection) -> None:
    rows = connection.execute(
        select(slots.c.id, slots.c.state, slots.c.trial_id, TRIALS.c.trial_id, TRIALS.c.state)
        .join(trials, trials.c.slot_id == slots.c.id)
        .join(TRIALS, TRIALS.c.trial_id == trials.c.trial_id)
    ).all()
    for slot, state, current, trial, its_state in rows:
        if its_state in RESULTS:
            assert (state, current) == ("done", trial), f"I2: slot {slot} {state}, {its_state.name}"
        elif state == "done":
            assert its_state is TrialState.FAIL, f"I2: slot {slot} is done, trial {trial} runs"
            assert current != trial, f"I2: slot {slot} is done with the FAIL trial {trial}"
    lonely = connection.execute(
        select(slots.c.id).where(slots.c.state == "done", slots.c.trial_id.is_(None))
    ).all()
    assert not lonely, f"I2: done without a trial: {lonely}"


def _both_tables_agree(connection: Connection) -> None:
    rows = connection.execute(
        select(
            trials.c.trial_id,
            trials.c.state,
            TRIALS.c.state,
            trials.c.number,
            TRIALS.c.number,
            trials.c.value,
            VALUES.c.value,
            VALUES.c.value_type,
            TRIALS.c.datetime_complete,
        )
        .outerjoin(TRIALS, TRIALS.c.trial_id == trials.c.trial_id)
        .outerjoin(VALUES, and_(VALUES.c.trial_id == trials.c.trial_id, VALUES.c.objective == 0))
    ).all()
    for trial, ours, theirs, number, their_number, value, their_value, kind, ended in rows:
        assert theirs is not None, f"I2: trial {trial} is not in Optuna's tables"
        assert (ours, number) == (theirs.name, their_number), f"I2: trial {trial}: {ours} {theirs}"
        known = None if kind is None else read_value(their_value, kind)
        assert value == known, f"I2: trial {trial}: our value {value}, Optuna's {known}"
        assert (ended is not None) == theirs.is_finished(), f"I2: trial {trial}: ended {ended}"


def _budgets_are_exact(connection: Connection, settings: Settings) -> None:
    for study in connection.execute(_THERE).mappings():
        states: Counter[str] = Counter(
            connection.execute(
                select(slots.c.state).where(slots.c.study_id == study["id"])
            ).scalars()
        )
        name = study["name"]
        assert states.total() == study["budget_trials"], f"I3: {name}: {states}"
        for state in SLOT_STATES:
            counted = study[f"slots_{state}"]
            assert states[state] == counted, f"I3: {name}: {state}: {states}, counted {counted}"
        pruned = connection.execute(
            select(func.count())
            .select_from(trials)
            .where(trials.c.study_id == study["id"], trials.c.state == "PRUNED")
        ).scalar_one()
        assert pruned == study["trials_pruned"], f"I3: {name}: {pruned} pruned"
    most = connection.execute(select(func.max(slots.c.blamed_attempts))).scalar() or 0
    assert most <= settings.max_attempts, f"I3: {most} blamed attempts"
    wrong = connection.execute(
        select(slots.c.id, slots.c.attempts, func.count(trials.c.trial_id))
        .join(studies, studies.c.id == slots.c.study_id)
        .outerjoin(trials, trials.c.slot_id == slots.c.id)
        .where(studies.c.state != GONE)
        .group_by(slots.c.id, slots.c.attempts)
        .having(func.count(trials.c.trial_id) != slots.c.attempts)
    ).all()
    assert not wrong, f"I3: attempts that are not trials: {wrong}"


def _running_trials_are_held(connection: Connection, horizon: float) -> None:
    rows = connection.execute(
        select(TRIALS.c.trial_id, slots.c.id, slots.c.state, slots.c.lease_expires_at)
        .join(trials, trials.c.trial_id == TRIALS.c.trial_id)
        .join(slots, slots.c.id == trials.c.slot_id)
        .join(studies, studies.c.id == slots.c.study_id)
        .where(TRIALS.c.state == TrialState.RUNNING, studies.c.state != GONE)
        .where(
            or_(
                slots.c.trial_id.is_(None),
                slots.c.trial_id != TRIALS.c.trial_id,
                slots.c.state.not_in(("leased", "open")),
                and_(slots.c.state == "leased", slots.c.lease_expires_at < horizon),
            )
        )
    ).all()
    assert not rows, f"I5: RUNNING trials without a live lease: {rows}"
    loose = connection.execute(
        select(slots.c.id).where(
            slots.c.state == "leased",
            or_(slots.c.worker_id.is_(None), slots.c.lease_expires_at.is_(None)),
        )
    ).all()
    assert not loose, f"I5: leases of nobody: {loose}"


def _parallel_trials_is_kept(connection: Connection) -> None:
    """Of our own RUNNING trials; a limit that was lowered is reached as trials end."""
    rows = connection.execute(
        select(studies.c.name, studies.c.parallel_trials, func.count())
        .join(trials, trials.c.study_id == studies.c.id)
        .where(trials.c.state == "RUNNING")
        .group_by(studies.c.name, studies.c.parallel_trials)
        .having(func.count() > studies.c.parallel_trials)
    ).all()
    assert not rows, f"more RUNNING trials than parallel_trials: {rows}"


def _numbers_are_dense(connection: Connection) -> None:
    rows = connection.execute(
        select(
            TRIALS.c.study_id,
            func.count(),
            func.count(func.distinct(TRIALS.c.number)),
            func.max(TRIALS.c.number),
        ).group_by(TRIALS.c.study_id)
    ).all()
    for study, count, different, last in rows:
        assert last == count - 1 == different - 1, f"numbers of study {study}: {count}, last {last}"


def _nothing_without_a_study(connection: Connection) -> None:
    for table in (VALUES, INTERMEDIATE):
        query = select(table.c.trial_id).where(table.c.trial_id.not_in(select(TRIALS.c.trial_id)))
        assert not connection.execute(query).all(), f"{table.name}: rows without a trial"
    lost = connection.execute(
        select(epochs.c.trial_id).where(epochs.c.trial_id.not_in(select(trials.c.trial_id)))
    ).all()
    assert not lost, f"epochs without a trial: {lost}"


def _ended_studies_have_ended(connection: Connection) -> None:
    rows = connection.execute(
        select(studies.c.name, studies.c.state).where(
            or_(
                and_(
                    studies.c.state.in_(("completed", "cancelled", "failed")),
                    or_(studies.c.slots_open > 0, studies.c.finished_at.is_(None)),
                ),
                and_(studies.c.state == "completed", studies.c.slots_leased > 0),
                and_(
                    studies.c.state.in_(("queued", "running", "paused")),
                    studies.c.slots_open + studies.c.slots_leased == 0,
                ),
            )
        )
    ).all()
    assert not rows, f"I4: states that do not fit the slots: {rows}"


def _grids_are_covered(connection: Connection) -> None:
    for study in connection.execute(_THERE).mappings():
        definition = StudyDefinition.model_validate(study["definition"])
        if not definition.sampler.entry.budget_from_grid:
            continue
        found = connection.execute(
            select(slots.c.parameters, slots.c.state).where(slots.c.study_id == study["id"])
        ).all()
        wanted = Counter(_point(point) for point in grid_points(space_of(definition)))
        assert Counter(_point(point) for point, _ in found) == wanted, f"I9: {study['name']}"
        if study["state"] == "completed" and study["reason"] is None:
            left = [point for point, state in found if state not in ("done", "failed")]
            assert not left, f"I9: {study['name']}: {left}"


def _point(parameters: dict[str, Any]) -> str:
    return repr(sorted(parameters.items()))


class Watch:
    """What was seen before: ended trials never change (I2), cancelled studies start none (I7)."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ended: dict[tuple[int, int], tuple[Any, ...]] = {}
        self._trials_at_end: dict[int, int] = {}

    def look(self) -> None:
        """Compare with what was seen before, and remember.

        Raises:
            AssertionError: An ended trial changed, or a trial started in an ended study.
        """
        with self._db.read() as connection:
            # Keyed by our study too: SQLite gives a deleted study's trial ids out again.
            ended = {
                (row.ours_of, row.trial_id): tuple(row)
                for row in connection.execute(
                    select(
                        TRIALS,
                        trials.c.study_id.label("ours_of"),
                        trials.c.state.label("ours"),
                        trials.c.value,
                    )
                    .join(trials, trials.c.trial_id == TRIALS.c.trial_id)
                    .where(TRIALS.c.state.in_((*RESULTS, TrialState.FAIL)))
                )
            }
            counts = {
                study_id: count
                for study_id, count in connection.execute(
                    select(studies.c.id, func.count(trials.c.trial_id))
                    .outerjoin(trials, trials.c.study_id == studies.c.id)
                    .where(studies.c.state.in_(("cancelled", "failed")))
                    .group_by(studies.c.id)
                )
            }
            known = {row.id for row in connection.execute(_THERE)}
        for key, before in self._ended.items():
            if key[0] in known:  # its study was not deleted
                assert ended.get(key) == before, f"I2: trial {key[1]} changed: {before}"
        for study_id, count in self._trials_at_end.items():
            if study_id in counts:
                assert counts[study_id] == count, f"I7: study {study_id} started a trial"
        self._ended, self._trials_at_end = ended, counts
