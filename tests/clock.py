"""A wall clock that can be set while programs run: a library that they preload.

Theirs alone: the machine's clock stays as it is, and so does their monotonic clock, as when an
administrator or NTP sets the time.
"""

import contextlib
import mmap
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("shifted_clock.c")


class NoCompilerError(Exception):
    """There is no C compiler to make the library with."""


class Clock:
    """The shift of every program that was started in `environment`."""

    def __init__(self, library: Path, file: Path, shift: mmap.mmap) -> None:
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "SHIFTED_CLOCK": str(file),
        }
        self.seconds = 0.0
        self._shift = shift

    def jump(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        self.seconds += seconds
        self._shift[:8] = struct.pack("=q", round(self.seconds * 1e9))


@contextlib.contextmanager
def shiftable_clock() -> Iterator[Clock]:
    """Yield a clock that is right until it is set.

    Raises:
        NoCompilerError: There is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("no C compiler (cc, gcc): apt install gcc")
    with tempfile.TemporaryDirectory(prefix="tuner-clock-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL may run as another user
        library, file = directory / "shifted_clock.so", directory / "shift"
        subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True
        )
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), mmap.PAGESIZE) as shift:
            yield Clock(library, file, shift)
