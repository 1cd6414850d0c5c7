"""How much one API key may have under way, so that one caller cannot take the service from all."""

from sqlalchemy import Connection, func, select

from tuner_service.errors import QuotaError
from tuner_service.reads.states import FINAL
from tuner_service.settings import Settings
from tuner_service.storage.schema import GONE, studies

LOCK_SEED = 0x71756F7461  # "quota": apart from other advisory locks


def check_quota(
    connection: Connection, owner: str, settings: Settings, *, slots: int, study: bool = False
) -> None:
    """Refuse what would take a key past its limits; in the transaction that adds it.

    Args:
        owner: The key's id; empty for callers without one, on loopback.
        slots: Open slots that come in addition.
        study: Whether a study comes in addition.

    Raises:
        QuotaError: The key has too much under way already.
    """
    most_studies = settings.key_limit("key_studies", owner)
    most_slots = settings.key_limit("key_open_slots", owner)
    if most_studies is None and most_slots is None:
        return
    # Submits of one key wait for each other, or two at once would both find room for one.
    _lock(connection, owner)
    count, held = connection.execute(
        select(func.count(), func.coalesce(func.sum(studies.c.slots_open), 0)).where(
            func.coalesce(studies.c.owner, "") == owner, studies.c.state.not_in((*FINAL, GONE))
        )
    ).one()
    if study and most_studies is not None and count + 1 > most_studies:
        raise QuotaError(
            f"studies under way <= TUNER_KEY_STUDIES must hold for each API key, but got "
            f"({count + 1}, TUNER_KEY_STUDIES={most_studies:g}): wait for one to end, or cancel one"
        )
    held = int(held)
    if most_slots is not None and held + slots > most_slots:
        raise QuotaError(
            f"trials yet to end <= TUNER_KEY_OPEN_SLOTS must hold for each API key, but got "
            f"({held + slots}, TUNER_KEY_OPEN_SLOTS={most_slots:g}): wait, or ask for fewer trials"
        )


def _lock(connection: Connection, owner: str) -> None:
    """Hold the owner until the transaction ends; SQLite has one writer as it is.

    No row stands for every owner: TUNER_API_KEY has none, nor have callers without a key.
    """
    if connection.dialect.name == "postgresql":
        key = func.hashtextextended(owner, LOCK_SEED)
        connection.execute(select(func.pg_advisory_xact_lock(key)))  # guard: quota-turns
