"""API keys: shown once, stored as a hash, with scopes and an end.

A secret is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow
hash would make slower. It looks like `tuner_ID_SECRET`; the hash finds the row, and hashes are
compared in constant time. The key that TUNER_API_KEY holds is never stored: it is good for the
processes that have it in their settings, and for as long as they run.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast, get_args

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from tuner_service.errors import InputError, NotFoundError, SettingsError
from tuner_service.reads.views import View
from tuner_service.settings import Settings
from tuner_service.storage.database import Database
from tuner_service.storage.schema import api_keys

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SHORTEST_SECRET = 16  # characters, for a secret that a person chose
SETTINGS_KEY_ID = "settings"  # the key that TUNER_API_KEY holds


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


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whose key was given, and what it may do."""

    id: str
    scopes: tuple[Scope, ...]


def require_safe_settings(db: Database, settings: Settings) -> None:
    """Refuse to serve where a key is needed and nobody has one, or everybody can guess it.

    Raises:
        SettingsError: With what to set, or to do.
    """
    secret = settings.api_key.get_secret_value()
    if 0 < len(secret) < SHORTEST_SECRET:
        raise SettingsError(
            f"TUNER_API_KEY needs at least {SHORTEST_SECRET} characters, but has {len(secret)}"
        )
    if settings.require_keys is False and not settings.is_loopback:
        raise SettingsError(
            f"TUNER_REQUIRE_KEYS=false is for loopback only, but others can reach {settings.host}"
        )
    if settings.keys_reason and not secret and not has_valid_key(db):
        raise SettingsError(
            f"Every caller needs an API key, since {settings.keys_reason}, but there is none: "
            f"`tuner keys create NAME --data-dir {settings.data_dir}`, or set TUNER_API_KEY"
        )


def forget_settings_key(db: Database) -> None:
    """Remove the row in which earlier versions kept TUNER_API_KEY, and which opened for ever."""
    with db.write() as connection:
        connection.execute(delete(api_keys).where(api_keys.c.id == SETTINGS_KEY_ID))


def verify_key(db: Database, secret: str, *, configured: str = "") -> KeyHolder | None:
    """Return whose key a secret is; None if it is unknown, revoked or past its end.

    Args:
        configured: TUNER_API_KEY of this process. If it is one of the stored keys, what is stored
            of that one (its scopes, its end) holds.
    """
    digest = hash_of(secret)
    with db.read() as connection:
        now = db.now(connection)
        row = (
            connection.execute(select(api_keys).where(api_keys.c.hash == digest)).mappings().first()
        )
    if row is not None and hmac.compare_digest(row["hash"], digest):
        return KeyHolder(row["id"], tuple(row["scopes"])) if is_valid(row, now) else None
    if configured and hmac.compare_digest(hash_of(configured), digest):
        return KeyHolder(SETTINGS_KEY_ID, SCOPES)
    return None


def list_keys(db: Database) -> list[KeyView]:
    """Return every key, by age."""
    with db.read() as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at)).mappings()
        return [_view(row) for row in rows]


def any_key_made(db: Database) -> bool:
    """Return whether there are keys, be they revoked or past their end."""
    with db.read() as connection:
        return connection.execute(select(api_keys.c.id).limit(1)).first() is not None


def has_valid_key(db: Database) -> bool:
    """Return whether any key would be let in."""
    return bool(valid_hashes(db))


def valid_hashes(db: Database) -> frozenset[str]:
    """Return the hashes of the keys that would be let in."""
    with db.read() as connection:
        now = db.now(connection)
        return frozenset(row["hash"] for row in _all(connection) if is_valid(row, now))


def revoke_key(db: Database, key_id: str) -> bool:
    """End a key at once; one that is revoked stays so, since the time it was.

    Returns:
        Whether it was not revoked before.

    Raises:
        NotFoundError: There is no key of this id.
    """
    own = api_keys.c.id == key_id
    with db.write() as connection:
        now = db.now(connection)
        done = connection.execute(
            update(api_keys).where(own, api_keys.c.revoked_at.is_(None)).values(revoked_at=now)
        )
        if (
            done.rowcount == 0
            and connection.execute(select(api_keys.c.id).where(own)).first() is None
        ):
            raise NotFoundError(f"there is no API key with the id {key_id!r}")
    return done.rowcount > 0


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


def is_valid(row: RowMapping, now: float) -> bool:
    """Return whether a stored key would be let in."""
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
