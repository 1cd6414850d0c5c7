"""`scripts/setup.sh` with a stand-in for Python: what it has pip install, and when it is done."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "setup.sh"
HAS_DRIVER = any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))
PYTHON = """#!/bin/sh
case "$*" in
    *urlopen*) exit $NO_INDEX ;;
    *"-m pip install"*) echo "$*" >> pip.log; exit $PIP_CODE ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def setup(checkout: Path, *arguments: str, index: bool = False, pip_code: int = 0) -> list[str]:
    """Run the script; return what pip was asked to install, and check that it ended as pip did."""
    done = subprocess.run(
        ["sh", "scripts/setup.sh", *arguments],
        cwd=checkout,
        env={**os.environ, "NO_INDEX": str(int(not index)), "PIP_CODE": str(pip_code)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == pip_code, done.stderr
    log = checkout / "pip.log"
    asked = [line.partition("-c constraints.txt ")[2] for line in log.read_text().splitlines()]
    log.unlink()
    return asked


def stamps(checkout: Path) -> set[str]:
    return {path.name for path in (checkout / ".venv").glob(".*stamp")}


def test_what_runs_comes_without_the_tools_for_working_on_it(checkout: Path) -> None:
    assert setup(checkout) == ["-e .[all,plots,parquet]"]
    assert stamps(checkout) == {".stamp"}
    assert setup(checkout, "dev") == ["-e .[all,plots,parquet,dev]"]
    assert stamps(checkout) == {".stamp", ".dev-stamp"}


@pytest.mark.skipif(HAS_DRIVER, reason="an NVIDIA driver is here: torch's build for CUDA is right")
def test_without_a_driver_torch_comes_from_the_index_of_cpu_builds(checkout: Path) -> None:
    assert setup(checkout, index=True) == [
        "--no-deps --index-url https://download.pytorch.org/whl/cpu torch",
        "-e .[all,plots,parquet]",
    ]


def test_an_installation_that_failed_is_taken_up_again(checkout: Path) -> None:
    setup(checkout, "dev", pip_code=1)
    assert stamps(checkout) == set()
    setup(checkout, "dev")
    assert stamps(checkout) == {".stamp", ".dev-stamp"}
