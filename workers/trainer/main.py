"""The trainer: a process that holds torch, the device and the data, and trains what it is told.

    python -m workers.trainer --commands FD --events FD --device auto --data-dir DIR …

A message loop around the engine, speaking `workers.protocol`. One thread reads commands from
before torch is imported (`__main__`), so that the end of that pipe (the supervisor is gone)
ends the process at once, whatever it is doing; one says `alive`. Standard output and error belong
to user code and are never the channel.
"""

import argparse
import atexit
import gc
import logging
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from tuner_service.data_directory import DataDirectory
from workers.options import add_training_options, data_directories
from workers.priority import let_others_go_first
from workers.protocol.codec import TRAINER_MESSAGES
from workers.protocol.messages import (
    DEVICE_LOST_EXIT,
    Alive,
    Allow,
    Command,
    DeviceLost,
    Event,
    Events,
    ForgetResults,
    ProbePoints,
    ProbeRequest,
    Ready,
    Shutdown,
    Start,
    Stop,
    TrainerMessage,
)
from workers.protocol.pipes import Commands, MessageWriter
from workers.trainer.gpu_claim import claim
from workers.training.data import STREAMED, Room
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.steps.select import BackendSelector
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.failures import DeviceLostError
from workers.training.trials.records import device_name, versions
from workers.training.user_loops.pool import UserLoopPool

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 1.0
TRACING_SECONDS = 3.0  # about what tracing a network of some layers takes
WAIT_SECONDS = 0.5  # between looks at the command queue while there is nothing to train


class Busy:
    """How long the engine has been in its present call."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._since = None

    @property
    def seconds(self) -> float:
        """Seconds in the present call; 0 between calls."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


class Trainer:
    """The message loop: obey commands, advance the engine, say what happened."""

    def __init__(
        self,
        engine: Engine,
        commands: Commands,
        writer: MessageWriter[TrainerMessage],
        device: torch.device,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._device = device
        self._commands = commands
        self._busy = Busy()
        self._leaving = False

    def run(self) -> int:
        """Serve until told to shut down, or the device is gone; return the exit code."""
        self._writer.say(self._ready())
        threading.Thread(target=self._stay_alive, daemon=True).start()
        try:
            self._serve()
        except DeviceLostError as lost:
            logger.error("%s; trials in work: %s", lost, self._engine.turn)  # noqa: TRY400
            self._report(self._engine.last_words())
            self._writer.say(DeviceLost(turn=self._engine.turn, message=str(lost)))
            return DEVICE_LOST_EXIT
        return 0

    def _serve(self) -> None:
        while not self._leaving:
            self._obey()
            with self._busy:
                events = [] if self._leaving else self._engine.advance()
            self._report(events)
        with self._busy:
            events = self._engine.shutdown()
        self._report(events)

    def _ready(self) -> Ready:
        return Ready(
            pid=os.getpid(),
            device=device_name(self._device),
            queue="cuda" if self._device.type == "cuda" else "cpu",
            versions=versions(),
            lanes=self._engine.lanes,
            user_loops=self._engine.user_loops,
        )

    def _obey(self) -> None:
        """Do what was asked; wait for it while the engine has nothing to do."""
        try:
            while True:
                if self._engine.runnable:
                    message = self._commands.get_nowait()
                else:
                    message = self._commands.get(timeout=WAIT_SECONDS)
                self._do(message)
        except queue.Empty:
            pass

    def _do(self, command: Command | None) -> None:
        match command:
            case Start(trials):
                for start in trials:
                    self._engine.submit(start)
            case Stop(runs):
                for run, mode in runs:
                    self._engine.stop(run, mode)
            case Allow(steps):
                for run, step in steps:
                    self._engine.allow(run, step)
            case ProbePoints(study, specs):
                self._engine.probe(study, specs)
            case ForgetResults(study):
                self._engine.forget_results(study)
            case Shutdown():
                self._leaving = True
            case None:
                pass  # it was to wake

    def _report(self, events: Sequence[Event]) -> None:
        if events:
            self._writer.say(Events(list(events)))

    def _stay_alive(self) -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            self._writer.say(
                Alive(
                    busy_seconds=self._busy.seconds,
                    turn=self._engine.turn,
                    memory_bytes=resident_bytes(),
                )
            )


def resident_bytes() -> int:
    """Return this process's own resident memory; where the system does not tell, its peak.

    Without the pages of files: those of streamed data stay as long as nobody else wants memory.
    """
    try:
        _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (int(resident) - int(shared)) * resource.getpagesize()


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device: with `auto`, CUDA where torch can use one, else the CPU."""
    if name == "auto":
        name = "cuda" if _computes_on_gpu() else "cpu"
    return torch.device(name)


def _computes_on_gpu() -> bool:
    """Whether torch can use the GPU; for one that is too old it has no code, and says so late."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        first = str(error).strip().split("\n")[0]
        logger.warning("training on the CPU: torch cannot use the GPU: %s", first)
        return False
    return True


def warm_up(device: torch.device) -> None:
    """Take one step of nothing, so that the first trial does not pay for torch's late imports.

    The first optimizer of a process imports the compiler (1.1 s on a CPU), the first tensor on a
    GPU makes its context.
    """
    parameter = torch.nn.Parameter(torch.zeros(1, device=device))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(prog="workers.trainer.main")
    parser.add_argument("--events", type=int, required=True)
    add_training_options(parser)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--loops", type=int, default=1)
    parser.add_argument("--loop-stop-seconds", type=float, default=5.0)
    parser.add_argument("--progress-seconds", type=float, default=600.0)
    parser.add_argument("--memory-limit", type=int)
    parser.add_argument("--share-gpu", action="store_true")
    parser.add_argument("--data-limit", type=int)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], commands: Commands) -> None:
    """Run a trainer until its supervisor ends it."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # Ctrl-C on a terminal reaches every process of the group; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # one that a user's code left ticking
    device = pick_device(options.device)
    if device.type == "cpu":  # a GPU waits for its process
        let_others_go_first()
    elif not options.share_gpu:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        atexit.register(
            claim(DataDirectory(options.data_dir).gpus, uuid).close
        )  # held until the end
    # Compiled code outlives the trainer, and is shared by all of one data directory.
    compiled = options.data_dir / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    writer = MessageWriter(os.fdopen(options.events, "wb"), TRAINER_MESSAGES, orphan_code=0)
    selector = BackendSelector(device, cache=compiled, patience_seconds=TRACING_SECONDS)
    loops = UserLoopPool(
        str(device),
        modules_dir=options.modules,
        programs=(DataDirectory(options.data_dir).programs,),
        keeper=ModelKeeper(),
        capacity=options.loops,
        threads=options.threads,
        stop_seconds=options.loop_stop_seconds,
        progress_seconds=options.progress_seconds,
        memory_limit_bytes=options.memory_limit,
        wake=lambda: commands.put(None),
    )
    engine = Engine(
        device.type,
        settings=EngineSettings(
            data_dirs=data_directories(options),
            threads=options.threads,
            checkpoint_seconds=options.checkpoint_seconds,
            modules_dir=options.modules,
        ),
        room=Room(
            device,
            options.data_dir / STREAMED,
            limit_bytes=options.data_limit,
            process_bytes=options.memory_limit,
        ),
        steps=selector,
        user_loops=loops,
        ask=lambda study: writer.say(ProbeRequest(study)),
    )
    warm_up(device)
    gc.freeze()  # what torch brought stays: looking through it again took 2% of a study's time
    code = Trainer(engine, commands, writer, device).run()
    selector.close()
    logging.shutdown()
    # Not a return: threads of user code must not keep the process.
    os._exit(code)
