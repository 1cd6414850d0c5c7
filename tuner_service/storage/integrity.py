"""Whether a SQLite file is whole, asked before anything is written to it."""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

from tuner_service.errors import DamagedError
from tuner_service.storage.database import BUSY_SECONDS, DAMAGED, is_sqlite, sqlite_path


def check_file(url: str) -> None:
    """Refuse a SQLite file whose pages do not fit together; reads all of it, and writes nothing.

    The usual cause is a write-ahead log that a crash left behind, beside a file that was put back
    from a backup. The connection is read-only, or closing it would write that log into the file.

    Raises:
        DamagedError: With what to do.
    """
    if not is_sqlite(url):
        return
    path = sqlite_path(url)
    fault = _fault(path, "mode=ro")
    if not fault:
        return
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size and not _fault(path, "mode=ro&immutable=1"):
        raise DamagedError(
            "the database file is whole without its write-ahead log, and damaged with it; if the "
            "file was put back from a backup, the log is of the file before it: stop everything "
            "and remove the log",
            cause=f"rm {log} {path.with_name(f'{path.name}-shm')} ({fault})",
        )
    raise DamagedError(DAMAGED, cause=f"{path}: {fault}")


def _fault(path: Path, options: str) -> str:
    """Return the first fault that is found; with `immutable`, the log is not looked at."""
    uri = f"file:{quote(str(path.absolute()))}?{options}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if (error.sqlite_errorname or "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return str(error)
        return ""  # away, locked or unreadable: whoever opens it next says so
    return "" if found == "ok" else found.replace("\n", " ")
