"""Finding a study by what people call it."""

from sqlalchemy import Connection, RowMapping, or_, select

from tuner_service.errors import NotFoundError
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
