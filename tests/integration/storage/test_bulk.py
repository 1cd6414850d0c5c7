"""Rows written many at once are what SQLAlchemy would have written one by one."""

import enum
import math
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Double,
    Enum,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError

from tuner_service.storage import Database
from tuner_service.storage.bulk import insert_rows, update_rows


class Color(enum.Enum):
    RED = 1
    BLUE = 2


THINGS = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("key", String(40)),
    Column("note", Text),
    Column("size", Double),
    Column("color", Enum(Color)),
    Column("on", Boolean),
    Column("at", DateTime),
    Column("record", JSON),
)
TEXTS = [
    "",
    "plain",
    'say "no"',
    "back\\slash\\",
    "{a,b}",
    "NULL",
    "null",
    "äß→\n\ttab",
    " x ",
    "%s",
]


def thing(number: int, **changes: Any) -> dict[str, Any]:
    text = TEXTS[number % len(TEXTS)]
    return {
        "id": number,
        "key": text,
        "note": text,
        "size": number / 3,
        "color": Color.BLUE,
        "on": number % 2 == 0,
        "at": datetime(2026, 2, 3, 4, 5, 6, 789),  # noqa: DTZ001  # as Optuna keeps its times
        "record": {"text": text, "list": [1, None, 2.5]},
        **changes,
    }


@pytest.fixture
def things(db: Database) -> Database:
    with db.write() as connection:
        THINGS.metadata.create_all(connection)
    return db


def stored(db: Database) -> list[dict[str, Any]]:
    with db.read() as connection:
        return [dict(row) for row in connection.execute(select(THINGS).order_by("id")).mappings()]


def test_rows_arrive_as_they_are(things: Database) -> None:
    rows = [thing(number) for number in range(len(TEXTS))]
    nothing = {**dict.fromkeys(rows[0]), "id": 99}
    with things.write() as connection:
        insert_rows(connection, THINGS, [*rows, nothing])
    assert stored(things) == [*rows, nothing]


def test_numbers_keep_every_bit(things: Database) -> None:
    sizes = [0.1, 1e-300, -math.pi * 1e20, 5e-324, math.inf, -math.inf]
    with things.write() as connection:
        insert_rows(connection, THINGS, [{"id": i, "size": size} for i, size in enumerate(sizes)])
    assert [row["size"] for row in stored(things)] == sizes


def test_the_same_key_replaces_also_within_one_call(things: Database) -> None:
    with things.write() as connection:
        connection.execute(insert(THINGS), [thing(1), thing(2)])
        rows = [thing(2, note="first"), thing(3), thing(2, note="last")]
        insert_rows(connection, THINGS, rows, replace=("id",))
    assert stored(things) == [thing(1), thing(2, note="last"), thing(3)]


def test_updates_reach_the_rows_that_match_and_no_other(things: Database) -> None:
    with things.write() as connection:
        insert_rows(connection, THINGS, [thing(number) for number in range(4)])
        update_rows(
            connection,
            THINGS,
            [
                {"id": number, "key": key, "size": None, "color": Color.RED}
                for number, key in [(0, TEXTS[0]), (1, TEXTS[1]), (2, "another"), (7, TEXTS[7])]
            ],
            match=("id", "key"),
            where={"on": True},
        )
    changed = thing(0, size=None, color=Color.RED)
    assert stored(things) == [changed, thing(1), thing(2), thing(3)]


def test_nothing_is_nothing(things: Database) -> None:
    with things.write() as connection:
        insert_rows(connection, THINGS, [])
        update_rows(connection, THINGS, [], match=("id",))
    assert stored(things) == []


def test_a_nul_character_is_refused_and_parts_no_text(things: Database) -> None:
    """Arrays of texts are joined by it: PostgreSQL stores none."""
    rows = [thing(1), thing(2, note="a\x00b")]
    if things.dialect == "postgresql":
        with pytest.raises(DBAPIError, match="NUL"), things.write() as connection:
            insert_rows(connection, THINGS, rows)
        assert stored(things) == []
    else:
        with things.write() as connection:
            insert_rows(connection, THINGS, rows)
        assert stored(things) == rows


def test_what_is_too_long_is_never_cut(things: Database) -> None:
    row = thing(1, key="x" * 41)
    if things.dialect == "postgresql":
        with pytest.raises(DBAPIError, match="too long"), things.write() as connection:
            insert_rows(connection, THINGS, [row])
    else:  # SQLite's VARCHAR has no limit
        with things.write() as connection:
            insert_rows(connection, THINGS, [row])
        assert stored(things) == [row]
