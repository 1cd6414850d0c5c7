"""Finding a study by what people call it."""

from sqlalchemy import Connection, RowMapping, or_, select

from tuner_service.errors import NotFoundError
from tuner_service.lifecycle.tally import lock_rows
from tuner_service.storage.pipeline import Row
from tuner_service.storage.schema import GONE, studies


def find_study(connection: Connection, ref: str) -> RowMapping:
    """Return a study's row by its id or its name; a name that looks like an id comes second.

    Raises:
        NotFoundError: There is none.
    """
    if "\x00" in ref:  # PostgreSQL would refuse the statement
        raise NotFoundError(f"there is no study with the id or name {ref!r}")
    found = list(
        connection.execute(
            select(studies).where(
                or_(studies.c.public_id == ref, studies.c.name == ref), studies.c.state != GONE
            )
        ).mappings()
    )
    if not found:
        raise NotFoundError(f"there is no study with the id or name {ref!r}")
    return min(found, key=lambda row: row["public_id"] != ref)


def lock_study(connection: Connection, ref: str) -> Row:
    """Lock a study, and return its row as it then stands.

    Raises:
        NotFoundError: There is none, or it was deleted while we waited for the lock.
    """
    study_id = find_study(connection, ref)["id"]
    row = lock_rows(connection, [study_id]).get(study_id)
    if row is None or row["state"] == GONE:
        raise NotFoundError(f"there is no study with the id or name {ref!r}")
    return row
