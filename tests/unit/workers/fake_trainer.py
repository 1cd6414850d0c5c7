"""A trainer without torch that speaks the real protocol and misbehaves as its specs tell it.

Run as a script with the flags of the real one. A spec is the trial's parameters:

    behaviour   normal | crash | kill | hang | deaf | diverged | user_code | data | out_of_memory
                | lose_device
                | crash_once (needs `marker`, a path)
    epochs      how many (default 3); seconds: of each epoch (default 0)
    value       reported at every step, and the final value (default 1.0)
    at          the step before which it misbehaves (default 2)
    queued      wait for the end of every trial that began before, as in a group of one lane

`hang` stops everything but `alive`; `deaf` trains for ever and never stops when asked.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tuner_service.files import private_folder
from workers.protocol.codec import COMMANDS, TRAINER_MESSAGES
from workers.protocol.messages import (
    DEVICE_LOST_EXIT,
    Alive,
    Allow,
    Checkpointed,
    Command,
    DeviceLost,
    Event,
    Events,
    Failed,
    Finished,
    Ready,
    Reported,
    RunFailure,
    RunId,
    Shutdown,
    Start,
    Started,
    Stop,
    StopMode,
    Stopped,
    TrainerMessage,
    TrialStart,
)

FAILING = Literal["diverged", "user_code", "data", "out_of_memory"]


@dataclass
class Run:
    """A trial of the fake trainer's."""

    start: TrialStart
    step: int
    allowed_step: int
    due: float = 0.0
    new: bool = True


class FakeTrainer:
    def __init__(self, events_fd: int, lanes: int) -> None:
        self.events = os.fdopen(events_fd, "wb")
        self.lock = threading.Lock()
        self.lanes = lanes
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.runs: dict[RunId, Run] = {}

    def say(self, message: TrainerMessage) -> None:
        with self.lock:
            self.events.write(TRAINER_MESSAGES.encode(message))
            self.events.flush()

    def tell(self, event: Event) -> None:
        self.say(Events([event]))

    def serve(self) -> None:
        self.say(
            Ready(
                pid=os.getpid(),
                device="cpu",
                queue="cpu",
                versions={},
                lanes=self.lanes,
                user_loops=self.lanes,
            )
        )
        while True:
            self.obey(block=not self.runs)
            for run in list(self.runs):
                self.advance(run)
            time.sleep(0.002)

    def obey(self, *, block: bool) -> None:
        try:
            while True:
                self.command(
                    self.commands.get(timeout=0.5) if block else self.commands.get_nowait()
                )
                block = False
        except queue.Empty:
            pass

    def command(self, command: Command) -> None:
        match command:
            case Start(trials):
                for start in trials:
                    step = 0 if start.resume is None else self.checkpoint_step(start)
                    self.runs[start.run] = Run(start, step, step)
            case Stop(runs):
                for key, mode in runs:
                    self.stop(key, mode)
            case Allow(passed):
                for key, step in passed:
                    if key in self.runs:
                        self.runs[key].allowed_step = step
            case Shutdown():
                for key in list(self.runs):
                    self.stop(key, "checkpoint")
                if not self.runs:
                    sys.exit(0)

    def stop(self, key: RunId, mode: StopMode) -> None:
        run = self.runs.get(key)
        if run is None or run.start.spec.get("behaviour") == "deaf":
            return
        del self.runs[key]
        if mode == "checkpoint":
            self.write_checkpoint(run)
        values = None
        if mode in ("prune", "timeout") and run.step:
            values = [run.start.spec.get("value", 1.0)]
        self.tell(Stopped(run=key, mode=mode, step=run.step, values=values))

    def write_checkpoint(self, run: Run) -> None:
        private_folder(Path(run.start.checkpoint).parent)
        Path(run.start.checkpoint + ".json").write_text(json.dumps({"step": run.step}))

    def checkpoint_step(self, start: TrialStart) -> int:
        try:
            return int(json.loads(Path(start.checkpoint + ".json").read_text())["step"])
        except FileNotFoundError:
            return 0

    def advance(self, key: RunId) -> None:
        run = self.runs[key]
        spec = run.start.spec
        if run.new:
            if spec.get("queued") and next(iter(self.runs)) != key:
                return
            run.new = False
            self.tell(Started(run=key))
        if time.monotonic() < run.due:
            return
        if run.start.prunable and run.step > run.allowed_step:
            return
        if run.step + 1 >= spec.get("at", 2) and self.misbehave(run):
            return
        run.step += 1
        run.due = time.monotonic() + spec.get("seconds", 0.0)
        value = spec.get("value", 1.0)
        self.tell(Reported(run=key, step=run.step, value=value, record={"loss": value}))
        if spec.get("checkpoints"):
            self.write_checkpoint(run)
            self.tell(Checkpointed(run=key, step=run.step))
        if run.step >= spec.get("epochs", 3) and spec.get("behaviour") != "deaf":
            del self.runs[key]
            model = run.start.model
            if model:
                private_folder(Path(model).parent)
                Path(model).write_bytes(b"weights")
            self.tell(Finished(run=key, values=[value], backend="plain", model=model))

    def misbehave(self, run: Run) -> bool:
        spec = run.start.spec
        behaviour = spec.get("behaviour", "normal")
        match behaviour:
            case "crash":
                sys.stderr.write("the fake trainer crashes now\n")
                sys.stderr.flush()
                os._exit(3)
            case "lose_device":
                self.say(DeviceLost(turn=[run.start.run], message="no GPU any more"))
                os._exit(DEVICE_LOST_EXIT)
            case "crash_once":
                marker = Path(spec["marker"])
                if not marker.exists():
                    marker.touch()
                    os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
        if behaviour in get_args(FAILING):
            del self.runs[run.start.run]
            failure = RunFailure(behaviour, f"{behaviour} here", 1)
            self.tell(Failed(run=run.start.run, failure=failure))
            return True
        return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--commands", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--never-ready", action="store_true")
    options = parser.parse_args()
    trainer = FakeTrainer(options.events, options.lanes)

    def listen() -> None:
        with os.fdopen(options.commands, "rb") as pipe:
            for line in pipe:
                trainer.commands.put(COMMANDS.decode(line))
        os._exit(0)

    def breathe() -> None:
        while True:
            trainer.say(Alive(busy_seconds=0.0, turn=[], memory_bytes=0))
            time.sleep(0.2)

    if options.never_ready:
        sys.exit("no device here")
    threading.Thread(target=listen, daemon=True).start()
    threading.Thread(target=breathe, daemon=True).start()
    trainer.serve()


if __name__ == "__main__":
    main()
