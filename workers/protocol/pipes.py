"""Two pipes between a process and its child: JSON lines one way, JSON lines the other.

Standard output and error of such a child belong to user code and are never the channel.
"""

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any, Generic

from workers.protocol.codec import COMMANDS, Codec, M
from workers.protocol.messages import Command

logger = logging.getLogger(__name__)

Commands = queue.SimpleQueue[Command | None]
"""What the trainer is to do; None only wakes it."""


def read_commands(pipe: IO[bytes]) -> Commands:
    """Return the queue of what comes in, filled by a thread; the pipe's end ends the process.

    So does a line that is no command: supervisor and trainer are of different versions then.
    """
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, commands), daemon=True).start()
    return commands


def _read(pipe: IO[bytes], commands: Commands) -> None:
    for line in pipe:
        try:
            commands.put(COMMANDS.decode(line))
        except ValueError:
            logger.exception("the trainer got what is no command")
            os._exit(1)
    # The supervisor is gone: what was on board belongs to others now. No cleaning up, which
    # could hang on the very thing that hangs.
    os._exit(0)


class MessageWriter(Generic[M]):
    """Writes messages, one JSON line each; from any thread.

    Args:
        codec: Of the messages.
        orphan_code: What the process exits with when the reader is gone.
    """

    def __init__(self, pipe: IO[bytes], codec: Codec[M], *, orphan_code: int) -> None:
        self._pipe = pipe
        self._codec = codec
        self._orphan_code = orphan_code
        self._lock = threading.Lock()

    def say(self, message: M) -> None:
        """Write one message; a reader that is gone ends the process."""
        line = self._codec.encode(message)
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
