"""`python -m workers`: one worker, on one device, until SIGTERM or Ctrl-C."""

import argparse
import os
import uuid

from tuner_service.settings import Settings
from tuner_service.up.parent_watch import hold
from workers.celery_app import app


def main() -> None:
    """Start a worker. Settings come from `TUNER_*`; the options below overrule them."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=main.__doc__)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="torch's threads on a CPU")
    parser.add_argument("--loops", type=int, help="training loops of one's own to run at once")
    parser.add_argument("--modules-dir", metavar="DIR", help="where modules of one's own lie")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--parent-pipe", type=int, metavar="FD", help="end when this pipe ends")
    options = vars(parser.parse_args())
    parent_pipe = options.pop("parent_pipe")
    if parent_pipe is not None:
        hold(parent_pipe, grace_seconds=Settings().grace_seconds)
    for name, value in options.items():
        if value is not None:
            os.environ[f"TUNER_{name.upper()}"] = str(value)
    app.worker_main(
        [
            "--quiet",
            "worker",
            *("--hostname", f"tuner-{os.getpid()}-{uuid.uuid4().hex[:6]}@%h"),
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )


if __name__ == "__main__":
    main()
