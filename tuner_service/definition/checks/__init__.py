"""The rules that need more than one value: names, options, conditions, the task, the budget."""

from collections.abc import Callable, Iterable, Mapping

from tuner_service.definition.checks.budget import check_budget, check_enqueue, check_grid
from tuner_service.definition.checks.conditions import check_conditions
from tuner_service.definition.checks.context import CheckContext, PartialDefinition
from tuner_service.definition.checks.parameters import check_parameters
from tuner_service.definition.checks.sections import (
    check_dataset,
    check_methods,
    check_network,
    check_training,
)
from tuner_service.definition.checks.task import check_task
from tuner_service.definition.checks.user_loops import (
    check_loop,
    check_loop_objectives,
    check_loop_parameters,
)
from tuner_service.definition.faults import Faults
from tuner_service.definition.limits import Limits
from tuner_service.definition.uploads import Upload
from tuner_service.definition.user_modules import ModuleDescription, RefusedModule

Rule = Callable[[CheckContext], None]

RULES: tuple[Rule, ...] = (
    check_dataset,
    check_network,
    check_training,
    check_task,
    check_parameters,
    check_conditions,
    check_methods,
    check_budget,
    check_grid,
    check_enqueue,
)


LOOP_RULES: tuple[Rule, ...] = (
    check_loop,
    check_loop_objectives,
    check_loop_parameters,
    check_conditions,
    check_methods,
    check_budget,
    check_grid,
    check_enqueue,
)


def check(
    draft: PartialDefinition,
    faults: Faults,
    *,
    limits: Limits,
    modules: Mapping[str, ModuleDescription],
    uploads: Mapping[str, Upload],
    refused: Iterable[RefusedModule],
) -> None:
    """Apply every rule to what could be read of a definition, and collect what breaks them."""
    context = CheckContext.of(
        draft, faults, limits=limits, modules=modules, uploads=uploads, refused=refused
    )
    for rule in LOOP_RULES if context.loop else RULES:
        rule(context)


__all__ = ["PartialDefinition", "check"]
