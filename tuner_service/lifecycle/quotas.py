"""How much one API key may have under way, so that one caller cannot take the service from all."""

from sqlalchemy import Connection, func, select

from tuner_service.errors import QuotaError
from tuner_service.lifecycle.ending import FINAL
from tuner_service.settings import Settings
from tuner_service.storage.schema import GONE, api_keys, studies


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
    connection.execute(select(api_keys.c.id).where(api_keys.c.id == owner).with_for_update())
    count, held = connection.execute(
        select(func.count(), func.coalesce(func.sum(studies.c.slots_open), 0)).where(
            func.coalesce(studies.c.owner, "") == owner, studies.c.state.not_in((*FINAL, GONE))
        )
    ).one()
    if study and most_studies is not None and count + 1 > most_studies:
        raise QuotaError(
            f"studies under way <= key_studies must hold for each API key, but got "
            f"({count + 1}, key_studies={most_studies:g}): wait for one to end, or cancel one"
        )
    held = int(held)
    if most_slots is not None and held + slots > most_slots:
        raise QuotaError(
            f"open slots <= key_open_slots must hold for each API key, but got "
            f"({held + slots}, key_open_slots={most_slots:g}): wait, or ask for fewer trials"
        )
