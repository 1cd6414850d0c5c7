"""`make bench`: the quick benchmarks, one line each: name, measured, goal.

Each part runs in a process of its own, within ten minutes together, and prints its details as it
goes; the lines follow at the end. Falling short is said, and is no failure: the exit code is 0
unless a benchmark could not run.

A part is a module with `quick() -> list[Figure]`.
"""

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.rounds import Figure, one_thread

PARTS = ("main_job", "whole_study", "engine", "storage", "tpe_ask")
PART_SECONDS = 300

_CHILD = """
import importlib, json, sys
from dataclasses import asdict
module = importlib.import_module("benchmarks." + sys.argv[1])
found = [asdict(figure) for figure in module.quick()]
open(sys.argv[2], "w").write(json.dumps(found))
"""


def run_part(name: str) -> list[Figure] | None:
    """Run one part and return its figures; None: it could not run."""
    print(f"== {name}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        answer = Path(directory) / "figures.json"
        code = _finish([sys.executable, "-c", _CHILD, name, str(answer)])
        if code is None:
            print(f"{name}: not within {PART_SECONDS} s")
            return None
        print(f"   {time.monotonic() - start:.0f} s", flush=True)
        if code or not answer.exists():
            print(f"{name}: exit code {code}")
            return None
        return [Figure(**entry) for entry in json.loads(answer.read_text())]


def _finish(command: list[str]) -> int | None:
    """Run a command and return its exit code; None: it took too long, and all of it was ended."""
    process = psutil.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        return int(process.wait(PART_SECONDS))
    except psutil.TimeoutExpired:
        # A service that the part started has sessions of its own; a signal to ours is not enough.
        for left in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        return None


def main() -> int:
    """Run all parts, print their lines, and say what fell short."""
    one_thread()
    figures: list[Figure] = []
    broken = []
    for name in PARTS:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            continue
        found = run_part(name)
        if found is None:
            broken.append(name)
        figures += found or []
    print()
    for figure in figures:
        print(figure.line())
    short = [figure.name for figure in figures if not figure.reached]
    print(f"fell short: {'; '.join(short) if short else 'none'}")
    if broken:
        print(f"could not run: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
