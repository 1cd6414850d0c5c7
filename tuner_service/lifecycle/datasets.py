"""Uploaded data and the studies that use it."""

from sqlalchemy import select

from tuner_service.datasets import DatasetStore
from tuner_service.errors import ConflictError
from tuner_service.storage import Database
from tuner_service.storage.schema import studies

UNFINISHED = ("queued", "running", "paused")
REVIVABLE = (*UNFINISHED, "completed")  # a raised budget takes up a completed study again


def _users(db: Database, name: str, states: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (study, SHA-256) of the studies in these states that use an uploaded data set."""
    dataset = studies.c.definition["dataset"]
    sha256 = dataset["sha256"].as_string()
    query = select(studies.c.name, sha256.label("sha256")).where(
        studies.c.state.in_(states), dataset["name"].as_string() == name, sha256.is_not(None)
    )
    with db.read() as connection:
        return [(row.name, row.sha256) for row in connection.execute(query)]


def remove_dataset(db: Database, store: DatasetStore, name: str) -> None:
    """Delete an uploaded data set with all its versions.

    Raises:
        NotFoundError: There is none of this name.
        ConflictError: A study that has not ended uses it.
    """
    with store.exclusive():
        store.get(name)
        users = [study for study, _ in _users(db, name, UNFINISHED)]
        if users:
            more = f" and {len(users) - 1} more" if len(users) > 1 else ""
            raise ConflictError(
                f"the data set {name!r} is used by the study {users[0]!r}{more}, which has not "
                "ended; cancel it first"
            )
        store.remove(name)


def sweep_dataset(db: Database, store: DatasetStore, name: str) -> None:
    """Delete the versions of a data set that no study can need any more."""
    with store.exclusive():
        store.sweep(name, used={sha256 for _, sha256 in _users(db, name, REVIVABLE)})
