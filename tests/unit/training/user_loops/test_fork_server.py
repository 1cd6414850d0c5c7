"""Loop trials that are forked off a warm process: each as alone as if it had been started anew."""

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.user_loops.test_pool import LAST_WORDS, SECONDS, kind, loops, start, until
from workers.training.user_loops import fork_main, fork_server
from workers.training.user_loops.fork_server import IDLE_SECONDS, ForkedProcess, ForkServer
from workers.training.user_loops.pool import UserLoopPool

PROBE = """
import os, sys
warm = "torch" in sys.modules
import torch
print(warm, os.getsid(0) == os.getpid(), torch.get_num_threads())
def train(trial, x):
    trial.log_metrics(left=getattr(torch, "left_behind", 0), inherited=os.environ.get("LEFT", ""))
    ends = [os.readlink(one) for one in os.scandir("/proc/self/fd") if os.path.exists(one)]
    trial.log_metrics(pipes=sum(end.startswith("pipe") for end in ends))
    torch.left_behind, os.environ["LEFT"] = 1, "yes"
    os.chdir("/")
    {body}
"""
PLAIN = "def train(trial, x): return 4"
SPIN = PROBE.format(body="trial.report(1, 1)\n    while True: pass")


def begin(trials: UserLoopPool, folder: Path, trial: int) -> bool:
    """Start a trial; return whether it was forked."""
    trials.submit(start(folder, trial=trial))
    trials.advance()
    return isinstance(trials._runs[trial].process._process, ForkedProcess)


def end(trials: UserLoopPool) -> Any:
    """Return the last words of the next trial that ends."""
    return until(trials, lambda events: any(e.type in LAST_WORDS for e in events))[-1]


def events_of(trials: UserLoopPool, folder: Path, trial: int) -> Any:
    assert begin(trials, folder, trial)
    return end(trials)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def trials(folder: Path) -> Iterator[UserLoopPool]:
    trials = loops(folder, "", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # as a worker sets them
            patch.setenv(name, "1")
        yield trials
    trials.shutdown()


@pytest.fixture
def warm(trials: UserLoopPool, folder: Path) -> UserLoopPool:
    """Loop trials whose fork server is ready."""
    (folder / "loop.py").write_text("def train(trial, x): return 1")
    deadline = time.monotonic() + 2 * SECONDS
    while not begin(trials, folder, 100):
        end(trials)
        assert time.monotonic() < deadline, "the fork server did not get ready"
        time.sleep(0.2)
    end(trials)
    return trials


def test_forks_are_processes_of_their_own(warm: UserLoopPool, folder: Path) -> None:
    source = PROBE.format(body="return trial.seed + torch.rand(1).item()")
    (folder / "loop.py").write_text(source)
    ends = [events_of(warm, folder, trial) for trial in (1, 2)]
    assert [end.record["left"] for end in ends] == [0, 0]
    assert [end.record["inherited"] for end in ends] == ["", ""]
    assert [end.record["pipes"] for end in ends] == [4, 4]  # commands, events, output twice
    assert ends[0].values == ends[1].values  # the seed is set in each
    assert (folder / "1.log").read_text() == "True True 1\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os._exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("sys.exit(2)", "SystemExit: 2"),
    ],
)
def test_a_fork_that_dies_fails_its_trial_and_the_next_one_runs(
    warm: UserLoopPool, folder: Path, body: str, message: str
) -> None:
    (folder / "loop.py").write_text(PROBE.format(body=body))
    failed = events_of(warm, folder, 1)
    assert failed.type == "failed"
    assert message in failed.failure.message
    (folder / "loop.py").write_text(PROBE.format(body="return 4"))
    assert events_of(warm, folder, 2).values == [4.0]


def test_a_server_with_a_descriptor_above_1023_forks(folder: Path) -> None:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    trials = loops(folder, PLAIN, threads=1)
    try:
        deadline = time.monotonic() + 2 * SECONDS
        while not begin(trials, folder, 1):
            end(trials)
            assert time.monotonic() < deadline, "the fork server did not get ready"
            time.sleep(0.2)
        assert end(trials).values == [4.0]
    finally:
        trials.shutdown()
        for descriptor in held:
            os.close(descriptor)


def test_what_a_fork_leaves_behind_is_ended(warm: UserLoopPool, folder: Path) -> None:
    body = "import subprocess\n    return subprocess.Popen(['sleep', '60']).pid"
    (folder / "loop.py").write_text(PROBE.format(body=body))
    (left,) = events_of(warm, folder, 1).values
    wait_for_end_of(int(left))


