"""The trainer as its supervisor meets it: a process behind two pipes."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import pytest

from tests.unit.training.builders import dataset, mlp, of, run_all, spec, start
from workers.protocol.codec import COMMANDS, TRAINER_MESSAGES
from workers.protocol.messages import (
    Allow,
    Command,
    Ready,
    RunId,
    Shutdown,
    Start,
    Stop,
    TrainerMessage,
)
from workers.training.engine.engine import Engine

ROOT = Path(__file__).parents[3]
SECONDS = 100.0
ENDLESS = spec(dataset=dataset("digits"), epochs=100_000)


class Child:
    """A trainer process, its command pipe and what it says."""

    ready: Ready

    def __init__(self, folder: Path, *arguments: str) -> None:
        commands_in, commands_out = os.pipe()
        events_in, events_out = os.pipe()
        command = [sys.executable, "-m", "workers.trainer", "--device", "cpu"]
        command += ["--commands", str(commands_in), "--events", str(events_out)]
        with (folder / "trainer.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(folder), *arguments],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                pass_fds=(commands_in, events_out),
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
        os.close(commands_in)
        os.close(events_out)
        self.log = folder / "trainer.log"
        self.commands = os.fdopen(commands_out, "wb")
        self.inbox: SimpleQueue[TrainerMessage | None] = SimpleQueue()
        self.reader = threading.Thread(target=self._read, args=(events_in,), daemon=True)
        self.reader.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as pipe:
            for line in pipe:
                self.inbox.put(TRAINER_MESSAGES.decode(line))
        self.inbox.put(None)

    def send(self, command: Command) -> None:
        self.commands.write(COMMANDS.encode(command))
        self.commands.flush()

    def hear(self, kind: str) -> Any:
        """Return the next message of this type."""
        while True:
            try:
                message = self.inbox.get(timeout=SECONDS)
            except Empty:
                raise AssertionError(f"no {kind}; log: {self.log.read_text()}") from None
            assert message is not None, f"the pipe ended; log: {self.log.read_text()}"
            if message.type == kind:
                return message

    def events_until(self, kind: str, trials: set[int]) -> list[Any]:
        """Return events up to the last of this kind for each of the trials."""
        events: list[Any] = []
        while trials - {e.run for e in events if e.type == kind}:
            events += self.hear("events").events
        return events


def close(child: Child) -> None:
    child.commands.close()
    if child.process.poll() is None:
        child.process.kill()
    child.process.wait(SECONDS)
    child.reader.join(SECONDS)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """A trainer of the test's own, which it may end."""
    one = Child(tmp_path)
    try:
        yield one
    finally:
        close(one)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """One trainer for several tests: starting it takes seconds. Each uses its own trial numbers."""
    one = Child(tmp_path_factory.mktemp("warm"))
    try:
        one.ready = one.hear("ready")
        yield one
    finally:
        close(one)


def test_says_what_it_is(warm: Child) -> None:
    assert warm.ready.queue == "cpu"
    assert warm.ready.pid == warm.process.pid
    assert warm.ready.lanes >= 1
    assert "torch" in warm.ready.versions


def test_trains_an_mlp_on_digits_from_start_message_to_result(warm: Child, tmp_path: Path) -> None:
    digits = spec(dataset=dataset("digits"), network=mlp(hidden_units=32), batch_size=32)
    model = tmp_path / "model.safetensors"
    first = start(1, digits, folder=tmp_path, model=str(model), keep_models=1)
    warm.send(Start([first, start(2, folder=tmp_path)]))
    events = warm.events_until("finished", {1, 2})
    mine = [e for e in events if e.run == 1]
    assert [e.type for e in mine] == ["started", "reported", "reported", "reported", "finished"]
    assert [e.step for e in mine[1:4]] == [1, 2, 3]
    final = mine[-1]
    assert final.values[0] > 0.85
    assert final.record["test_accuracy"] > 0.85
    assert final.model == str(model)
    assert model.exists()


def test_says_that_it_is_alive_while_it_has_nothing_to_do(warm: Child) -> None:
    alive = warm.hear("alive")
    assert alive.busy_seconds >= 0
    assert alive.memory_bytes > 1_000_000


