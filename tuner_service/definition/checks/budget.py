"""The budget, the grid's size, and enqueued points."""

from collections.abc import Mapping
from typing import Any

from tuner_service.definition.checks.context import CheckContext
from tuner_service.definition.faults import Path
from tuner_service.definition.grid import grid_size, has_grid
from tuner_service.definition.options import show
from tuner_service.definition.space import (
    CategoricalParameter,
    Parameter,
    Space,
    conditions,
    contains,
)


def _is_grid(context: CheckContext) -> bool:
    return context.draft.sampler is not None and context.draft.sampler.entry.budget_from_grid


def check_budget(context: CheckContext) -> None:
    """A study that is no grid says how many trials it may have, within the cap."""
    budget, sampler = context.draft.budget, context.draft.sampler
    if budget is None or sampler is None:
        return
    path: Path = ("budget", "trials")
    if budget.trials is None:
        if not _is_grid(context) and not context.faults.below("/budget/trials"):
            detail = "trials is required: how many trials the study may have"
            context.faults.add(path, detail, code="missing")
    elif budget.trials > context.limits.slots:
        detail = f"a study has at most {context.limits.slots:,} trials, but got {budget.trials:,}"
        context.faults.add(path, detail, code="over_cap")


def check_grid(context: CheckContext) -> None:
    """A grid is finite, within the cap, and the budget is its size; nothing is enqueued."""
    if not _is_grid(context):
        return
    if context.draft.enqueue:
        detail = "a grid covers its points anyway; remove enqueue, or use another sampler"
        context.faults.add(("enqueue",), detail, code="conflict")
    for name, parameter in context.draft.parameters.items():
        if parameter is not None and not has_grid(parameter):
            detail = f"a grid needs steps for {name}: how many values to take from low to high"
            context.faults.add(("parameters", name, "steps"), detail, code="missing")
    space = context.sound_space
    if space is not None:
        _check_size(context, grid_size(space))


def _check_size(context: CheckContext, size: int | None) -> None:
    cap = min(context.limits.grid, context.limits.slots)
    if size is None:
        detail = f"the grid's conditions are too entangled to count its points (cap {cap:,})"
        context.faults.add(("parameters",), detail, code="over_cap")
        return
    if size > cap:
        shown = f"{size:,}" if size < 10**15 else "more than 10^15"
        detail = f"the grid has {shown} points, more than {cap:,}; use fewer steps or choices"
        context.faults.add(("parameters",), detail, code="over_cap")
        return
    trials = context.draft.budget.trials if context.draft.budget else None
    if trials is not None and trials != size:
        detail = f"the grid has {size:,} points, but got trials={trials:,}; leave trials out"
        context.faults.add(("budget", "trials"), detail, code="conflict")


def check_enqueue(context: CheckContext) -> None:
    """Enqueued points fit the search space and the budget."""
    points = context.draft.enqueue
    if not isinstance(points, list):
        return
    budget = context.draft.budget
    if budget is not None and budget.trials is not None and len(points) > budget.trials:
        detail = f"{len(points)} points are more than the budget's {budget.trials} trials"
        context.faults.add(("enqueue",), detail, code="over_cap")
    space = context.sound_space
    for position, point in enumerate(points):
        if isinstance(point, dict):
            _check_point(context, point, ("enqueue", position), space)


def _check_point(
    context: CheckContext, point: Mapping[str, Any], path: Path, space: Space | None
) -> None:
    if not point:
        context.faults.add(path, "a point names at least one parameter", code="wrong_size")
    active = space.active(point) if space is not None else None
    for name, value in point.items():
        parameters = context.draft.parameters
        if name not in parameters:
            context.faults.unknown((*path, name), "searched parameter", name, parameters)
            continue
        parameter = parameters[name]
        if isinstance(value, (dict, list)):
            continue  # found by the model already
        if parameter is not None and not contains(parameter, value):
            detail = f"{name} must be {_domain(parameter)}, but got {show(value)}"
            context.faults.add((*path, name), detail, code="out_of_range")
        elif parameter is not None and active is not None and name not in active:
            context.faults.add((*path, name), _inactive(name, parameter), code="does_not_apply")


def _inactive(name: str, parameter: Parameter) -> str:
    needs = " and ".join(
        f"{parent} is {' or '.join(show(value) for value in values)}"
        for parent, values in conditions(parameter).items()
    )
    return f"{name} applies only when {needs}; name that in the same point, or leave {name} out"


def _domain(parameter: Parameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return "one of " + ", ".join(show(choice) for choice in parameter.choices[:20])
    kind = "a whole number" if parameter.type == "int" else "a number"
    step = f" in steps of {parameter.step:g}" if parameter.step else ""
    return f"{kind} from {parameter.low:g} to {parameter.high:g}{step}"
