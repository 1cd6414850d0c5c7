"""Alembic's environment: our tables only, in the caller's transaction where there is one."""

from alembic import context
from sqlalchemy import Connection

from tuner_service.settings import Settings
from tuner_service.storage.database import Database
from tuner_service.storage.migrate import VERSION_TABLE
from tuner_service.storage.schema import metadata


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Keep autogenerate's hands off Optuna's tables."""
    return kind != "table" or (name or "").startswith("tuner_")


def run(connection: Connection) -> None:
    """Run the migrations on this connection, within its transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=include_name,
        compare_server_default=False,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    context.run_migrations()


def main() -> None:
    """Run on the connection given by `tuner_service.storage.migrate`, else on the settings'."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    database = Database.open(Settings().resolved_database_url)
    try:
        with database.write() as connection:
            run(connection)
    finally:
        database.close()


main()
