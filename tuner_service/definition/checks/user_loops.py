"""The rules of a study whose trials a worker's own training loop runs.

The loop brings its data, its optimizer and its epochs: nothing of ours applies but search, budget
and seed. A loop that names its parameters is held to them; an open one may be given any.
"""

import re

from tuner_service.definition.checks.context import CheckContext
from tuner_service.definition.checks.parameters import check_domain
from tuner_service.definition.faults import did_you_mean
from tuner_service.definition.options import show
from tuner_service.definition.sections import Training, objective_metric
from tuner_service.definition.types import IDENTIFIER

_OF_USE = frozenset({"seed", "keep_models"})


def check_loop(context: CheckContext) -> None:
    """No data and no training options of ours; fixed parameters are the loop's own."""
    draft = context.draft
    if draft.dataset is not None or context.faults.below("/dataset"):
        detail = "a training loop brings its own data; leave dataset out"
        context.faults.add(("dataset",), detail, code="does_not_apply")
    for name in _useless(draft.training):
        detail = (
            f"a training loop knows nothing of {name}; make it a parameter of train, and fix it in "
            "network or search it in parameters"
        )
        context.faults.add(("training", name), detail, code="does_not_apply")
    loop, entry, network = context.loop, context.network, draft.network
    if loop is None or entry is None or network is None:
        return
    for name in () if loop.open else network.options:
        if entry.option(name) is None:
            known = [option.name for option in entry.options]
            detail = f"{loop.name} has no parameter {show(name)}{did_you_mean(name, known)}"
            context.faults.add(("network", name), detail, code="unknown_key")
    context.check_options(network.options, entry.options, ("network",))


def _useless(training: Training | None) -> list[str]:
    if training is None:
        return []
    given = [*training.model_fields_set, *training.options]
    return sorted({name for name in given if name not in _OF_USE})


def check_loop_objectives(context: CheckContext) -> None:
    """Names of the loop's own, each with its direction; those of ours are known."""
    objectives = context.draft.objectives
    names = [one.metric for one in objectives if one is not None]
    for position, objective in enumerate(objectives):
        if objective is None:
            continue
        path = ("objective", position) if len(objectives) > 1 else ("objective",)
        name = objective.metric
        if not re.fullmatch(IDENTIFIER, name):
            detail = f"a name has letters, digits and `_` only, but got {show(name)}"
            context.faults.add((*path, "metric"), detail, code="bad_name")
        elif names.count(name) > 1:
            detail = f"{name} is an objective already"
            context.faults.add((*path, "metric"), detail, code="conflict")
        if "direction" not in objective.model_fields_set and objective_metric(name) is None:
            detail = f"say whether to maximize or minimize {name}, which only the loop knows"
            context.faults.add((*path, "direction"), detail, code="missing")
    pruner = context.draft.pruner
    if len(objectives) > 1 and pruner is not None and pruner.entry.prunes:
        detail = "a pruner needs a single objective; remove the pruner or all objectives but one"
        context.faults.add(("pruner", "type"), detail, code="conflict")


def check_loop_parameters(context: CheckContext) -> None:
    """Every parameter is one that the loop names, with a fitting domain, and not fixed as well."""
    loop, entry, network = context.loop, context.network, context.draft.network
    if loop is None or entry is None or network is None:
        return
    for name, parameter in context.draft.parameters.items():
        path = ("parameters", name)
        if name in network.options:
            detail = f"{name} is fixed in network and searched here; remove one of the two"
            context.faults.add(path, detail, code="fixed_and_searched")
        option = entry.option(name)
        if option is None and not loop.open:
            known = [one.name for one in entry.options]
            detail = f"{loop.name} has no parameter {show(name)}{did_you_mean(name, known)}"
            context.faults.add(path, detail, code="unknown_name")
        elif option is not None and parameter is not None:
            check_domain(context, path, parameter, option)
