"""Points all over a search space, for trying whether anything in it can be trained."""

from typing import Any, Final

from tuner_service.definition import StudyDefinition, space_of, total_slots
from tuner_service.search.grid import grid_points
from tuner_service.search.samplers.uniform import draw, slot_generator

_FIRST: Final = 1 << 40  # beyond every slot: these draws are none of the study's


def first_point(definition: StudyDefinition) -> dict[str, Any]:
    """Return the parameters of the first slot, drawn where only a sampler would tell."""
    if definition.sampler.entry.budget_from_grid:
        return dict(next(iter(grid_points(definition))))
    fixed = dict(definition.enqueue[0]) if definition.enqueue else {}
    return dict(draw(space_of(definition), seed=definition.sampler.seed, slot=0, fixed=fixed))


def spread_points(definition: StudyDefinition, count: int) -> list[dict[str, Any]]:
    """Return up to `count` different points, drawn independently; of a grid, of its own."""
    seed = definition.sampler.seed
    if definition.sampler.entry.budget_from_grid:
        size = total_slots(definition)
        chosen = slot_generator(seed, _FIRST).choice(size, min(count, size), replace=False)
        wanted = set(chosen.tolist())
        return [point for at, point in enumerate(grid_points(definition)) if at in wanted]
    space = space_of(definition)
    drawn = [draw(space, seed=seed, slot=_FIRST + at) for at in range(count)]
    return [point for at, point in enumerate(drawn) if point not in drawn[:at]]
