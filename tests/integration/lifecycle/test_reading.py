"""Reading: pages in every order, filters, tags, references, and what costs what."""

import math
from typing import Any

import optuna
import psycopg
import pytest
from sqlalchemy import event

from tests.integration.lifecycle.hands import SETTINGS, Hand, definition, plain_optuna, submitted
from tuner_service.errors import InputError, NotFoundError
from tuner_service.lifecycle.change import pause
from tuner_service.lifecycle.messages import Finish, Report
from tuner_service.lifecycle.submit import plan, submit
from tuner_service.reads.studies import get_study, list_studies, study_revisions
from tuner_service.reads.trials import get_trial, list_trials
from tuner_service.storage import Database, postgres

VALUES = [0.5, None, 0.9, 0.5, 0.1, None, 0.7]


@pytest.fixture
def study(db: Database, hand: Hand) -> str:
    """Seven ended trials, two of them without a value, and one that runs."""
    name = submitted(db, budget={"trials": 8}).name
    for value in VALUES:
        lease, trial_id = hand.claim_and_start()
        values = None if value is None else (value,)
        state: Any = "PRUNED" if value is None else "COMPLETE"
        hand.flush(finishes=[Finish(lease, trial_id, state, values, {})])
    hand.claim_and_start()
    return name


def pages(db: Database, study: str, **how: Any) -> list[int]:
    """Return the numbers of all trials, read in pages of two."""
    numbers: list[int] = []
    cursor = None
    while True:
        page = list_trials(db, study, limit=2, cursor=cursor, **how)
        assert len(page.items) <= 2
        numbers += [trial.number for trial in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return numbers


@pytest.mark.parametrize(
    ("how", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"sort": "-number"}, [7, 6, 5, 4, 3, 2, 1, 0]),
        ({"sort": "value"}, [4, 0, 3, 6, 2]),
        ({"sort": "-value"}, [2, 6, 0, 3, 4]),
        ({"state": "PRUNED"}, [1, 5]),
        ({"state": "RUNNING"}, [7]),
        ({"state": "FAIL"}, []),
        ({"state": "COMPLETE", "sort": "-value"}, [2, 6, 0, 3, 4]),
    ],
)
def test_trials_come_in_pages(
    db: Database, study: str, how: dict[str, Any], numbers: list[int]
) -> None:
    assert pages(db, study, **how) == numbers


def test_trials_of_plain_optuna_are_in_the_pages(db: Database, study: str) -> None:
    with plain_optuna(db.url) as storage:
        storage.create_new_trial(storage.get_study_id_from_name(study))
        plain = optuna.load_study(study_name=study, storage=storage)
        plain.enqueue_trial({"learning_rate": 0.01})
    assert pages(db, study) == list(range(10))
    assert pages(db, study, state="WAITING") == [9]
    for number, state in ((8, "RUNNING"), (9, "WAITING")):
        foreign = get_trial(db, study, number)
        assert (foreign.slot, foreign.state, foreign.worker) == (-1, state, None)
        assert foreign.foreign
    assert not get_trial(db, study, 0).foreign


def test_a_cursor_of_another_order_is_refused(db: Database, study: str) -> None:
    cursor = list_trials(db, study, limit=2, sort="value").next_cursor
    with pytest.raises(InputError, match="cursor"):
        list_trials(db, study, cursor=cursor)


def test_what_is_not_there_is_not_found(db: Database, study: str) -> None:
    for ref in ("nothing", "", "x\x00y", "st_0"):
        with pytest.raises(NotFoundError):
            get_study(db, ref)
    with pytest.raises(NotFoundError, match="99"):
        get_trial(db, study, 99)


def test_an_id_goes_before_a_name_that_looks_like_one(db: Database) -> None:
    first = submitted(db)
    impostor = submitted(db, name=first.id)
    assert get_study(db, first.id).name == "small"
    assert get_study(db, impostor.id).name == first.id


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("team", ["b", "a"]),
        ("team=vision", ["a"]),
        ("team=nobody", []),
        ("other", []),
        ('a"b', []),
        ("a.b=1", []),
    ],
)
def test_studies_by_tag(db: Database, tag: str, names: list[str]) -> None:
    submitted(db, name="a", tags={"team": "vision"})
    submitted(db, name="b", tags={"team": "audio"})
    submitted(db, name="c")
    assert [study.name for study in list_studies(db, tag=tag).items] == names


