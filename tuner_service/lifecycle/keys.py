"""API keys: shown once, stored as a hash, with scopes and an end.

A secret is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow
hash would make slower. It looks like `tuner_ID_SECRET`; the ID finds the row, and the hashes are
compared in constant time.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Literal, cast, get_args

from sqlalchemy import Connection, RowMapping, insert, select, update

from tuner_service.errors import InputError, NotFoundError
from tuner_service.lifecycle.views import View
from tuner_service.storage.database import Database
from tuner_service.storage.schema import api_keys

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SETTINGS_KEY_ID = "settings"  # the key that TUNER_API_KEY holds
SHORTEST_SECRET = 16  # characters, for a secret that a person chose


class KeyView(View):
    """An API key without its secret."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def create_key(
    db: Database,
    name: str,
    scopes: Collection[str] = SCOPES,
    expires_seconds: float | None = None,
) -> tuple[str, str]:
    """Make a key.

    Returns:
        Its id, and the secret, which cannot be shown again.

    Raises:
        InputError: An unknown scope, no scope, no name, or an end that is not in the future.
    """
    _check(name, scopes, expires_seconds)
    key_id = secrets.token_hex(6)
    secret = f"tuner_{key_id}_{secrets.token_urlsafe(32)}"
    with db.write() as connection:
        now = db.now(connection)
        connection.execute(
            insert(api_keys).values(
                id=key_id,
                name=name,
                hash=hash_of(secret),
                scopes=sorted(scopes),
                created_at=now,
                expires_at=None if expires_seconds is None else now + expires_seconds,
            )
        )
    return key_id, secret


def keep_settings_key(db: Database, secret: str) -> None:
    """Store the key that the settings hold, replacing an earlier one of theirs.

    Raises:
        InputError: The secret is too short to be safe.
    """
    if len(secret) < SHORTEST_SECRET:
        raise InputError(
            f"TUNER_API_KEY needs at least {SHORTEST_SECRET} characters, but has {len(secret)}"
        )
    values = {"hash": hash_of(secret), "revoked_at": None}
    with db.write() as connection:
        changed = connection.execute(
            update(api_keys).where(api_keys.c.id == SETTINGS_KEY_ID).values(values)
        )
        if changed.rowcount == 0:
            connection.execute(
                insert(api_keys).values(
                    id=SETTINGS_KEY_ID,
                    name="TUNER_API_KEY",
                    scopes=sorted(SCOPES),
                    created_at=db.now(connection),
                    **values,
                )
            )


def verify_key(db: Database, secret: str) -> KeyView | None:
    """Return the key a secret belongs to; None if it is unknown, revoked or past its end."""
    digest = hash_of(secret)
    with db.read() as connection:
        now = db.now(connection)
        row = (
            connection.execute(select(api_keys).where(api_keys.c.hash == digest)).mappings().first()
        )
    if row is None or not hmac.compare_digest(row["hash"], digest) or not _valid(row, now):
        return None
    return _view(row)


def list_keys(db: Database) -> list[KeyView]:
    """Return every key, by age."""
    with db.read() as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at)).mappings()
        return [_view(row) for row in rows]


def has_valid_key(db: Database) -> bool:
    """Return whether any key would be let in."""
    return bool(valid_hashes(db))


def valid_hashes(db: Database) -> frozenset[str]:
    """Return the hashes of the keys that would be let in."""
    with db.read() as connection:
        now = db.now(connection)
        return frozenset(row["hash"] for row in _all(connection) if _valid(row, now))


def revoke_key(db: Database, key_id: str) -> None:
    """End a key at once; one that is revoked stays revoked.

    Raises:
        NotFoundError: There is no key of this id.
    """
    with db.write() as connection:
        now = db.now(connection)
        found = connection.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id)
            .values(revoked_at=now)
            .returning(api_keys.c.id)
        ).first()
    if found is None:
        raise NotFoundError(f"there is no API key with the id {key_id!r}")


def _check(name: str, scopes: Collection[str], expires_seconds: float | None) -> None:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InputError(f"scopes must be some of {', '.join(SCOPES)}, but got {sorted(scopes)}")
    if not name or len(name) > 128:
        raise InputError(f"a key's name must have 1 to 128 characters, but has {len(name)}")
    if expires_seconds is not None and expires_seconds <= 0:
        raise InputError(f"a key's end must lie in the future, but got {expires_seconds:g} s")


def hash_of(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _all(connection: Connection) -> list[RowMapping]:
    return list(connection.execute(select(api_keys)).mappings())


def _valid(row: RowMapping, now: float) -> bool:
    ended = row["expires_at"] is not None and row["expires_at"] <= now
    return row["revoked_at"] is None and not ended


def _view(row: RowMapping) -> KeyView:
    def time(name: str) -> datetime | None:
        value = row[name]
        return None if value is None else datetime.fromtimestamp(value, UTC)

    created = datetime.fromtimestamp(row["created_at"], UTC)
    return KeyView(
        id=row["id"],
        name=row["name"],
        scopes=tuple(cast(Scope, scope) for scope in row["scopes"]),
        created_at=created,
        expires_at=time("expires_at"),
        revoked_at=time("revoked_at"),
    )