def test_a_trial_with_bad_data_fails_and_the_next_one_trains(warm: Child, tmp_path: Path) -> None:
    missing = spec(dataset=dataset("csv", path="none.csv", target=-1))
    trials = [start(11, missing, folder=tmp_path), start(12, folder=tmp_path)]
    warm.send(Start(trials))
    events = warm.events_until("finished", {12})
    failed = next(e for e in events if e.type == "failed")
    assert failed.run == 11
    assert failed.failure.kind == "data"
    assert "none.csv" in failed.failure.message


def test_a_stop_is_heard_while_it_trains(warm: Child, tmp_path: Path) -> None:
    warm.send(Start([start(21, ENDLESS, folder=tmp_path)]))
    warm.events_until("reported", {21})
    warm.send(Stop([(RunId(21), "cancel")]))
    warm.events_until("stopped", {21})


def test_a_prunable_trial_goes_on_with_each_verdict(warm: Child, tmp_path: Path) -> None:
    warm.send(Start([start(31, folder=tmp_path, prunable=True)]))
    events: list[Any] = []
    for step in (1, 2, 3):
        events += warm.events_until("reported", {31})
        assert events[-1].step == step or events[-1].type == "finished"
        warm.send(Allow([(RunId(31), step)]))
    if events[-1].type != "finished":
        events += warm.events_until("finished", {31})
    assert [e.step for e in events if e.type == "reported"] == [1, 2, 3]


def test_fused_trials_are_the_plain_ones(warm: Child, tmp_path: Path) -> None:
    specs = {t: spec(dataset=dataset("digits"), seed=t, fuse=True) for t in range(41, 47)}
    warm.send(Start([start(t, s, folder=tmp_path) for t, s in specs.items()]))
    events = warm.events_until("finished", set(specs))
    plain = {t: s.model_copy(update={"fuse": False}) for t, s in specs.items()}
    expected = run_all(Engine("cpu"), [start(t, s, folder=tmp_path) for t, s in plain.items()])
    for trial in specs:
        losses = [
            [e.record["train_loss"] for e in of(found, trial, "reported")]
            for found in (events, expected)  # type: ignore[list-item]
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(e.backend for e in events if e.type == "finished")


def test_end_of_the_command_pipe_ends_it_while_it_trains_and_all_it_started(
    child: Child, tmp_path: Path
) -> None:
    child.hear("ready")
    cnn = {"type": "cnn", "conv_layers": 1, "channels": 2, "hidden_units": 8}  # has itself compiled
    fused = ENDLESS.model_copy(update={"fuse": True, "network": cnn})
    child.send(Start([start(t, fused, folder=tmp_path) for t in range(4)]))
    child.events_until("reported", {0})
    family = psutil.Process(child.process.pid).children(recursive=True)
    child.commands.close()
    assert child.process.wait(SECONDS) == 0
    _, left = psutil.wait_procs(family, timeout=SECONDS)
    assert not left


def test_an_orphan_that_still_starts_ends_at_once(tmp_path: Path) -> None:
    one = Child(tmp_path)
    maps = Path(f"/proc/{one.process.pid}/maps")
    try:
        while "libtorch" not in maps.read_text():  # seconds before it would be ready
            assert one.process.poll() is None, one.log.read_text()
        one.commands.close()
        assert one.process.wait(SECONDS) == 0
        assert one.inbox.get(timeout=SECONDS) is None  # it never came to say `ready`
    finally:
        close(one)


def test_shutdown_writes_checkpoints_and_exits(child: Child, tmp_path: Path) -> None:
    child.hear("ready")
    child.send(Start([start(t, ENDLESS, folder=tmp_path) for t in (1, 2)]))
    child.events_until("reported", {1})
    child.send(Shutdown())
    stopped = [e for e in child.events_until("stopped", {1, 2}) if e.type == "stopped"]
    assert {e.mode for e in stopped} == {"checkpoint"}
    assert child.process.wait(SECONDS) == 0
    step = next(e.step for e in stopped if e.run == 1)
    assert step >= 1
    assert list(tmp_path.glob("checkpoint-1.*.safetensors"))
