"""Files that nothing needs any more go, and no other does."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.integration.lifecycle.hands import SETTINGS, Hand, expire, submitted
from tests.integration.lifecycle.test_ends import use_up
from tuner_service.data_directory import DataDirectory
from tuner_service.lifecycle import garbage
from tuner_service.lifecycle.change import StudyPatch, cancel, patch, pause
from tuner_service.lifecycle.delete import delete
from tuner_service.lifecycle.garbage import Seen, mark_deleted, sweep
from tuner_service.lifecycle.messages import Finish, HandBack, Lease
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.storage import Database
from tuner_service.storage.schema import slots


def written(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
            (folder / name / "last.pt").touch()
        else:
            (folder / name).touch()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def of_slot(number: int) -> list[str]:
    return [f"{number}.2.safetensors", f"{number}.loop", f"{number}.loop.jsonl"]


def checkpoints(data_dir: Path, study: str, count: int) -> Path:
    """Write what trials keep for their next attempt, for each slot of the study."""
    folder = data_dir / "checkpoints" / study
    for number in range(count):
        written(folder, f"{number}.2.safetensors", f"{number}.loop/", f"{number}.loop.jsonl")
    return folder


def use_attempts_up(hand: Hand, lease: Lease) -> None:
    hand.fail(lease, hand.start(lease), retry=False)


def test_checkpoints_go_with_their_slots_end_and_not_before(
    db: Database, hand: Hand, tmp_path: Path
) -> None:
    study = submitted(db, budget={"trials": 5, "max_failures": 5})
    done, failed, handed_back, running = hand.claim(4).leases
    hand.finish(done, hand.start(done), 0.5)
    use_attempts_up(hand, failed)
    hand.start(handed_back)
    hand.flush(hand_backs=[HandBack(handed_back, 2)])
    hand.start(running)
    folder = checkpoints(tmp_path, study.id, 5)
    kept = sorted(of_slot(2) + of_slot(3) + of_slot(4))

    assert sweep(db, DataDirectory(tmp_path), {}) == 6
    assert left(folder) == kept
    expire(db, running)
    reconcile(db, settings=SETTINGS)
    pause(db, study.id)
    sweep(db, DataDirectory(tmp_path), {})
    assert left(folder) == kept, "the next attempts go on from them"

    cancel(db, study.id)
    sweep(db, DataDirectory(tmp_path), {})
    assert not folder.exists()


def test_checkpoints_of_slots_that_a_raised_timeout_opens_again_stay(
    db: Database, hand: Hand, tmp_path: Path
) -> None:
    study = submitted(db, budget={"trials": 2, "timeout": 10})
    lease, trial = hand.claim_and_start()
    hand.fail(lease, trial, checkpoint_step=2)
    use_up(db, 60.0)
    assert reconcile(db, settings=SETTINGS).finished == [study.id]
    folder = checkpoints(tmp_path, study.id, 2)
    sweep(db, DataDirectory(tmp_path), {})
    assert left(folder) == sorted(of_slot(0) + of_slot(1))
    patch(db, study.id, StudyPatch(timeout=1000.0), settings=SETTINGS)
    assert hand.claim(2).leases[0].checkpoint_step == 2


def test_models_that_no_trial_names_go(db: Database, hand: Hand, tmp_path: Path) -> None:
    study = submitted(db, budget={"trials": 3})
    folder = tmp_path / "models" / study.id
    kept, running = hand.claim(2).leases
    trial = hand.start(kept)
    path = f"models/{study.id}/0-{kept.fencing_token}.safetensors"
    hand.flush(finishes=[Finish(kept, trial, "COMPLETE", (0.5,), {}, model_path=path)])
    running_trial = hand.start(running)
    mine = f"1-{running.fencing_token}.safetensors"
    seen: Seen = {}
    written(folder, Path(path).name, "0-7.safetensors", mine, "1-0.safetensors.tmp", "notes")

    assert sweep(db, DataDirectory(tmp_path), seen) == 2
    assert left(folder) == sorted([Path(path).name, mine, "notes"]), "the lease of one lives"
    hand.finish(running, running_trial, 0.1)
    assert sweep(db, DataDirectory(tmp_path), seen) == 1
    assert left(folder) == [Path(path).name, "notes"]


def test_models_are_looked_at_again_when_something_was_written(
    db: Database, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = submitted(db)
    folder, seen = tmp_path / "models" / study.id, {}
    written(folder, "notes")
    sweep(db, DataDirectory(tmp_path), seen)
    assert set(seen) == {study.id}
    written(folder, "0-0.safetensors")
    os.utime(folder, ns=(1, 1))
    assert sweep(db, DataDirectory(tmp_path), seen) == 1
    folder.rename(tmp_path / "elsewhere")
    sweep(db, DataDirectory(tmp_path), seen)
    assert seen == {}


@pytest.fixture
def deleted(db: Database, hand: Hand, tmp_path: Path) -> str:
    """A study that was deleted by a process that died before it could remove the files."""
    study = submitted(db, budget={"trials": 1})
    pause(db, study.id)
    mark_deleted(DataDirectory(tmp_path), study.id)
    delete(db, study.id)
    for folder in DataDirectory(tmp_path).study_folders(study.id):
        written(folder, "0-1.log")
    return study.id


def test_files_of_a_deleted_study_go_and_what_comes_late_too(
    db: Database, deleted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        sweep(db, DataDirectory(tmp_path), {})
        assert not list(tmp_path.glob(f"*/{deleted}/*"))
        written(tmp_path / "checkpoints" / deleted, "0.3.safetensors")  # by a trial that ran yet
    mark = tmp_path / "deleted" / deleted
    os.utime(mark, (0, 0))
    with monkeypatch.context() as broken:
        broken.setattr(garbage.shutil, "rmtree", refuse)
        sweep(db, DataDirectory(tmp_path), {})
        assert mark.exists(), "its files are there yet"
    sweep(db, DataDirectory(tmp_path), {})
    assert not mark.exists()


def refuse(path: Path) -> None:
    raise PermissionError(f"not {path}")


def test_a_sweep_that_is_to_stop_leaves_the_rest_to_the_next(
    db: Database, deleted: str, tmp_path: Path
) -> None:
    study = submitted(db)
    written(tmp_path / "models" / study.id, "0-1.safetensors")
    assert sweep(db, DataDirectory(tmp_path), {}, is_stopping=lambda: True) == 0
    assert left(tmp_path / "logs" / deleted) == ["0-1.log"]
    assert sweep(db, DataDirectory(tmp_path), {}) == 1


def test_a_study_that_is_not_known_or_was_not_deleted_after_all_keeps_its_files(
    db: Database, tmp_path: Path
) -> None:
    study = submitted(db)
    mark_deleted(DataDirectory(tmp_path), study.id)
    places: list[Any] = [tmp_path / folder / name / "0-1.x" for folder in ("models", "logs")
                         for name in ("another", study.id)]  # fmt: skip
    with db.write() as connection:
        connection.execute(update(slots).values(state="leased", fencing_token=1))
    for place in places:
        written(place.parent, place.name)
    assert sweep(db, DataDirectory(tmp_path), {}) == 0
    assert all(place.exists() for place in places)
    assert not (tmp_path / "deleted" / study.id).exists(), "another restore may not know it"
