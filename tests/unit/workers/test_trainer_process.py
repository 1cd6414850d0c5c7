"""The trainer's process, pipes and log, with the fake trainer."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.workers.conftest import FAKE_TRAINER
from workers.protocol.messages import ProbePoints, ProbeRequest
from workers.supervisor.environment import scrubbed
from workers.supervisor.trainer_process import TrainerCommand, TrainerProcess


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., TrainerProcess]]:
    started: list[TrainerProcess] = []

    def start(*arguments: str) -> TrainerProcess:
        environment = scrubbed({**os.environ, "TUNER_API_KEY": "secret"}, threads=1)
        command = TrainerCommand(arguments, environment, tmp_path / "logs" / "trainer.log")
        started.append(TrainerProcess(command))
        return started[-1]

    yield start
    for process in started:
        process.close(1.0)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_becomes_ready_and_ends_when_its_pipe_closes(
    launch: Callable[..., TrainerProcess],
) -> None:
    trainer = launch(str(FAKE_TRAINER), "--lanes", "3")
    until(lambda: trainer.ready is not None)
    assert trainer.ready is not None
    assert trainer.ready.lanes == 3
    trainer.close(10.0)
    assert trainer.exit_code() == 0


def test_its_environment_holds_no_secrets(
    launch: Callable[..., TrainerProcess], tmp_path: Path
) -> None:
    launch("-c", "import os; print(sorted(os.environ))")
    log = tmp_path / "logs" / "trainer.log"
    until(lambda: "PATH" in log.read_text())
    assert "TUNER_API_KEY" not in log.read_text()


def test_the_end_of_its_log_is_text(launch: Callable[..., TrainerProcess]) -> None:
    said = r"import os; os.write(1, b'one\x1b[2J\x00\xff\xfe\x00two\tthree\n')"
    trainer = launch("-c", said)
    until(lambda: trainer.exit_code() is not None)
    assert trainer.log_tail() == "one\ufffd[2J\ufffdtwo\tthree"


def test_logs_of_a_week_ago_go(launch: Callable[..., TrainerProcess], tmp_path: Path) -> None:
    old, new = tmp_path / "logs" / "old.log", tmp_path / "logs" / "new.log"
    for log in (old, new):
        log.parent.mkdir(exist_ok=True)
        log.touch()
    os.utime(old, (0, 0))
    launch("-c", "pass")
    assert (old.exists(), new.exists()) == (False, True)


def test_the_log_of_a_trainer_that_lives_stays(tmp_path: Path) -> None:
    quiet, other = (tmp_path / "logs" / name for name in ("quiet.log", "other.log"))
    said = ("-c", "import time; time.sleep(600)")
    living = TrainerProcess(TrainerCommand(said, dict(os.environ), quiet))
    os.utime(quiet, (0, 0))
    for left in (True, False):
        TrainerProcess(TrainerCommand(("-c", "pass"), dict(os.environ), other)).close(20.0)
        assert quiet.exists() == left
        living.kill()


def test_its_last_words_are_in_the_log(launch: Callable[..., TrainerProcess]) -> None:
    trainer = launch("-c", "print('x' * 10_000); raise SystemExit('out of luck')")
    assert trainer.exit_code(wait_seconds=20.0) == 1
    assert trainer.log_tail().endswith("out of luck")
    assert len(trainer.log_tail()) <= 4000


def test_the_tail_is_of_this_process_only(launch: Callable[..., TrainerProcess]) -> None:
    first = launch("-c", "print('first')")
    first.exit_code(wait_seconds=20.0)
    second = launch("-c", "print('second')")
    second.exit_code(wait_seconds=20.0)
    assert second.log_tail() == "second"


def test_a_trainer_that_does_not_read_blocks_nobody(
    launch: Callable[..., TrainerProcess],
) -> None:
    trainer = launch("-c", "import time; time.sleep(600)")
    for _ in range(100):
        trainer.send(ProbePoints(1, [{"x": "x" * 10_000}]))
    trainer.kill()
    assert trainer.exit_code() == -9


def test_a_torn_or_foreign_line_is_dropped(launch: Callable[..., TrainerProcess]) -> None:
    code = (
        "import os, sys; fd = int(sys.argv[sys.argv.index('--events') + 1]);"
        'os.write(fd, b\'not json\\n[1]\\n{"type": "probe_request", "study": 1}\\n{"type": "eve\')'
    )
    trainer = launch("-c", code)
    until(lambda: trainer.closed)
    assert trainer.receive(1.0) == [ProbeRequest(1)]


def test_wake_ends_a_wait(launch: Callable[..., TrainerProcess]) -> None:
    trainer = launch("-c", "import time; time.sleep(600)")
    trainer.wake()
    assert trainer.receive(60.0) == []


def test_kill_takes_its_children_along(
    launch: Callable[..., TrainerProcess], tmp_path: Path
) -> None:
    pid_file = tmp_path / "child.pid"
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    trainer = launch("-c", code)
    until(lambda: pid_file.exists() and pid_file.read_text() != "")
    trainer.kill()
    state = Path("/proc") / pid_file.read_text() / "status"
    until(lambda: not state.exists() or "zombie" in state.read_text())
