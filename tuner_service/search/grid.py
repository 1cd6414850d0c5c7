"""The points of a grid study, each exactly once.

Which values a parameter takes, and how many points there are, is the definition's to say; here
they are enumerated. A conditional parameter multiplies points only where it applies.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuner_service.definition.grid import grid_values
from tuner_service.definition.space import Space
from tuner_service.definition.study import StudyDefinition, space_of


def grid_points(definition: StudyDefinition) -> Iterator[dict[str, Any]]:
    """Yield every grid point once, the last parameter changing fastest."""
    return space_points(space_of(definition))


def space_points(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every grid point of a space once, the last parameter changing fastest."""
    values = {name: grid_values(parameter) for name, parameter in space.parameters}
    return _expand(space, tuple(values), values, {})


def _expand(
    space: Space,
    names: tuple[str, ...],
    values: Mapping[str, Sequence[Any]],
    point: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    if not names:
        yield dict(point)
        return
    name, rest = names[0], names[1:]
    if not space.applies(name, point):
        yield from _expand(space, rest, values, point)
        return
    for value in values[name]:
        yield from _expand(space, rest, values, {**point, name: value})
