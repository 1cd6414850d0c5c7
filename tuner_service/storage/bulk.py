"""Many rows in one statement.

psycopg sends an `executemany` as a statement for each row, which for a flush of many lanes costs
more than everything else together. On PostgreSQL rows travel as one array for each column instead,
put back together by `unnest`. SQLite's own `executemany` is quick, once SQLAlchemy's work on each
row is left out. Values pass the columns' bind processors, so that what is stored is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import JSON, Connection, Dialect, Enum, String, Table

from tuner_service.storage.database import to_json
from tuner_service.storage.postgres import DEFERRED

Row = Mapping[str, Any]
Processor = Callable[[Any], Any]

_NOTHING: Final[Mapping[str, Any]] = {}
_NUL: Final = "\x00"
_BETWEEN: Final = '","'


def insert_rows(
    connection: Connection, table: Table, rows: Sequence[Row], *, replace: tuple[str, ...] = ()
) -> None:
    """Insert rows that all name the same columns.

    Args:
        replace: The columns of a unique key; a row with the same key, already there or earlier
            among these, is replaced.
    """
    if not rows:
        return
    if replace:
        rows = _last_of_each(rows, replace)
    names = tuple(rows[0])
    statement, processors = _insert(connection.dialect, table, names, replace)
    _execute(connection, statement, _columns(rows, names, processors))


def update_rows(
    connection: Connection,
    table: Table,
    rows: Sequence[Row],
    *,
    match: tuple[str, ...],
    where: Mapping[str, Any] = _NOTHING,
) -> None:
    """Update rows that all name the same columns.

    Args:
        match: The columns that say which row is meant; the others are set. Of two rows that match
            the same, the last stands.
        where: What must hold besides, the same for all of them.
    """
    if not rows:
        return
    rows = _last_of_each(rows, match)
    names = (*(name for name in rows[0] if name not in match), *match)
    statement, processors = _update(connection.dialect, table, names, match, tuple(where))
    _execute(connection, statement, _columns(rows, names, processors), tuple(where.values()))


def array_literal(values: Sequence[Any]) -> str:
    """Return PostgreSQL's text form of an array of numbers, texts, times or None.

    psycopg's own takes longer than the statement, and so does a look at each element.
    """
    kinds = set(map(type, values))
    if kinds <= {int, float, bool}:
        return f"{{{','.join(map(repr, values))}}}"
    if kinds == {str}:
        joined = _NUL.join(values)
        if joined.count(_NUL) == len(values) - 1:  # PostgreSQL stores none: none was in a text
            return f'{{"{_escaped(joined).replace(_NUL, _BETWEEN)}"}}'
    return f"{{{','.join([_element(value) for value in values])}}}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (int, float)):
        return str(value)
    return f'"{_escaped(str(value))}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _last_of_each(rows: Sequence[Row], key: tuple[str, ...]) -> list[Row]:
    # PostgreSQL refuses to write a row twice in one statement.
    return list({tuple(row[name] for name in key): row for row in rows}.values())


def _execute(
    connection: Connection,
    statement: str,
    columns: Sequence[list[Any]],
    rest: tuple[Any, ...] = (),
) -> None:
    if connection.dialect.name == "postgresql":
        parameters = (*map(array_literal, columns), *rest)
        connection.exec_driver_sql(statement, parameters, execution_options=DEFERRED)
    else:
        # More than one row makes it an executemany, which wants a list.
        connection.exec_driver_sql(statement, [(*row, *rest) for row in zip(*columns, strict=True)])


def _columns(
    rows: Sequence[Row], names: Sequence[str], processors: Sequence[Processor | None]
) -> list[list[Any]]:
    columns = []
    for name, process in zip(names, processors, strict=True):
        values = [row[name] for row in rows]
        if process is not None:
            values = [None if value is None else process(value) for value in values]
        columns.append(values)
    return columns


@lru_cache(maxsize=256)
def _insert(
    dialect: Dialect, table: Table, names: tuple[str, ...], replace: tuple[str, ...]
) -> tuple[str, list[Processor | None]]:
    quote = dialect.identifier_preparer.quote
    into = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, names))})"
    if dialect.name == "postgresql":
        source = f"SELECT * FROM {_unnest(dialect, table, names)}"  # noqa: S608  # names of ours
    else:
        source = f"VALUES ({', '.join('?' * len(names))})"
    statement = f"{into} {source}"
    if replace:
        set_ = [f"{quote(n)} = excluded.{quote(n)}" for n in names if n not in replace]
        key = ", ".join(map(quote, replace))
        statement += f" ON CONFLICT ({key}) DO UPDATE SET {', '.join(set_)}"
    return statement, _processors(dialect, table, names)


@lru_cache(maxsize=256)
def _update(
    dialect: Dialect,
    table: Table,
    names: tuple[str, ...],
    match: tuple[str, ...],
    where: tuple[str, ...],
) -> tuple[str, list[Processor | None]]:
    quote = dialect.identifier_preparer.quote
    many = dialect.name == "postgresql"
    mark = "%s" if many else "?"
    set_ = [f"{quote(n)} = {f'new.{quote(n)}' if many else '?'}" for n in names if n not in match]
    own = quote(table.name)
    given = [f"{own}.{quote(n)} = {f'new.{quote(n)}' if many else '?'}" for n in match]
    given += [f"{own}.{quote(n)} = {mark}" for n in where]
    source = ""
    if many:
        as_ = f"new ({', '.join(map(quote, names))})"
        source = f" FROM {_unnest(dialect, table, names)} AS {as_}"
    statement = f"UPDATE {own} SET {', '.join(set_)}{source} WHERE {' AND '.join(given)}"  # noqa: S608  # names of ours
    return statement, _processors(dialect, table, names)


def _unnest(dialect: Dialect, table: Table, names: tuple[str, ...]) -> str:
    return f"unnest({', '.join(f'%s::{_array_type(dialect, table, name)}[]' for name in names)})"


def _array_type(dialect: Dialect, table: Table, name: str) -> str:
    kind = table.columns[name].type
    if isinstance(kind, String) and not isinstance(kind, Enum):
        return "TEXT"  # a cast to VARCHAR(n) would cut silently what is too long
    return str(kind.dialect_impl(dialect).compile(dialect))


def _processors(dialect: Dialect, table: Table, names: tuple[str, ...]) -> list[Processor | None]:
    return [_processor(dialect, table, name) for name in names]


def _processor(dialect: Dialect, table: Table, name: str) -> Processor | None:
    kind = table.columns[name].type
    if isinstance(kind, JSON):
        return to_json  # psycopg's own wrapper of JSON has no place in an array
    processor: Processor | None = kind.dialect_impl(dialect).bind_processor(dialect)
    return processor
