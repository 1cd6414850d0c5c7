"""Two pipes between a process and its child: JSON lines one way, JSON lines the other.

Standard output and error of such a child belong to user code and are never the channel.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

Commands = queue.SimpleQueue[dict[str, Any]]


def read_commands(pipe: IO[bytes]) -> Commands:
    """Return the queue of what comes in, filled by a thread; the pipe's end ends the process."""
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, commands), daemon=True).start()
    return commands


def _read(pipe: IO[bytes], commands: Commands) -> None:
    for line in pipe:
        commands.put(json.loads(line))
    # The supervisor is gone: what was on board belongs to others now. No cleaning up, which
    # could hang on the very thing that hangs.
    os._exit(0)


class MessageWriter:
    """Writes messages, one JSON line each; from any thread.

    Args:
        orphan_code: What the process exits with when the reader is gone.
    """

    def __init__(self, pipe: IO[bytes], *, orphan_code: int) -> None:
        self._pipe = pipe
        self._orphan_code = orphan_code
        self._lock = threading.Lock()

    def say(self, message: Mapping[str, Any]) -> None:
        """Write one message; a reader that is gone ends the process."""
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        try:
            with self._lock:
                self._pipe.write(line)
                self._pipe.flush()
        except BrokenPipeError:
            os._exit(self._orphan_code)


def spawn(
    arguments: Sequence[str], **options: Any
) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    """Start this interpreter with `arguments`, `--commands FD` and `--events FD`.

    The child leads a session of its own: Ctrl-C is for this process.

    Args:
        options: Further ones of `Popen`, such as where the output goes.

    Returns:
        The process, where its commands are written, and where its events are read.

    Raises:
        OSError: It cannot be started.
    """
    commands_in, commands_out = os.pipe()
    events_in, events_out = os.pipe()
    ends = ("--commands", str(commands_in), "--events", str(events_out))
    try:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [sys.executable, *arguments, *ends],
            stdin=subprocess.DEVNULL,
            pass_fds=(commands_in, events_out),
            start_new_session=True,
            **options,
        )
    except OSError:
        os.close(commands_out)
        os.close(events_in)
        raise
    finally:
        os.close(commands_in)
        os.close(events_out)
    return process, os.fdopen(commands_out, "wb"), os.fdopen(events_in, "rb")
