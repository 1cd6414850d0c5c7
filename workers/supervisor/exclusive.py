"""Room for a slot that must run alone, and has waited while there was always other work.

Only a worker that holds no run claims such a slot. So one worker stops claiming, and after a while
hands back the runs it still has, to be continued by others or after the slot. A user's loop need
not have checkpoints: the worker waits for its end.
"""

from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore

WAIT_SECONDS = 30.0  # another worker may hold no run by then
CHECK_SECONDS = 5.0
CLEAR_SECONDS = 10.0  # a run that ends within this time need not be moved


class ExclusiveSlots:
    """Finds a slot that waits to run alone, and makes room for it."""

    def __init__(self, session: ServeSession, store: SlotStore) -> None:
        self._session = session
        self._store = store
        self._check_at = session.now() + CHECK_SECONDS
        self._seen: tuple[int, float] | None = None

    @property
    def clearing(self) -> bool:
        """Whether nothing more is to be claimed until no run is held."""
        return bool(self._session.held.runs) and self._waited >= WAIT_SECONDS

    @property
    def _waited(self) -> float:
        return 0.0 if self._seen is None else self._session.now() - self._seen[1]

    def claimed(self) -> None:
        """Note a claim while no run was held: a slot that must run alone could be claimed."""
        self._seen = None

    def make_room(self) -> None:
        """Find a slot that waits, and hand back the runs that keep it waiting for too long.

        Raises:
            UnavailableError: The database is away.
        """
        now, held = self._session.now(), self._session.held
        if now < self._check_at or not held.runs or any(run.is_exclusive for run in held):
            return
        self._check_at = now + CHECK_SECONDS
        slot_id = self._store.exclusive_slot(held.study_ids)
        if slot_id is None:
            self._seen = None
        elif self._seen is None or self._seen[0] != slot_id:
            self._seen = (slot_id, now)
        if self._waited >= WAIT_SECONDS + CLEAR_SECONDS:
            movable = [run for run in held.leased if not run.study.definition.is_user_loop]
            self._session.offer(movable)
