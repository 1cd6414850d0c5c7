"""What a trial prints goes to its own log file, up to a bound, made with the first line.

Only while a trial is alone in its turn can it be told who prints; what a group prints stays in the
trainer's own log.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO

from tuner_service.files import private_folder

MAX_BYTES = 1_000_000
_CUT = "\n[the rest is left out: a trial's log holds at most 1 MB]\n"


class TrialLog(io.TextIOBase):
    """Appends text to a file; a log that cannot be written is given up, never the trial."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._left = MAX_BYTES - _size(path)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Append the text as far as there is room."""
        # Counted in characters, for what is cut inside a character is no text; the bound may be
        # passed by what UTF-8 adds.
        if self._left > 0 and text:
            part = text[: self._left]
            self._left -= len(part)
            self._append(part if self._left else part + _CUT)
        return len(text)

    def flush(self) -> None:
        """Bring what was written to the file."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError:
            self._give_up()

    def close(self) -> None:
        """Close the file, if there is one."""
        self._let_go()
        super().close()

    def _append(self, text: str) -> None:
        try:
            if self._file is None:
                private_folder(self._path.parent)
                self._file = self._path.open("a", encoding="utf-8", errors="replace")
            self._file.write(text)
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        self._left = 0
        self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        # To close is to write what waits; where that fails the file is closed all the same.
        with suppress(OSError):
            if file is not None:
                file.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def printing_to(path: str | None) -> Iterator[None]:
    """Send what Python code prints inside to the log; None leaves it where it goes."""
    if path is None:
        yield
        return
    log = TrialLog(Path(path))
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        log.close()
