"""Runs the GPU's tests, and the engine's, on the fake GPU: `python -m tests.fake_gpu [...]`."""

import sys
from pathlib import Path

import pytest

from tests.fake_gpu import library

ROOT = Path(__file__).parents[2]
TRAINING = "tests/unit/training"
UNITS = (
    "test_engine.py", "test_engine_fused.py", "test_fused.py", "test_plain.py", "test_folds.py",
    "test_modules.py", "test_streaming.py",
)  # fmt: skip
# What these say holds for a CPU alone.
DESELECTED: tuple[str, ...] = ()


def main(arguments: list[str]) -> int:
    """Run pytest on the fake GPU; say why where it cannot be compiled."""
    missing = library.missing()
    if missing is not None:
        sys.stdout.write(f"tests on the fake GPU were skipped: {missing}\n")
        return 0
    given = [one for one in arguments if not one.startswith("-")]
    chosen = [] if given else ["tests/gpu", "tests/fake_gpu", *(f"{TRAINING}/{u}" for u in UNITS)]
    left_out = [f"--deselect={TRAINING}/{test}" for test in DESELECTED]
    plugin = ["-q", "-p", "tests.fake_gpu.plugin", *left_out]
    return int(pytest.main([*plugin, *arguments, *chosen]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
