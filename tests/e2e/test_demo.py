"""`make demo` when it is interrupted, and when it cannot run: no process stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.service import until

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).resolve().parents[2]


class Demo:
    """One run of the demonstration."""

    def __init__(self, directory: Path, **environment: str) -> None:
        kept = {name: v for name, v in os.environ.items() if not name.startswith("TUNER_")}
        self.log = directory / "demo.log"
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, str(ROOT / "scripts" / "demo.py")],
                env={**kept, "TUNER_DATA_DIR": str(directory / "data"), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.family: list[psutil.Process] = []

    def printed(self) -> str:
        """Return what it has printed."""
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed something."""
        until(lambda: text in self.printed(), seconds=240.0, what=f"{text!r} from the demo")
        self.family = self.process.children(recursive=True)

    def end(self) -> int:
        """Wait for its end and return the exit code."""
        return int(self.process.wait(120.0))

    def left(self) -> list[psutil.Process]:
        """Return its processes that are still there."""
        return psutil.wait_procs(self.family, timeout=5.0)[1]

    def kill(self) -> None:
        """End whatever is left."""
        for process in [*self.family, self.process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.kill()


def test_ctrl_c_stops_everything(demo: Demo) -> None:
    demo.wait_for("Submitting")
    assert len(demo.family) >= 3, "the API, a worker and a trainer at least"
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130
    assert not demo.left()
    assert "Stopped." in demo.printed()
    assert "Traceback" not in demo.printed()


def test_a_service_that_cannot_start_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    demo = Demo(tmp_path)
    try:
        assert demo.end() == 1
        assert "demo: `tuner up` ended with exit code" in demo.printed()
        assert "Traceback" not in demo.printed()
    finally:
        demo.kill()