def test_studies_by_state(db: Database) -> None:
    submitted(db, name="a")
    pause(db, submitted(db, name="b").id)
    assert [study.name for study in list_studies(db, state="paused").items] == ["b"]
    assert [study.name for study in list_studies(db, state="queued").items] == ["a"]


def test_every_visible_change_raises_the_revision(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    seen = [study_revisions(db, [study.id])[study.id].revision]

    def changed() -> bool:
        seen.append(study_revisions(db, [study.id])[study.id].revision)
        return seen[-1] > seen[-2]

    lease = hand.claim().leases[0]
    assert changed()
    trial_id = hand.start(lease)
    assert changed()
    hand.flush(renew=[lease])
    assert not changed()
    hand.flush(reports=[Report(lease, trial_id, 1, 0.1, {})])
    assert changed()
    hand.finish(lease, trial_id, 0.5)
    assert changed()
    pause(db, study.id)
    assert changed()
    pause(db, study.id)
    assert not changed()


def test_a_plan_stores_nothing(db: Database) -> None:
    found = plan(db, definition(), settings=SETTINGS)
    assert (found.slots, found.grid_size, found.parameters) == (4, None, ["learning_rate"])
    assert list_studies(db).items == []


def test_a_submit_sent_again_gives_the_same_answer(db: Database) -> None:
    submitted(db)
    first, new = submit(db, definition(), settings=SETTINGS, idempotency_key="k", owner="o")
    again, newer = submit(db, definition(), settings=SETTINGS, idempotency_key="k", owner="o")
    other, newest = submit(db, definition(), settings=SETTINGS, idempotency_key="k", owner="p")
    assert (new, newer, newest) == (True, False, True)
    assert again == first
    assert "small-2" in first.warnings[0]
    assert other.id != first.id


def statements(db: Database, call: Any) -> int:
    """Return how many statements a call costs."""
    seen: list[str] = []

    def count(*arguments: Any) -> None:
        seen.append(arguments[2])

    engine = db._writer
    event.listen(engine, "before_cursor_execute", count)
    event.listen(db._reader, "before_cursor_execute", count)
    call()
    event.remove(engine, "before_cursor_execute", count)
    event.remove(db._reader, "before_cursor_execute", count)
    return len(seen)


def test_a_flush_costs_the_same_number_of_statements_for_any_number_of_lanes(
    db: Database, hand: Hand
) -> None:
    submitted(db, budget={"trials": 70}, resources={"parallel_trials": 70})
    hand.claim_and_start()  # the study's first trial costs one more, once

    def cost(lanes: int) -> list[int]:
        leases = hand.claim(lanes).leases
        assert len(leases) == lanes
        trials: dict[Any, int] = {}

        def start() -> None:
            from_flush = hand.flush(starts=hand.starts(leases)).started
            trials.update({key: started.trial_id for key, started in from_flush.items()})

        def report() -> None:
            hand.flush(reports=[Report(x, trials[x.key], 1, 0.1, {}) for x in leases])

        def finish() -> None:
            hand.flush(finishes=[Finish(x, trials[x.key], "PRUNED", None, {}) for x in leases])

        return [statements(db, part) for part in (start, report, finish)]

    few, many = cost(2), cost(60)
    assert few == many
    assert max(many) <= 20


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_flush_of_reports_waits_for_postgresql_twice(
    db: Database, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for its locks, once for the commit."""
    submitted(db)
    leases = hand.claim(3).leases
    started = hand.flush(starts=hand.starts(leases)).started
    monkeypatch.setattr(postgres, "IDLE_BEFORE_PING_SECONDS", math.inf)
    waits = []
    for name, module in (("sync", psycopg.Pipeline), ("commit", psycopg.Connection)):
        original = getattr(module, name)

        def counted(self: Any, name: str = name, original: Any = original) -> None:
            waits.append(name)
            original(self)

        monkeypatch.setattr(module, name, counted)
    hand.flush(reports=[Report(x, started[x.key].trial_id, 1, 0.1, {}) for x in leases])
    assert waits == ["sync", "commit"]


def test_what_is_doubtful_in_the_data_is_a_warning_of_the_study(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    record = {"warnings": ["3 of 40 rows were left out"]}
    hand.flush(finishes=[Finish(lease, trial_id, "COMPLETE", (0.5,), record)])
    assert get_study(db, study.id).warnings == record["warnings"]
