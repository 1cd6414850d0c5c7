"""The migrations on both databases: what they create, that they can be undone, who may run them."""

import multiprocessing
from collections.abc import Iterator

import optuna
import pytest
from alembic import command
from sqlalchemy import inspect, text

from tuner_service.errors import SchemaMovedError, SchemaVersionError
from tuner_service.storage import Database, check_schema, migrate
from tuner_service.storage.migrate import alembic_config
from tuner_service.storage.schema import metadata

OPTUNA_TABLES = 13


@pytest.fixture
def migrated(database_url: str) -> Iterator[Database]:
    migrate(database_url)
    database = Database.open(database_url)
    yield database
    database.close()


def table_names(db: Database) -> set[str]:
    with db.read() as connection:
        return set(inspect(connection).get_table_names())


def run_alembic(db: Database, action: str, *arguments: str) -> None:
    with db.write() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        getattr(command, action)(config, *arguments)


def test_migrate_creates_both_schemas(migrated: Database) -> None:
    names = table_names(migrated)
    assert set(metadata.tables) <= names
    assert {"alembic_version", "tuner_alembic_version", "studies", "trials"} <= names
    check_schema(migrated)


def test_migrating_twice_changes_nothing(migrated: Database) -> None:
    before = table_names(migrated)
    migrate(migrated.url)
    assert table_names(migrated) == before


def test_alembic_check_finds_nothing_to_do(migrated: Database) -> None:
    run_alembic(migrated, "check")


def test_downgrade_leaves_optunas_tables_and_upgrade_restores_ours(migrated: Database) -> None:
    run_alembic(migrated, "downgrade", "base")
    names = table_names(migrated)
    assert not set(metadata.tables) & names
    assert len(names - {"tuner_alembic_version"}) == OPTUNA_TABLES
    with pytest.raises(SchemaVersionError, match="tuner migrate"):
        check_schema(migrated)
    run_alembic(migrated, "upgrade", "head")
    run_alembic(migrated, "check")
    check_schema(migrated)


def test_plain_optuna_opens_a_migrated_database(migrated: Database) -> None:
    storage = optuna.storages.RDBStorage(migrated.url)
    study = optuna.create_study(storage=storage, study_name="plain")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("table", "version", "message"),
    [
        ("tuner_alembic_version", "9999", "newer than this software"),
        ("alembic_version", "v9.0.0.a", "Optuna's schema"),
    ],
)
def test_an_unknown_version_is_refused(
    migrated: Database, table: str, version: str, message: str
) -> None:
    with migrated.write() as connection:
        connection.execute(text(f"UPDATE {table} SET version_num = '{version}'"))
    with pytest.raises(SchemaVersionError, match=message):
        check_schema(migrated)
    with pytest.raises(SchemaVersionError):
        migrate(migrated.url)


def test_an_unmigrated_database_is_refused(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    with pytest.raises(SchemaVersionError, match="tuner migrate"):
        check_schema(database)
    database.close()


def test_a_missing_file_is_refused(sqlite_url: str) -> None:
    with pytest.raises(SchemaVersionError, match="tuner migrate"):
        Database.open(sqlite_url)


def test_processes_that_migrate_at_once_take_turns(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=migrate, args=(database_url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    database = Database.open(database_url)
    check_schema(database)
    database.close()


def test_a_running_process_writes_nothing_to_a_schema_that_moved(migrated: Database) -> None:
    check_schema(migrated)
    with migrated.write() as connection:  # as it was: this one writes
        connection.execute(text("UPDATE tuner_studies SET name = name"))
    migrator = Database.open(migrated.url)
    with migrator.write() as connection:
        moved = text("UPDATE tuner_alembic_version SET version_num = 'ffff'")
        connection.execute(moved)
    migrated._revisions_seen = float("-inf")  # what PostgreSQL is asked once a second
    for _ in range(2):
        with (
            pytest.raises(SchemaMovedError, match=r"ffff.* while .* writes nothing"),
            migrated.write() as connection,
        ):
            connection.execute(text("DELETE FROM tuner_studies"))
    migrator.close()
