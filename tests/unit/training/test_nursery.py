"""Loop trials that are forked off a warm process: each as alone as if it had been started anew."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.test_loops import LAST_WORDS, SECONDS, kind, loops, start, until
from workers.training.loops.loops import LoopTrials

PROBE = """
import os, sys, torch
print("torch" in sys.modules, os.getsid(0) == os.getpid(), torch.get_num_threads())
def train(trial, x):
    trial.log_metrics(left=getattr(torch, "left_behind", 0), inherited=os.environ.get("LEFT", ""))
    torch.left_behind, os.environ["LEFT"] = 1, "yes"
    os.chdir("/")
    {body}
"""


def events_of(trials: LoopTrials, folder: Path, trial: int) -> list[Any]:
    trials.submit(start(folder, trial=trial))
    return until(trials, lambda events: any(e["kind"] in LAST_WORDS for e in events))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def warm(folder: Path) -> Iterator[LoopTrials]:
    """Loop trials whose template is ready."""
    trials = loops(folder, "def train(trial, x): return 1", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # as a worker sets them
            patch.setenv(name, "1")
        deadline = time.monotonic() + 2 * SECONDS
        for trial in itertools.count(100):
            events_of(trials, folder, trial)
            if is_forked(trials):
                break
            assert time.monotonic() < deadline, "the template did not get ready"
            time.sleep(0.2)
    yield trials
    trials.shutdown()


def is_forked(trials: LoopTrials) -> bool:
    template = trials._nursery._template
    return template is not None and template._ready


def test_forks_are_processes_of_their_own(warm: LoopTrials, folder: Path) -> None:
    source = PROBE.format(body="return trial.seed + torch.rand(1).item()")
    (folder / "loop.py").write_text(source)
    ends = [events_of(warm, folder, trial)[-1] for trial in (1, 2)]
    assert [end["record"]["left"] for end in ends] == [0, 0]
    assert [end["record"]["inherited"] for end in ends] == ["", ""]
    assert ends[0]["values"] == ends[1]["values"]  # the seed is set in each
    assert (folder / "1.log").read_text() == "True True 1\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os._exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("sys.exit(2)", "SystemExit: 2"),
    ],
)
def test_a_fork_that_dies_fails_its_trial_and_the_next_one_runs(
    warm: LoopTrials, folder: Path, body: str, message: str
) -> None:
    (folder / "loop.py").write_text(PROBE.format(body=body))
    failed = events_of(warm, folder, 1)[-1]
    assert failed["kind"] == "failed"
    assert message in failed["failure"]["message"]
    (folder / "loop.py").write_text(PROBE.format(body="return 4"))
    assert events_of(warm, folder, 2)[-1]["values"] == [4.0]


def test_what_a_fork_leaves_behind_is_ended(warm: LoopTrials, folder: Path) -> None:
    body = "import subprocess\n    return subprocess.Popen(['sleep', '60']).pid"
    (folder / "loop.py").write_text(PROBE.format(body=body))
    (left,) = events_of(warm, folder, 1)[-1]["values"]
    deadline = time.monotonic() + 2.0
    while is_alive(int(left)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_fork_that_goes_on_is_killed(warm: LoopTrials, folder: Path) -> None:
    spin = "trial.report(1, 1)\n    while True: pass"
    (folder / "loop.py").write_text(PROBE.format(body=spin))
    warm.submit(start(folder))
    until(warm, kind("report"))
    warm._stop_seconds = 0.1
    warm.stop(1, "cancel")
    assert until(warm, kind("stopped"))[-1]["mode"] == "cancel"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_forks_end_with_their_template_which_goes_when_idle(
    warm: LoopTrials, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of this file: it leaves no template behind."""
    spin = "trial.report(1, 1)\n    while True: pass"
    (folder / "loop.py").write_text(PROBE.format(body=spin))
    warm.submit(start(folder))
    until(warm, kind("report"))
    pid, template = warm._runs[1].process.pid, warm._nursery._template
    assert template is not None
    os.kill(template._process.pid, signal.SIGKILL)
    assert "SIGKILL" in until(warm, kind("failed"))[-1]["failure"]["message"]
    assert not is_alive(pid)
    (folder / "loop.py").write_text(PROBE.format(body="return 4"))
    assert events_of(warm, folder, 2)[-1]["values"] == [4.0]  # in a process started anew
    monkeypatch.setattr("workers.training.loops.nursery.IDLE_SECONDS", 0.0)
    warm.advance()
    assert warm._nursery._retired == []
    events_of(warm, folder, 3)
    assert warm._nursery._template is None  # one trial alone needs none
