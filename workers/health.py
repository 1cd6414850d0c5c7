"""`python -m workers.health`: is a worker of this host alive? For a container's health check.

A worker renews its entry in the database every two seconds, from a thread whose death ends the
worker; so an entry of this host that is fresh by the database's clock says more than a process
that is there. Exit code 0: yes; 1: no, with a sentence.
"""

import socket
import sys

from tuner_service.errors import TunerError
from tuner_service.reads.workers import LIVE_SECONDS, list_workers
from tuner_service.settings import Settings
from tuner_service.storage import Database


def main() -> int:
    """Print what is wrong, if anything is, and return the exit code."""
    try:
        problem = find_problem(Settings(), socket.gethostname())
    except TunerError as error:
        problem = str(error)
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
    return 0 if problem is None else 1


def find_problem(settings: Settings, host: str) -> str | None:
    """Return why no worker of this host counts as alive; None if one does."""
    db = Database.open(settings.resolved_database_url)
    try:
        with db.read() as connection:
            horizon = db.now(connection) - LIVE_SECONDS
        workers = list_workers(db)
    finally:
        db.close()
    hosts = {worker.host for worker in workers if worker.heartbeat_at.timestamp() >= horizon}
    if host in hosts:
        return None
    return f"no worker of {host!r} was heard of lately; there are: {sorted(hosts) or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
