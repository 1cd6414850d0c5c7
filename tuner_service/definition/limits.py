"""How large a study may be."""

from dataclasses import dataclass

from tuner_service.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps that the operator sets.

    Attributes:
        grid: Points of a grid.
        slots: Slots of one study.
    """

    grid: int = 100_000
    slots: int = 100_000

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Return the caps in the settings."""
        return cls(grid=settings.grid_cap, slots=settings.slots_cap)
