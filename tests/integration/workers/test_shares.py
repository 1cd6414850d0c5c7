"""Two workers share a study, on both databases."""

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.studies import sampled
from tuner_service.definition import parse_definition
from tuner_service.lifecycle.claim import FairShare
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.workers import register_worker, worker_heartbeat
from tuner_service.settings import Settings
from tuner_service.storage import Database
from workers.supervisor.database_store import DatabaseSlotStore


def stores(db: Database, settings: Settings, count: int) -> list[DatabaseSlotStore]:
    for number in range(count):
        register_worker(
            db,
            worker_id=f"w{number}",
            host="here",
            pid=number,
            queue="cpu",
            device="cpu",
            version="0",
            lanes=64,
        )
    return [DatabaseSlotStore(db, settings, f"w{number}", "cpu") for number in range(count)]


def take(store: DatabaseSlotStore, *, limit: int = 64, fair: bool = True) -> int:
    claimed = store.claim(limit=limit, exclude_exclusive=False, exclude_studies=(), fair_share=fair)
    return len(claimed.leases)


@pytest.mark.parametrize(
    ("workers", "trials", "parallel", "taken"),
    [
        (1, 20, 64, [20]),  # alone: everything
        (2, 20, 64, [10, 10]),  # halves
        (3, 20, 64, [7, 7, 6]),  # rounded up, the last takes what is left
        (2, 20, 4, [2, 2]),  # of what may run at once
        (3, 2, 64, [1, 1, 0]),
    ],
)
def test_each_worker_takes_its_part(
    db: Database, tmp_path: Path, workers: int, trials: int, parallel: int, taken: list[int]
) -> None:
    settings = Settings(data_dir=tmp_path)
    definition = sampled("s", "random", trials, resources={"parallel_trials": parallel})
    submit(db, parse_definition(definition), settings=settings)
    assert [take(store) for store in stores(db, settings, workers)] == taken


def test_a_worker_at_its_share_takes_more_only_when_it_asks_for_what_is_left(
    db: Database, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    submit(db, parse_definition(sampled("s", "random", 20)), settings=settings)
    first, _ = stores(db, settings, 2)
    assert Counter([take(first), take(first)]) == {10: 1, 0: 1}
    assert take(first, fair=False) == 10


def test_idle_workers_are_the_others_that_can_and_have_nothing_to_do(
    db: Database, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    submit(
        db,
        parse_definition(sampled("s", "random", 20, resources={"device": "cpu"})),
        settings=settings,
    )
    first, second, third = stores(db, settings, 3)
    register_worker(
        db, worker_id="gpu", host="h", pid=9, queue="cuda", device="g", version="0", lanes=64
    )
    (study_id,) = first.claim(
        limit=1, exclude_exclusive=False, exclude_studies=(), fair_share=False
    ).studies
    for busy in (first, second):
        worker_heartbeat(db, busy.worker_id, state="busy", lanes=64, current_trials=[])
    assert first.others(study_id) == FairShare(idle=1, part=7)
    worker_heartbeat(db, third.worker_id, state="stopping", lanes=64, current_trials=[])
    assert first.others(study_id) == FairShare(idle=0, part=7)
