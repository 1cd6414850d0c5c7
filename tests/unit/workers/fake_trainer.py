"""A trainer without torch that speaks the real protocol and misbehaves as its specs tell it.

Run as a script with the flags of the real one. A spec is the trial's parameters:

    behaviour   normal | crash | kill | hang | deaf | nan | user_code | data | out_of_memory
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
from pathlib import Path
from typing import Any

VALUES = {
    "nan": "diverged",
    "user_code": "user_code",
    "data": "data",
    "out_of_memory": "out_of_memory",
}


class FakeTrainer:
    def __init__(self, events_fd: int, lanes: int) -> None:
        self.events = os.fdopen(events_fd, "wb")
        self.lock = threading.Lock()
        self.lanes = lanes
        self.commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.trials: dict[int, dict[str, Any]] = {}

    def say(self, message: dict[str, Any]) -> None:
        with self.lock:
            self.events.write(json.dumps(message).encode() + b"\n")
            self.events.flush()

    def event(self, trial: int, kind: str, **more: Any) -> None:
        self.say({"type": "events", "events": [{"trial": trial, "kind": kind, **more}]})

    def run(self) -> None:
        self.say(
            {
                "type": "ready",
                "pid": os.getpid(),
                "device": "cpu",
                "queue": "cpu",
                "versions": {},
                "lanes": self.lanes,
            }
        )
        while True:
            self.obey(block=not self.trials)
            for trial in list(self.trials):
                self.advance(trial)
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

    def command(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "start":
                for start in message["trials"]:
                    step = 0 if start["resume"] is None else self.checkpoint_step(start)
                    self.trials[start["trial"]] = {
                        **start, "step": step, "verdict": step, "due": 0.0, "new": True,
                    }  # fmt: skip
            case "stop":
                for trial, mode in message["trials"]:
                    self.stop(trial, mode)
            case "forget":
                pass
            case "verdicts":
                for trial, step in message["trials"]:
                    if trial in self.trials:
                        self.trials[trial]["verdict"] = step
            case "shutdown":
                for trial in list(self.trials):
                    self.stop(trial, "checkpoint")
                if not self.trials:
                    sys.exit(0)

    def stop(self, trial: int, mode: str) -> None:
        state = self.trials.get(trial)
        if state is None or state["spec"].get("behaviour") == "deaf":
            return
        del self.trials[trial]
        more: dict[str, Any] = {"mode": mode, "step": state["step"], "record": {}}
        if mode == "checkpoint":
            self.write_checkpoint(state)
        if mode in ("prune", "timeout") and state["step"]:
            more["values"] = [state["spec"].get("value", 1.0)]
        self.event(trial, "stopped", **more)

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        Path(state["checkpoint"] + ".json").write_text(json.dumps({"step": state["step"]}))

    def checkpoint_step(self, start: dict[str, Any]) -> int:
        try:
            return int(json.loads(Path(start["checkpoint"] + ".json").read_text())["step"])
        except FileNotFoundError:
            return 0

    def advance(self, trial: int) -> None:
        state = self.trials[trial]
        spec = state["spec"]
        if state["new"]:
            if spec.get("queued") and next(iter(self.trials)) != trial:
                return
            state["new"] = False
            self.event(trial, "started")
        if time.monotonic() < state["due"]:
            return
        if state["prunable"] and state["step"] > state["verdict"]:
            return
        if state["step"] + 1 >= spec.get("at", 2) and self.misbehave(trial, spec):
            return
        state["step"] += 1
        state["due"] = time.monotonic() + spec.get("seconds", 0.0)
        value = spec.get("value", 1.0)
        self.event(trial, "report", step=state["step"], value=value, record={"loss": value})
        if spec.get("checkpoints"):
            self.write_checkpoint(state)
            self.event(trial, "checkpointed", step=state["step"])
        if state["step"] >= spec.get("epochs", 3) and spec.get("behaviour") != "deaf":
            del self.trials[trial]
            if state["model"]:
                Path(state["model"]).write_bytes(b"weights")
            self.event(
                trial, "finished", values=[value], record={}, backend="plain", model=state["model"]
            )

    def misbehave(self, trial: int, spec: dict[str, Any]) -> bool:
        behaviour = spec.get("behaviour", "normal")
        match behaviour:
            case "crash":
                sys.stderr.write("the fake trainer crashes now\n")
                sys.stderr.flush()
                os._exit(3)
            case "crash_once":
                marker = Path(spec["marker"])
                if not marker.exists():
                    marker.touch()
                    os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case "nan" | "user_code" | "data" | "out_of_memory":
                del self.trials[trial]
                failure = {"kind": VALUES[behaviour], "message": f"{behaviour} here", "step": 1}
                self.event(trial, "failed", failure=failure, record={})
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
                trainer.commands.put(json.loads(line))
        os._exit(0)

    def breathe() -> None:
        while True:
            trainer.say({"type": "alive", "busy_seconds": 0.0, "turn": [], "memory_bytes": 0})
            time.sleep(0.2)

    if options.never_ready:
        sys.exit("no device here")
    threading.Thread(target=listen, daemon=True).start()
    threading.Thread(target=breathe, daemon=True).start()
    trainer.run()


if __name__ == "__main__":
    main()
