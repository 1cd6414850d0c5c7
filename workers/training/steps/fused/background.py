"""Compiling in a child process, while the trainer goes on with the traced graph.

The child (compile_child.py) leaves its result in inductor's on-disk cache, from where the trainer
loads it in about a second.
"""

import json
import os
import subprocess
import sys
from typing import Any

# Of inductor's locks on its cache: where two workers compile the same function, the second waits
# for the first, however long, rather than give up; it trains on meanwhile.
WAIT_FOR_LOCKS = {"TORCHINDUCTOR_FILE_LOCK_TIMEOUT": "-1"}


class Job:
    """A child at work on one recipe."""

    def __init__(self, recipe: str) -> None:
        # The pipe to its standard input stays open: the child ends when it closes, so that it
        # never outlives the trainer.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.training.steps.fused.compile_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **WAIT_FOR_LOCKS},
        )
        if self._process.stdin is not None:  # it is a pipe, as asked
            self._process.stdin.write(recipe.encode() + b"\n")
            self._process.stdin.flush()
        self._answer: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether the child has ended."""
        return self._process.poll() is not None

    @property
    def failure(self) -> str | None:
        """Why the child did not compile; None if it did. Waits for its end."""
        if self._answer is None:
            out, _ = self._process.communicate()
            self._answer = _parse(out) or {
                "failure": f"the compiling process ended with code {self._process.returncode}"
            }
        failure = self._answer["failure"]
        return None if failure is None else str(failure)


class Precompiler:
    """Starts the children, one per recipe."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def start(self, recipe: str) -> Job:
        """Return the job for a recipe, started unless it was before."""
        if recipe not in self._jobs:
            self._jobs[recipe] = Job(recipe)
        return self._jobs[recipe]

    def close(self) -> None:
        """End every child."""
        for job in self._jobs.values():
            _ = job.failure  # closes its standard input, and with it the child
        self._jobs.clear()


def _parse(answer: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(answer.splitlines()[-1]))
    except (IndexError, ValueError):
        return None
