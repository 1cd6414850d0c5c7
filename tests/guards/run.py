"""Take each guard out of a copy of the source, and see whether its tests notice.

    python -m tests.guards [--only TEXT] [--jobs N] [--table]

First all of these tests run with every guard in place, and must pass. Then one line for each guard,
`CAUGHT` with the tests that failed, or `MISSED` with what was not noticed; the exit status is 1 if
any was missed. The checkout is not touched.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.guards.guard import ROOT, Guard
from tests.guards.table import GUARDS

COPIED = ("tuner_service", "workers", "migrations", "tests", "pyproject.toml")
TEST_SECONDS = 120
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S+)", re.MULTILINE)
WHERE = "import tuner_service, workers; print(tuner_service.__file__, workers.__file__)"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a guard's tests without it: which failed, and what ought to have."""

    guard: Guard
    failed: tuple[str, ...]
    missed: tuple[str, ...]

    def __str__(self) -> str:
        """Return a report."""
        head = f"{'MISSED' if self.missed else 'CAUGHT'}  {self.guard.invariant}  {self.guard.what}"
        lines = [f"        {test}" for test in self.failed]
        return "\n".join([head, *lines, *(f"     !  {why}" for why in self.missed)])


def judge(guard: Guard) -> Verdict:
    """Run a guard's tests on a copy of the source that lacks it."""
    with tempfile.TemporaryDirectory(prefix="tuner-guard-") as name:
        root = Path(name) / "source"
        copy(root)
        check_copy(root)
        for edit in guard.edits:
            edit.apply(root)
        code, output = run_tests(root, guard.caught_by)
    failed = tuple(FAILED.findall(output))
    if code not in (0, 1):  # 1: tests failed; any other: they could not be run
        return Verdict(guard, failed, (f"pytest ended with {code}: {output[-2000:]}",))
    return Verdict(guard, failed, tuple(unnoticed(guard, failed)))


def failing_already(guards: Sequence[Guard]) -> list[str]:
    """Return which of the guards' tests fail on an untouched copy: they can tell nothing."""
    with tempfile.TemporaryDirectory(prefix="tuner-guard-") as name:
        root = Path(name) / "source"
        copy(root)
        check_copy(root)
        code, output = run_tests(root, sorted({test for g in guards for test in g.caught_by}))
    return FAILED.findall(output) or ([output[-2000:]] if code else [])


def unnoticed(guard: Guard, failed: Sequence[str]) -> list[str]:
    """Return which of a guard's tests did not fail, on which database."""
    missed = []
    for test in guard.caught_by:
        mine = [one for one in failed if one == test or one.startswith(f"{test}[")]
        if not mine:
            missed.append(f"{test} passed")
        for dialect in guard.on:
            if mine and not any(dialect in one.rpartition("[")[2] for one in mine):
                missed.append(f"{test} passed on {dialect}")
    return missed


def copy(root: Path) -> None:
    """Copy the source and the tests."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name)  # what is compiled already, too: it stays valid
        else:
            shutil.copy(source, root / name)


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests of a copy; return pytest's exit code and what it said."""
    ran = python(
        root,
        *("-m", "pytest", "-q", "-rfE", "--tb=no", "--no-header", "-p", "pytest_timeout"),
        *("-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}", *tests),
    )
    return ran.returncode, ran.stdout + ran.stderr


def check_copy(root: Path) -> None:
    """Raise RuntimeError if not the copy would be tested, but an installed package."""
    found = python(root, "-c", WHERE).stdout.split()
    if not found or not all(Path(file).is_relative_to(root.resolve()) for file in found):
        raise RuntimeError(f"the copy in {root} must be tested, but Python finds {found}")


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on a copy."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # to load them takes longer than most tests
        },
        capture_output=True,
        text=True,
        check=False,
    )


def table() -> str:
    """Return the guards as the table of `docs/reliability.md`."""
    rows = [
        f"| {guard.invariant} | {guard.what} | {', '.join(f'`{name}`' for name in guard.names)}"
        f"{_where(guard)} |"
        for guard in GUARDS
    ]
    return "\n".join(["| | guard | caught by |", "|---|---|---|", *rows])


def _where(guard: Guard) -> str:
    only = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
    return f" ({only[guard.on[0]]})" if len(guard.on) == 1 else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge every guard; return 1 if one was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("--only", default="", help="guards whose line has this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the documentation's table")
    options = parser.parse_args(arguments)
    if options.table:
        sys.stdout.write(table() + "\n")
        return 0
    chosen = [g for g in GUARDS if options.only in f"{g.invariant} {g.what}"]
    if broken := failing_already(chosen):
        sys.stdout.write("these fail with every guard in place:\n" + "\n".join(broken) + "\n")
        return 1
    missed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(judge, chosen):
            missed += bool(verdict.missed)
            sys.stdout.write(f"{verdict}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen)} guards, {missed} missed\n")
    return 1 if missed or not chosen else 0
