"""Room for a slot that must run alone, and has waited while there was always other work.

Such a slot is claimed by a worker with an empty board only. One worker then claims nothing more,
and hands back after a while what it still has, to be continued by others or after the slot. A loop
of one's own need not have checkpoints: its end is waited for.
"""

from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore

WAIT_SECONDS = 30.0  # others' boards may be empty by then
LOOK_SECONDS = 5.0
CLEAR_SECONDS = 10.0  # what ends by itself within this time need not be moved


class ExclusiveSlots:
    """Sees slots that wait, and clears the board for one."""

    def __init__(self, session: ServeSession, store: SlotStore) -> None:
        self._session = session
        self._store = store
        self._look_at = session.now() + LOOK_SECONDS
        self._seen: tuple[int, float] | None = None

    @property
    def clearing(self) -> bool:
        """Whether nothing more is to be claimed until the board is empty."""
        return bool(self._session.held.runs) and self._waited >= WAIT_SECONDS

    @property
    def _waited(self) -> float:
        return 0.0 if self._seen is None else self._session.now() - self._seen[1]

    def claimed(self) -> None:
        """Note that slots were claimed for an empty board: whoever waited had its turn."""
        self._seen = None

    def look(self) -> None:
        """Look who waits, and hand back what stands in its way for too long.

        Raises:
            UnavailableError: The database is away.
        """
        now, held = self._session.now(), self._session.held
        if now < self._look_at or not held.runs or any(run.is_exclusive for run in held):
            return
        self._look_at = now + LOOK_SECONDS
        slot_id = self._store.exclusive_slot(held.study_ids)
        if slot_id is None:
            self._seen = None
        elif self._seen is None or self._seen[0] != slot_id:
            self._seen = (slot_id, now)
        if self._waited >= WAIT_SECONDS + CLEAR_SECONDS:
            movable = [run for run in held.leased if not run.study.definition.is_user_loop]
            self._session.offer(movable)
