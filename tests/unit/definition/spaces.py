"""Random search spaces with conditions, small enough to be expanded."""

from typing import Any

from hypothesis import strategies as st

from tuner_service.definition import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Space,
)
from tuner_service.definition.grid import grid_values
from tuner_service.definition.space import ordered


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Return up to six parameters; each may depend on earlier ones that are not floats."""
    parameters: dict[str, Parameter] = {}
    for i in range(draw(st.integers(1, 6))):
        parents = [n for n, p in parameters.items() if not isinstance(p, FloatParameter)]
        chosen = (
            draw(st.lists(st.sampled_from(parents), max_size=2, unique=True)) if parents else []
        )
        when = {name: draw(_some_values(parameters[name])) for name in chosen} or None
        parameters[f"p{i}"] = draw(_parameter(when))
    names = draw(st.permutations(list(parameters)))
    return ordered({name: parameters[name] for name in names})


def _some_values(parameter: Parameter) -> st.SearchStrategy[tuple[Any, ...]]:
    values = grid_values(parameter)
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)


@st.composite
def _parameter(draw: st.DrawFn, when: dict[str, tuple[Any, ...]] | None) -> Parameter:
    kind = draw(st.sampled_from(("float", "float step", "int", "int steps", "categorical")))
    low = draw(st.integers(1, 5))
    width = draw(st.integers(1, 4))
    log = draw(st.booleans())
    if kind == "float":
        steps = draw(st.integers(2, 4))
        return FloatParameter(
            type="float", low=low, high=low + width, steps=steps, log=log, when=when
        )
    if kind == "float step":
        return FloatParameter(type="float", low=low, high=low + width, step=0.5, when=when)
    if kind == "int":
        step = draw(st.sampled_from((1, width)))
        return IntParameter(type="int", low=low, high=low + width, step=step, when=when)
    if kind == "int steps":
        steps = draw(st.integers(2, 6))
        return IntParameter(type="int", low=low, high=low + 40, steps=steps, log=log, when=when)
    choices = ("a", "b", None, 3, 0.5, True)[: draw(st.integers(1, 6))]
    return CategoricalParameter(type="categorical", choices=choices, when=when)
