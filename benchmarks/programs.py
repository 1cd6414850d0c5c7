"""What a trial costs that is a program: over running its command by hand, and at once.

By hand and as a trial take turns. The trials run in the trainer's pool of loops, which a worker
would own: what is beyond it (claiming, flushing) is the same for every kind of trial. Then trials
of a program that does nothing run, as many at once as there are cores; how busy those are is
measured.

    python -m benchmarks.programs [--rounds 20] [--trials 1000]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.rounds import Figure, interleave, one_thread, report
from workers.protocol.messages import RunId, TrialStart
from workers.training.trials.best_models import ModelKeeper
from workers.training.user_loops.pool import UserLoopPool

OVERHEAD_GOAL_SECONDS = 0.15
BUSY_GOAL = 0.9
COMMAND = (sys.executable, "-S", "-c", "print('score=1')")


def trial(folder: Path, number: int) -> TrialStart:
    """Return a trial of the program."""
    spec = {
        "kind": "loop",
        "module": "bench.run",
        "parameters": {},
        "objective": [["score", "maximize"]],
        "seed": 0,
    }
    return TrialStart(
        run=RunId(number),
        number=number,
        study=1,
        spec=spec,
        checkpoint=str(folder / f"{number}"),
        resume=None,
        model=None,
        keep_models=0,
        prunable=False,
        exclusive=False,
        log=str(folder / f"{number}.log"),
    )


def finish(pool: UserLoopPool, count: int) -> None:
    """Advance until so many trials have a value."""
    done = 0
    while done < count:
        for event in pool.advance():
            if event.type == "failed":
                raise RuntimeError(event)
            done += event.type == "finished"
        time.sleep(0.001)


def measure(rounds: int, trials: int) -> list[Figure]:
    """Return the overhead of one trial, and how busy many keep the cores."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "bench").mkdir()
        project = {"commands": {"run": {"run": list(COMMAND)}}}
        (folder / "bench" / "tuner.yaml").write_text(json.dumps(project))
        pool = UserLoopPool("cpu", modules_dir=None, programs=(folder,), keeper=ModelKeeper())
        numbers = iter(range(1, 10**9))

        def as_trial() -> float:
            start = time.perf_counter()
            pool.submit(trial(folder, next(numbers)))
            finish(pool, 1)
            return time.perf_counter() - start

        def by_hand() -> float:
            start = time.perf_counter()
            subprocess.run(COMMAND, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        for _ in range(3):  # from the second on they are forked; the server takes a while
            as_trial()
            time.sleep(1.0)
        taken = interleave({"trial": as_trial, "by hand": by_hand}, rounds)
        over = [a - b for a, b in zip(taken["trial"], taken["by hand"], strict=True)]
        pool.capacity = cores
        begun = time.perf_counter()
        psutil.cpu_percent()
        for _ in range(trials):
            pool.submit(trial(folder, next(numbers)))
        finish(pool, trials)
        busy, seconds = psutil.cpu_percent() / 100, time.perf_counter() - begun
        pool.shutdown()
    rate = f"{trials / seconds:.0f} trials per second on {cores} cores"
    return [
        Figure(
            "program as a trial, over by hand",
            statistics.median(over),
            OVERHEAD_GOAL_SECONDS,
            "s",
            at_least=False,
        ),
        Figure(f"cores busy with {trials} programs that do nothing", busy, BUSY_GOAL, note=rate),
    ]


def quick() -> list[Figure]:
    """Return the figures of a short run."""
    return measure(rounds=10, trials=100)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    one_thread()
    report(measure(options.rounds, options.trials))


if __name__ == "__main__":
    main()
