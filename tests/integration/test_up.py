"""`tuner up` for real: processes start, are started again, and none is left behind."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tuner_service.client import TunerClient

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0  # the longest any one thing may take on a busy machine

STUDY = """
name: small
dataset: {name: iris}
network: {type: mlp, hidden_layers: 1, hidden_units: 8}
objective: {metric: val_accuracy, direction: maximize}
parameters: {learning_rate: {type: float, low: 1e-3, high: 1e-1, log: true}}
sampler: {type: random, seed: 1}
training: {epochs: EPOCHS}
budget: {trials: 4}
"""


def until(probe: Callable[[], Any], what: str) -> Any:
    """Return the first true answer of `probe`, polling."""
    deadline = time.monotonic() + SECONDS
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS:g} s"
        time.sleep(0.05)
    return answer


def environment(data_dir: Path) -> dict[str, str]:
    """The environment of a user who has set nothing but the data directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNER_")}
    return {**kept, "PYTHONPATH": str(ROOT), "TUNER_DATA_DIR": str(data_dir)}


def processes(data_dir: Path) -> list[psutil.Process]:
    """Return every process that works on this data directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            ours = process.environ().get("TUNER_DATA_DIR") == str(data_dir)
            if ours or any(str(data_dir) in word for word in process.cmdline()):
                found.append(process)
    return found


@dataclass
class Up:
    """A running `tuner up` and what it has printed."""

    data_dir: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    _new: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    _reader: threading.Thread = field(default_factory=threading.Thread)

    @classmethod
    def start(cls, data_dir: Path, *options: str) -> "Up":
        """Start it on a free port and wait until it is ready."""
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tuner_service.cli", "up", "--port", "0",
                "--workers", "1", "--device", "cpu", *options,
            ],
            env=environment(data_dir),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        up = cls(data_dir, process)
        up._reader = threading.Thread(target=up._read, daemon=True)
        up._reader.start()
        up.see("Ready.")
        up.url = re.search(r"http://\S+", "\n".join(up.lines)).group()  # type: ignore[union-attr]
        return up

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self._new.put(line.rstrip())

    def see(self, words: str) -> str:
        """Wait until a line with these words is printed, and return it."""
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(queue.Empty):
                line = self._new.get(timeout=max(deadline - time.monotonic(), 0.01))
                self.lines.append(line)
                if words in line:
                    return line
            assert time.monotonic() < deadline, f"no {words!r} in {self.lines}"

    def tuner(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command against it."""
        return subprocess.run(
            [sys.executable, "-m", "tuner_service.cli", *arguments],
            env={**environment(self.data_dir), "TUNER_URL": self.url},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def stop(self) -> int:
        """Ctrl-C, and the exit code."""
        return self.end(signal.SIGINT)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def child(self, words: str) -> psutil.Process:
        """Wait for a child with these words in its command, and return it."""

        def look() -> psutil.Process | None:
            for process in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if words in " ".join(process.cmdline()):
                        return process
            return None

        return until(look, f"a process {words!r}")

    def worker_listed(self) -> bool:
        """Return whether the API lists the worker that runs now."""
        with contextlib.suppress(httpx2.HTTPError):
            listed = httpx2.get(f"{self.url}/v1/workers").json()["items"]
            return self.child("-m workers").pid in {worker["pid"] for worker in listed}
        return False


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts `tuner up` on one data directory; whatever is left is killed at the end."""
    data_dir = tmp_path / "data"
    try:
        yield lambda *options: Up.start(data_dir, *options)
    finally:
        for process in processes(data_dir):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def write_study(directory: Path, epochs: int) -> str:
    path = directory / "study.yaml"
    path.write_text(STUDY.replace("EPOCHS", str(epochs)))
    return str(path)


def test_a_study_runs_and_ctrl_c_leaves_nothing(
    starting: Callable[..., Up], tmp_path: Path
) -> None:
    up = starting()
    # The page of the dashboard is there as well, and the data directory is private.
    assert httpx2.get(f"{up.url}/dashboard/", follow_redirects=True).status_code == 200
    assert up.data_dir.stat().st_mode & 0o777 == 0o700

    watched = up.tuner("submit", write_study(tmp_path, 3), "--watch")

    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.count("COMPLETE") == 4
    assert "Study small is completed. 4 of 4 trials done." in watched.stdout
    assert "learning_rate" in up.tuner("best", "small").stdout

    second = up.tuner("up", "--port", "0")
    assert second.returncode == 2
    assert f"`tuner up` runs already on {up.data_dir} (process {up.process.pid})" in second.stderr

    assert up.stop() == 0
    up.see("Stopped.")
    assert processes(up.data_dir) == []


def test_a_study_goes_on_after_it_was_stopped(starting: Callable[..., Up], tmp_path: Path) -> None:
    up = starting()
    with TunerClient(up.url) as client:
        study = client.submit(write_study(tmp_path, 2000))
        until(lambda: study.status().progress.leased, "a running trial")
        assert up.end(signal.SIGTERM) == 0
    assert processes(up.data_dir) == []

    again = starting()
    watched = again.tuner("status", "small", "--watch")

    assert watched.returncode == 0, watched.stderr
    with TunerClient(again.url) as client:
        trials = client.study("small").trials()
    assert [trial.state for trial in trials] == ["COMPLETE"] * 4  # handed back, not failed
    again.stop()


def test_what_dies_is_started_again_and_nothing_outlives_a_killed_up(
    starting: Callable[..., Up],
) -> None:
    up = starting()
    until(up.worker_listed, "the worker")

    worker = up.child("-m workers")
    worker.kill()
    assert "was killed by SIGKILL; starting it again" in up.see("Worker 1")
    until(up.worker_listed, "a new worker")
    assert not worker.is_running()

    up.child("serve").kill()
    up.see("API was killed by SIGKILL")
    until(up.worker_listed, "a new API")
    assert len(processes(up.data_dir)) >= 4  # with the API, the worker and its trainer

    up.end(signal.SIGKILL)

    until(lambda: not processes(up.data_dir), "the end of every process")
