"""Sessions of the page: a cookie that stands for an API key, without holding it.

It is `ID.END.MAC`: the key's id, the second at which the session ends, and an HMAC of both under
the stored hash of the key. So nothing is stored for it, it ends with the key it was made with, and
who reads the cookie cannot tell the key.
"""

import hashlib
import hmac
from typing import Final

from sqlalchemy import RowMapping, select

from tuner_service.access.keys import (
    SCOPES,
    SETTINGS_KEY_ID,
    KeyHolder,
    hash_of,
    is_valid,
)
from tuner_service.storage.database import Database
from tuner_service.storage.schema import api_keys

SESSION_SECONDS: Final = 7 * 86_400


def make_session(db: Database, secret: str) -> str:
    """Return the cookie of a key that was verified a moment ago."""
    digest = hash_of(secret)
    with db.read() as connection:
        end = int(db.now(connection)) + SESSION_SECONDS
        found = connection.execute(select(api_keys.c.id).where(api_keys.c.hash == digest)).scalar()
    told = f"{found or SETTINGS_KEY_ID}.{end}"
    return f"{told}.{_mac(digest, told)}"


def verify_session(db: Database, cookie: str, *, configured: str = "") -> KeyHolder | None:
    """Return whose session a cookie is; None: nobody's, it is over, or its key is no longer valid.

    Args:
        configured: TUNER_API_KEY of this process.
    """
    told, _, mac = cookie.rpartition(".")
    key_id, _, end = told.partition(".")
    if not key_id or not end.isdecimal() or len(end) > 12 or "\x00" in key_id:
        return None
    with db.read() as connection:
        now = db.now(connection)
        row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).mappings().first()
    holder, digest = _holder(row, key_id, now, configured)
    if holder is None or now >= int(end) or not mac.isascii():
        return None
    return holder if hmac.compare_digest(_mac(digest, told), mac) else None


def _holder(
    row: RowMapping | None, key_id: str, now: float, configured: str
) -> tuple[KeyHolder | None, str]:
    if row is not None:
        valid = is_valid(row, now)
        return (KeyHolder(key_id, tuple(row["scopes"])) if valid else None), row["hash"]
    if key_id == SETTINGS_KEY_ID and configured:
        return KeyHolder(SETTINGS_KEY_ID, SCOPES), hash_of(configured)
    return None, ""


def _mac(digest: str, told: str) -> str:
    return hmac.new(bytes.fromhex(digest), told.encode(), hashlib.sha256).hexdigest()
