"""Environment, places, outage, and what the supervisor process imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from tuner_service.lifecycle.messages import Lease, StudyWork
from workers.supervisor.backoff import Backoff
from workers.supervisor.data_directory import DataDirectory
from workers.supervisor.environment import is_secret, scrubbed

WORK = StudyWork(1, "abc", "study", 1, {}, None)


@pytest.mark.parametrize(
    "name",
    [
        "TUNER_DATABASE_URL",
        "TUNER_BROKER_URL",
        "TUNER_API_KEY",
        "PGPASSWORD",
        "PGHOST",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "MY_PASSWORD",
        "DATABASE_URL",
        "SENTRY_DSN",
        "OPENAI_API_KEY",
    ],
)
def test_secrets_do_not_reach_the_trainer(name: str) -> None:
    assert is_secret(name)
    assert name not in scrubbed({name: "x"}, threads=1)


@pytest.mark.parametrize("name", ["PATH", "HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "CC"])
def test_what_torch_needs_reaches_the_trainer(name: str) -> None:
    assert scrubbed({name: "x"}, threads=1)[name] == "x"


def test_thread_counts_are_set_unless_somebody_chose() -> None:
    environment = scrubbed({"MKL_NUM_THREADS": "4"}, threads=1)
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == ("1", "4")


def test_back_off_doubles_up_to_its_longest_and_starts_anew() -> None:
    backoff, now, waits = Backoff(), 0.0, []
    for _ in range(7):
        backoff.failed(now)
        waits.append(round(backoff.retry_at - now, 3))
        now = backoff.retry_at
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert backoff.recovered()
    assert not backoff.recovered()
    assert backoff.failed(now)
    assert backoff.retry_at == pytest.approx(now + 0.1)


def test_attempts_share_checkpoints_and_never_models(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    first = Lease(1, 1, 1, 4, {}, None, None, None, None, 1, False)
    second = Lease(1, 2, 1, 4, {}, None, None, None, None, 2, False)
    assert directory.checkpoint(WORK, first) == directory.checkpoint(WORK, second)
    assert directory.model(WORK, first) != directory.model(WORK, second)
    assert directory.log(WORK, first) != directory.log(WORK, second)


def test_only_files_inside_the_data_directory_are_named_or_deleted(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("keep me")
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    directory = DataDirectory(data)
    assert directory.relative(str(outside)) is None
    assert directory.relative(str(data / "models" / "1.safetensors")) == "models/1.safetensors"
    directory.drop("../outside.txt")
    assert outside.exists()


def test_dropping_a_slots_checkpoint_leaves_its_neighbours(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    lease = Lease(1, 1, 1, 1, {}, None, None, None, None, 1, False)
    prefix = directory.checkpoint(WORK, lease)
    for name in ("1.json", "1.safetensors", "10.json", "11.safetensors"):
        (prefix.parent / name).touch()
    directory.drop_checkpoint(WORK, lease)
    assert sorted(p.name for p in prefix.parent.iterdir()) == ["10.json", "11.safetensors"]


def test_the_worker_process_does_not_import_torch() -> None:
    code = "import sys, workers.celery_app, workers.tasks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
