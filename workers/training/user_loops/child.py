"""The process of one trial of a training loop.

    python -m workers.training.user_loops.child --commands FD --events FD

The first command says what to run. What the loop returns, or how it failed, is the last event.
Standard output and error are the loop's own and never the channel.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib.util
import inspect
import math
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from workers.priority import weigh_session
from workers.protocol.codec import LOOP_COMMANDS, LOOP_MESSAGES
from workers.protocol.messages import RunFailureKind
from workers.protocol.pipes import MessageWriter
from workers.protocol.user_loop import (
    LoopCommand,
    LoopEnd,
    LoopFailed,
    LoopFinished,
    LoopMessage,
    LoopOrder,
    LoopPruned,
    LoopStarted,
    LoopStopped,
)
from workers.training.user_loops.program import Program, ProgramFailedError
from workers.training.user_loops.report_log import ReportLog
from workers.training.user_loops.trial import DivergedError, Trial, numbers

MAX_TRACEBACK = 16_000
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class CommandReader:
    """Hears the trainer, from the beginning: its end is this process's, whatever the loop is at."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._early: list[LoopCommand] = []
        self._trial: Trial | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def attach(self, trial: Trial) -> None:
        """Tell the trial what was and will be said."""
        with self._lock:
            self._trial = trial
            for message in self._early:
                trial.tell(message)

    def _listen(self) -> None:
        for line in self._pipe:
            message = LOOP_COMMANDS.decode(line)
            with self._lock:
                if self._trial is None:
                    self._early.append(message)
                else:
                    self._trial.tell(message)
        os._exit(1)


def load(path: Path, source: bytes) -> Callable[..., Any]:
    """Run the module's file and return its `train`.

    Raises:
        TypeError: It has none.
    """
    sys.path.append(str(path.parent))  # for what the modules import of each other
    loader = importlib.util.spec_from_file_location(path.stem, path)
    if loader is None:
        raise ImportError(f"cannot import {path.name}")
    module = importlib.util.module_from_spec(loader)
    if path.stem not in sys.stdlib_module_names and path.stem not in sys.modules:
        # Under its own name: a process that the loop spawns must find what it is to run.
        sys.modules[path.stem] = module
    exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102  what --modules is for
    train = getattr(module, "train", None)
    if not callable(train):
        raise TypeError(f"{path.name} must have a function `train`")
    return train  # type: ignore[no-any-return]