def test_a_stopped_fork_that_goes_on_is_killed(
    warm: UserLoopPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "loop.py").write_text(SPIN)
    assert begin(warm, folder, 1)
    until(warm, kind("reported"))
    monkeypatch.setattr(warm, "_stop_seconds", 0.1)
    warm.stop(1, "cancel")
    assert until(warm, kind("stopped"))[-1].mode == "cancel"


def wait_for_end_of(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_a_server_without_room_starts_a_trial_anew_and_keeps_the_others(
    warm: UserLoopPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "capacity", 2)
    (folder / "loop.py").write_text(SPIN)
    assert begin(warm, folder, 1)
    until(warm, kind("reported"))
    parent = warm._fork_server._server
    assert parent is not None
    pid = parent._process.pid
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = [number for number in range(100) if number not in used]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[2], hard))
    (folder / "loop.py").write_text(PLAIN)
    assert not begin(warm, folder, 2)  # of its four ends, two arrived
    assert end(warm).values == [4.0]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert events_of(warm, folder, 3).values == [4.0]
    assert list(warm._runs) == [1]
    warm._runs[1].process.kill()
    assert end(warm).run == 1


def test_forks_end_with_their_server_through_no_doing_of_their_own(
    warm: UserLoopPool, folder: Path
) -> None:
    (folder / "loop.py").write_text(SPIN)
    assert begin(warm, folder, 1)
    until(warm, kind("reported"))
    pid, parent = warm._runs[1].process.pid, warm._fork_server._server
    assert parent is not None
    os.kill(parent._process.pid, signal.SIGKILL)
    failed = until(warm, kind("failed"))[-1]
    assert (failed.failure.kind, failed.failure.step) == ("worker_lost", 1)
    assert failed.sole_suspect is None  # the supervisor knows whether others were on board
    wait_for_end_of(pid)
    (folder / "loop.py").write_text(PLAIN)
    assert not begin(warm, folder, 2)  # started anew
    assert end(warm).values == [4.0]
    warm._fork_server.close()


def test_a_fork_that_fails_is_said_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    ours, theirs = socket.socketpair()
    wakeup, ends = os.pipe(), (*os.pipe(), *os.pipe())
    with ours, theirs:
        serving = threading.Thread(target=fork_main._serve, args=(theirs, wakeup))
        serving.start()
        for _ in range(2):
            socket.send_fds(ours, [b"f"], ends)
            assert ours.recv(64) == b"0"
        ours.shutdown(socket.SHUT_WR)
        serving.join(SECONDS)
        assert not serving.is_alive()
    for descriptor in (*wakeup, *ends):
        os.close(descriptor)


class FakeServer:
    """One that gets ready or not, and never forks."""

    made: list["FakeServer"]
    ready = False
    breaks = False

    def __init__(self) -> None:
        self.open = True
        self.made.append(self)

    def fork(self) -> None:
        if self.breaks:
            raise BrokenPipeError("the server is gone")

    def close(self) -> None:
        self.open = False


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[FakeServer]:
    made: list[FakeServer] = []
    monkeypatch.setattr(FakeServer, "made", made, raising=False)
    monkeypatch.setattr(fork_server, "ServerProcess", FakeServer)
    monkeypatch.setattr(fork_server, "_spawned", lambda: "spawned")
    return made


@pytest.mark.parametrize("ready", [False, True])
def test_a_server_that_never_got_ready_is_not_tried_again(
    fakes: list[FakeServer], monkeypatch: pytest.MonkeyPatch, *, ready: bool
) -> None:
    monkeypatch.setattr(FakeServer, "breaks", True)
    monkeypatch.setattr(FakeServer, "ready", ready)
    server = ForkServer()
    for _ in range(2):
        assert [server.start() for _ in range(3)] == ["spawned"] * 3
        server.close()  # as after an idle minute
    assert [fake.open for fake in fakes] == [False] * (2 if ready else 1)


def test_a_server_that_cannot_be_started_fails_no_trial(
    fakes: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(fork_server, "ServerProcess", fail)
    server = ForkServer()
    assert [server.start() for _ in range(2)] == ["spawned"] * 2
    monkeypatch.setattr(fork_server, "ServerProcess", FakeServer)
    server.start()
    assert len(fakes) == 1


def test_a_server_goes_when_no_trial_has_run_for_a_while(fakes: list[FakeServer]) -> None:
    now = 0.0
    server = ForkServer(lambda: now)
    server.start()
    server.start()
    now = 2 * IDLE_SECONDS  # the second was a long one; it has just ended
    server.rest()
    assert fakes[0].open
    now += IDLE_SECONDS
    server.rest()
    assert fakes[0].open
    now += 1.0
    server.rest()
    assert not fakes[0].open
