"""Starts a trainer on its leash: the pipe whose end is the supervisor's.

    python -m workers.trainer --commands FD --events FD …

Importing torch and making a CUDA context take seconds. The pipe is read before that, so that a
trainer whose supervisor dies meanwhile does not live on to the end of its start.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from workers.protocol.pipes import read_commands


def main(arguments: Sequence[str]) -> None:
    """Take the leash, then import the trainer and run it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--commands", type=int, required=True)
    options, rest = parser.parse_known_args(arguments)
    commands = read_commands(os.fdopen(options.commands, "rb"))
    from workers.trainer.main import main as serve  # noqa: PLC0415  # torch comes with it

    serve(rest, commands)


if __name__ == "__main__":
    main(sys.argv[1:])
