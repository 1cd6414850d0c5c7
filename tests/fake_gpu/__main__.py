"""Runs the GPU's tests, and the engine's, on the fake GPU: `python -m tests.fake_gpu [...]`."""

import sys
from pathlib import Path

import pytest

from tests.fake_gpu import library

ROOT = Path(__file__).parents[2]
TRAINING = "tests/unit/training"
UNITS = ("engine/test_engine.py", "engine/test_fused_groups.py")
# Without a kernel in the fake: the fused cells of gru and lstm. And what takes minutes there, whose
# faults test_memory_faults.py injects.
LEFT_OUT = "not (every_family and (gru or lstm)) and not out_of_memory_halves_the_group"


def main(arguments: list[str]) -> int:
    """Run pytest on the fake GPU; say why where it cannot be compiled."""
    missing = library.missing()
    if missing is not None:
        sys.stdout.write(f"tests on the fake GPU were skipped: {missing}\n")
        return 0
    given = [one for one in arguments if not one.startswith("-")]
    chosen = [] if given else ["tests/gpu", "tests/fake_gpu", *(f"{TRAINING}/{u}" for u in UNITS)]
    plugin = ["-q", "-p", "tests.fake_gpu.plugin", "-k", LEFT_OUT]
    return int(pytest.main([*plugin, *arguments, *chosen]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
