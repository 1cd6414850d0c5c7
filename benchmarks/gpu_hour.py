"""The first hour on a real GPU: tests, checks and benchmarks, one after another, and a table.

    python -m benchmarks.gpu_hour [--rounds 5]          (`make gpu-hour`)

Each step is a process of its own: one that breaks the GPU for good ends with it. Without a GPU
nothing runs. docs/first-gpu-hour.md says what each step is for.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner_service.up.machine import device_report

LOG = Path("gpu-hour.log")
STEP_SECONDS = 1800.0
ONE_STEP = "tests/gpu/test_fused.py::test_recording_a_graph_leaves_the_state_alone"


@dataclass(frozen=True)
class Step:
    """One line of the table.

    Attributes:
        expected: Exit code of success.
    """

    name: str
    command: tuple[str, ...]
    expected: int = 0


def steps(rounds: int) -> list[Step]:
    """Return what is run, in this order."""
    python, tests = sys.executable, (sys.executable, "-m", "pytest", "-q")
    made = [
        Step("tests on the GPU", (*tests, "-m", "gpu")),
        Step("device-side assert", (python, "-m", "benchmarks.gpu_checks", "assert")),
        Step("launches per step", (python, "-m", "benchmarks.gpu_checks", "launches")),
        Step("compiled by a child", (python, "-m", "benchmarks.gpu_checks", "cache")),
    ]
    if shutil.which("compute-sanitizer"):
        command = ("compute-sanitizer", "--error-exitcode", "9", *tests, ONE_STEP)
        made.append(Step("compute-sanitizer", command))
    bench = (python, "-m", "benchmarks.engine", "--cuda", "--rounds", str(rounds))
    return [*made, Step("engine against the usual loop", bench)]


def run(step: Step) -> tuple[bool, float, str]:
    """Return whether the step succeeded, its seconds and its last line."""
    begun = time.monotonic()
    try:
        done = subprocess.run(
            step.command, capture_output=True, text=True, timeout=STEP_SECONDS, check=False
        )
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, said = -1, f"no end within {STEP_SECONDS:g} s"
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n== {step.name}: {' '.join(step.command)}\n{said}")
    lines = [line for line in said.splitlines() if line.strip()] or [""]
    return code == step.expected, time.monotonic() - begun, lines[-1]


def main(arguments: Sequence[str]) -> int:
    """Run every step; return 1 if one failed, or if there is no GPU."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_hour")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    found = device_report()
    if not found["gpus"]:
        print(f"not measured: torch can use no GPU ({found.get('reason') or 'none is there'})")
        return 1
    print(f"{', '.join(found['gpus'])}; torch {found['version']}; all output in {LOG}")
    failed = 0
    for step in steps(options.rounds):
        good, seconds, last = run(step)
        failed += not good
        print(f"{step.name:32} {'ok' if good else 'FAILED':7} {seconds:7.0f} s  {last[:80]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
