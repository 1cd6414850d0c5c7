"""Starts a trainer on its leash: the pipe whose end is the supervisor's.

    python -m workers.trainer_start --commands FD --events FD …

Importing torch and making a CUDA context take seconds. The pipe is read before that, so that a
trainer whose supervisor dies meanwhile does not live on to the end of its start.
"""

import argparse
import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Sequence
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


def main(arguments: Sequence[str]) -> None:
    """Take the leash, then import the trainer and run it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--commands", type=int, required=True)
    options, rest = parser.parse_known_args(arguments)
    commands = read_commands(os.fdopen(options.commands, "rb"))
    importlib.import_module("workers.trainer").main(rest, commands)


if __name__ == "__main__":
    main(sys.argv[1:])
