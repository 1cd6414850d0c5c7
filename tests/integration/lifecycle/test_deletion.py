"""Deleting a study: gone at once, its rows in parts, by anyone and from anywhere."""

import optuna
import pytest
from sqlalchemy import func, select

from tests.integration.lifecycle.hands import SETTINGS, Hand, plain_optuna, remove, submitted
from tests.invariants import check_invariants
from tuner_service.errors import ConflictError, NotFoundError
from tuner_service.lifecycle.change import pause
from tuner_service.lifecycle.delete import delete, delete_part, next_size
from tuner_service.lifecycle.messages import Report
from tuner_service.reads.studies import get_study, list_studies, study_revisions
from tuner_service.storage import Database
from tuner_service.storage.schema import slots, studies, trials


def test_a_deleted_study_is_gone_at_once_and_its_rows_follow(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    with pytest.raises(ConflictError):
        delete(db, study.id)
    (lease,) = hand.claim().leases
    hand.finish(lease, hand.start(lease), 0.5)
    assert delete(db, study.id) == study.id
    for ref in (study.id, study.name, f"~{study.id}"):
        with pytest.raises(NotFoundError):
            get_study(db, ref)
    with pytest.raises(NotFoundError):
        delete(db, study.id)
    assert (list_studies(db).items, study_revisions(db, [study.id])) == ([], {})
    assert submitted(db).name == study.name
    remove(db)
    with plain_optuna(db.url) as storage:
        assert optuna.get_all_study_names(storage=storage) == [study.name]


def test_deleting_goes_on_where_it_was_left(db: Database, hand: Hand) -> None:
    """Each part is as small as asked, and the promises hold between them."""
    study = submitted(db, budget={"trials": 5})
    for lease in hand.claim(4).leases[:3]:  # the fourth is held by nobody who will ever say so
        hand.finish(lease, hand.start(lease), 0.5)
    lease, trial_id = hand.claim_and_start()
    pause(db, study.id)
    delete(db, study.id)
    counts = []
    while delete_part(db, size=2) is not None:
        check_invariants(db, settings=SETTINGS)
        counts.append(rows_of(db))
        report = Report(lease, trial_id, 1, 0.5, {"step": 1})
        assert hand.flush(reports=[report]).lost == {lease.key}
    assert counts == [(2, 5), (0, 5), (0, 3), (0, 1), (0, 0), (0, 0)]
    with db.read() as connection:
        assert connection.execute(select(func.count()).select_from(studies)).scalar() == 0


def rows_of(db: Database) -> tuple[int, int]:
    """Return how many trials and slots there are."""
    with db.read() as connection:
        found = [select(func.count()).select_from(table) for table in (trials, slots)]
        ours, theirs = (connection.execute(query).scalar_one() for query in found)
        return ours, theirs


@pytest.mark.parametrize(
    ("size", "seconds", "expected"),
    [(200, 0.1, 200), (200, 0.05, 400), (200, 0.001, 400), (200, 0.2, 100), (200, 9.0, 50),
     (1, 9.0, 1), (9000, 0.01, 10_000)],
)  # fmt: skip
def test_parts_are_as_large_as_is_quick(size: int, seconds: float, expected: int) -> None:
    assert next_size(size, seconds) == expected
