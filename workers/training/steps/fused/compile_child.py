"""The child that compiles one step function into inductor's on-disk cache.

    python -m workers.training.steps.fused.compile_child        a recipe on standard input

It builds the step function of the recipe on zeros, compiles it, says in one JSON line how it went,
and ends; at once when its standard input does.
"""

import json
import os
import sys
import threading
from typing import IO

import torch

from workers.training.steps.fused.executors import Compiled
from workers.training.steps.fused.recipe import Recipe, features_of

NICENESS = 10  # the trials come first


def main() -> int:
    """Compile the recipe on standard input."""
    os.nice(NICENESS)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compiling prints must not mix with the answer
    recipe = Recipe.parse(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    torch.set_num_threads(1)
    with answer:
        answer.write(json.dumps({"failure": _compile(recipe)}) + "\n")
    return 0


def _compile(recipe: Recipe) -> str | None:
    try:
        recipe.step(Compiled()).ready(recipe.rows, features_of(recipe))
    except Exception as error:  # noqa: BLE001  outermost: whatever it is, the answer carries it
        return f"{type(error).__name__}: {error}"[:500]
    return None


def _end_with(stream: IO[str]) -> None:
    stream.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