def arguments(train: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter that `train` names after the trial, with its value.

    Raises:
        TypeError: It does not know one that was given, or lacks one that it needs.
    """
    _, *named = inspect.signature(train).parameters.values()
    if not named:
        return {}
    known = {one.name: one.default for one in named}
    strangers = [name for name in given if name not in known]
    if strangers:
        raise TypeError(f"train has no parameter {strangers[0]!r}; it has {', '.join(known)}")
    values = {**known, **given}
    missing = [name for name, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise TypeError(f"train needs the parameter {missing[0]!r}, which the study does not give")
    return values


def seed(number: int) -> None:
    """Seed every generator that is there."""
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def run(order: LoopOrder, channel: MessageWriter[LoopMessage], commands: CommandReader) -> None:
    """Train one trial and say how it ended."""
    path = Path(order.module)
    trial: Trial | None = None
    pid = os.getpid()
    try:
        train: Callable[..., Any]
        if order.program is not None:
            source, train, named = b"", Program(order.program, order.objectives), {}
            channel.say(LoopStarted(order.program.source_hash[:12]))
        else:
            source = path.read_bytes()
            channel.say(LoopStarted(hashlib.sha256(source).hexdigest()[:12]))
            seed(order.seed)
            train = load(path, source)
            seed(order.seed)  # again: the module may have drawn, or imported torch only now
            named = arguments(train, order.parameters)
            _set_threads(order.threads)  # after the module, which imports torch if anything does
        trial = Trial(
            named or order.parameters,
            device=order.device,
            seed=order.seed,
            checkpoint_dir=Path(order.checkpoint_dir),
            waits_for_pruner=order.prunable,
            report_log=ReportLog(Path(order.report_log)),
            reported=order.reported,
            save=lambda model: save(model, order.model, source.decode(), path.stem, named),
            say=channel.say,
        )
        commands.attach(trial)
        message: LoopEnd = _ended(trial, train(trial, **named), len(order.objectives))
    except DivergedError as error:
        message = LoopFailed(kind="diverged", message=str(error), step=error.step)
    except BaseException as error:  # noqa: BLE001  whatever a loop raises is its trial's failure
        message = _failed(error, trial)
    if os.getpid() != pid:
        os._exit(0)  # a fork of the loop's that came out here: the trial is not its to end
    channel.say(message)


def _ended(trial: Trial, returned: Any, objectives: int) -> LoopEnd:
    trial.repeat()
    values = trial.last_value if returned is None else numbers(returned)
    if trial.stopping:
        return _stopped(trial)
    if values is None:
        raise TypeError("train must return the objective, or report it with trial.report")
    if len(values) != objectives:
        raise TypeError(
            f"train must return as many numbers as the study has objectives, {objectives}, "
            f"but got {values}"
        )
    if not all(map(math.isfinite, values)):
        got = values[0] if len(values) == 1 else values
        return LoopFailed(
            kind="diverged",
            message=f"the final value must be a finite number, but got {got}",
            step=trial.step,
            record=trial.metrics,
        )
    return LoopFinished(values, trial.metrics)


def _stopped(trial: Trial) -> LoopStopped:
    return LoopStopped(trial.metrics, trial.has_saved())


def _failed(error: BaseException, trial: Trial | None) -> LoopEnd:
    if trial is not None and not trial.stopping and _is_pruned(error):
        return LoopPruned(trial.metrics)
    is_program = isinstance(error, ProgramFailedError)  # our traceback tells nothing of it
    text = "" if is_program else "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
    if trial is not None and trial.stopping:  # raising is as good a way to stop as returning
        return _stopped(trial)
    if is_program:
        step = trial.step if trial is not None else None
        memory = isinstance(error, ProgramFailedError) and error.memory
        kind: RunFailureKind = "out_of_memory" if memory else "user_code"
        # As a traceback, for what ended by itself: the same words again are the same failure.
        said = error.output if isinstance(error, ProgramFailedError) else None
        return LoopFailed(kind=kind, message=str(error), step=step, traceback=said)
    name = type(error).__name__
    memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
    return LoopFailed(
        kind="out_of_memory" if memory else "user_code",
        message=f"{name}: {error}" if str(error) else name,
        step=trial.step if trial is not None else None,
        traceback=text[-MAX_TRACEBACK:],
    )


def _is_pruned(error: BaseException) -> bool:
    """Return whether the loop raised Optuna's `TrialPruned`; Optuna may not be there."""
    optuna = sys.modules.get("optuna")
    return optuna is not None and isinstance(error, optuna.TrialPruned)


def save(
    model: Any, path: str | None, source: str, module: str, parameters: Mapping[str, Any]
) -> None:
    """Write a model's draft; the trainer keeps it if the trial is among the best."""
    if path is None:
        return
    # Not at the top: torch takes a second to import, and the loop has it already.
    from torch import Tensor  # noqa: PLC0415

    from workers.training.trials.checkpoints import write_tensors  # noqa: PLC0415

    tensors = model.state_dict() if hasattr(model, "state_dict") else dict(model)
    wrong = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if wrong:
        raise TypeError(f"a model is tensors by name, but {wrong[0]!r} is none")
    note = {
        "network": {"type": module, **parameters},
        "preprocessing": {},
        "files": {"loop.py": source},
    }
    # Clones: tied weights share memory, which the format refuses.
    write_tensors(Path(path), {k: tensor.clone() for k, tensor in tensors.items()}, note)


def _set_threads(threads: int) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def die_with_parent() -> None:
    """Have the system end this process with its parent's main thread, where it can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def main() -> None:
    """Run one trial and end."""
    parser = argparse.ArgumentParser(prog="workers.training.user_loops.child")
    parser.add_argument("--commands", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    options = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(options.commands, options.events)


def serve(commands: int, events: int) -> None:
    """Run the trial that the pipe `commands` orders, and end this process."""
    for descriptor in (commands, events):
        os.set_inheritable(descriptor, False)
    weigh_session()  # a new one: the trainer's weight is not inherited
    pipe = os.fdopen(commands, "rb")
    order = LOOP_COMMANDS.decode(pipe.readline())
    if not isinstance(order, LoopOrder):
        raise TypeError(f"the first command must be an order, but got {order}")
    writer = MessageWriter(os.fdopen(events, "wb"), LOOP_MESSAGES, orphan_code=1)
    run(order, writer, CommandReader(pipe))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(0)  # not a return: threads of the loop's must not keep the process


if __name__ == "__main__":
    main()
