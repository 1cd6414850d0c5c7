"""Groups that must be traced train plain at first: a few short trials are done before it pays."""

import weakref
from collections.abc import Callable

from workers.training.steps.groups import GroupSpec
from workers.training.steps.plain import PlainStep

WAITING = "trains plain until tracing its network would pay"


class TracingPatience:
    """Lends plain steps to groups that came a moment ago.

    Args:
        seconds: How long from a group's first coming; 0 lends none.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._seen_at: dict[str, float] = {}  # when each group first came
        # What was lent, by group, as long as somebody else holds it.
        self._lent: dict[str, weakref.WeakSet[PlainStep]] = {}

    @property
    def lends(self) -> bool:
        """Whether any group waits at all."""
        return self._seconds > 0

    def holds(self, group: GroupSpec) -> bool:
        """Whether the group is to train plain for a while yet."""
        now = self._clock()
        return now - self._seen_at.setdefault(group.key, now) < self._seconds

    def lend(self, group: GroupSpec) -> PlainStep:
        """Return a plain step that says why the group has it."""
        step = PlainStep(group, WAITING)
        self._lent.setdefault(group.key, weakref.WeakSet()).add(step)
        return step

    def decided(self, group: GroupSpec, refusal: str | None) -> None:
        """Have the steps that were lent say what is known by now."""
        for step in self._lent.pop(group.key, ()):
            step.backend_reason = refusal or WAITING
