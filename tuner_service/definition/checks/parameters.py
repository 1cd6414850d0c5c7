"""What each searched parameter binds to, and whether its domain fits that option."""

from tuner_service.definition.binding import KINDS, Binding, Group, bind, known_names, owners
from tuner_service.definition.catalogue import Entry
from tuner_service.definition.checks.context import CheckContext
from tuner_service.definition.faults import Path, did_you_mean
from tuner_service.definition.options import Option, option_fault, show
from tuner_service.definition.space import (
    CategoricalParameter,
    Parameter,
    ancestors,
    conditions,
)


def check_parameters(context: CheckContext) -> None:
    """Every parameter binds to an option, is not fixed as well, and has a fitting domain."""
    for name, parameter in context.draft.parameters.items():
        binding = bind(name, network=context.network, dataset=context.dataset)
        if binding is None:
            _add_unbound(context, name)
        elif not binding.option.searchable:
            section = "dataset" if binding.group == "dataset" else "training"
            detail = f"{name} cannot be searched; fix it in {section}"
            context.faults.add(("parameters", name), detail, code="not_searchable")
        else:
            _check_bound(context, name, parameter, binding)


def _add_unbound(context: CheckContext, name: str) -> None:
    if context.network is None or context.dataset is None:
        return  # it may be an option of the network or data that could not be looked up
    others = owners(name)
    if others:
        hint = f"; {', '.join(others)} has, but the network here is {context.network.name}"
    else:
        known = known_names(network=context.network, dataset=context.dataset)
        hint = did_you_mean(name, known)
    detail = f"nothing in this study knows a parameter {show(name)}{hint}"
    context.faults.add(("parameters", name), detail, code="unknown_name")


def _check_bound(
    context: CheckContext, name: str, parameter: Parameter | None, binding: Binding
) -> None:
    _check_not_fixed(context, name)
    if parameter is None:
        return
    check_domain(context, ("parameters", name), parameter, binding.option)
    if binding.kinds:
        _check_kinds(context, name, binding)


def _check_not_fixed(context: CheckContext, name: str) -> None:
    draft = context.draft
    network = draft.network.options if draft.network and _knows(context.network, name) else {}
    dataset = draft.dataset.options if draft.dataset and _knows(context.dataset, name) else {}
    training = draft.training.fixed if draft.training else {}
    fixed = {"training": training, "network": network, "dataset": dataset}
    for section, given in fixed.items():
        if name in given:
            detail = f"{name} is fixed in {section} and searched here; remove one of the two"
            context.faults.add(("parameters", name), detail, code="fixed_and_searched")


def _knows(entry: Entry | None, name: str) -> bool:
    return entry is not None and entry.option(name) is not None


def check_domain(context: CheckContext, path: Path, parameter: Parameter, option: Option) -> None:
    """Check that every value of the domain is one that the option may have."""
    if isinstance(parameter, CategoricalParameter):
        _check_choices(context, path, parameter, option)
        return
    wrong = _wrong_type(parameter, option)
    if wrong:
        context.faults.add((*path, "type"), wrong, code="wrong_type")
        return
    for end in ("low", "high"):
        fault = option_fault(option, getattr(parameter, end))
        if fault:
            context.faults.add((*path, end), fault, code="out_of_range")


def _wrong_type(parameter: Parameter, option: Option) -> str | None:
    if option.choices or option.type in ("string", "boolean"):
        kind = "true or false" if option.type == "boolean" else "one of a list"
        return f"{option.name} is {kind}; use type categorical with choices"
    if option.type == "int" and parameter.type == "float":
        return f"{option.name} is a whole number; use type int"
    return None


def _check_choices(
    context: CheckContext, path: Path, parameter: CategoricalParameter, option: Option
) -> None:
    for position, choice in enumerate(parameter.choices):
        where = (*path, "choices", position)
        fault = option_fault(option, choice)
        if fault is None:
            continue
        if isinstance(choice, str) and option.choices:
            known = [one for one in option.choices if isinstance(one, str)]
            context.faults.unknown(where, option.name, choice, known)
        else:
            context.faults.add(where, fault, code="bad_choice")


def _check_kinds(context: CheckContext, name: str, binding: Binding) -> None:
    """An option of some optimizers needs a `when` that keeps it to those."""
    parameter = context.draft.parameters[name]
    if parameter is not None and not context.draft.parameters.keys() >= set(conditions(parameter)):
        return  # what the condition was meant to be is not known
    possible = _kinds_with(context, name, binding.group)
    if not possible:
        return
    strangers = [kind for kind in possible if kind not in binding.kinds]
    friends = [kind for kind in possible if kind in binding.kinds]
    if not strangers:
        return
    path: Path = ("parameters", name)
    known_by = ", ".join(binding.kinds)
    if not friends:
        detail = (
            f"{name} is an option of {known_by}, but this study's {binding.group} "
            f"is {', '.join(strangers)}"
        )
        context.faults.add(path, detail, code="does_not_apply")
        return
    detail = (
        f"{name} means nothing to {', '.join(strangers)}; "
        f"add `when: {{{binding.group}: [{', '.join(friends)}]}}`"
    )
    context.faults.add(path, detail, code="needs_when")


def _kinds_with(context: CheckContext, name: str, group: Group) -> list[str]:
    """Return the kinds that a trial may have when the parameter applies."""
    possible = [kind for kind in context.possible_kinds(group) if kind in KINDS[group]]
    readable = {k: p for k, p in context.draft.parameters.items() if p is not None}
    for one in (name, *ancestors(readable, name)):
        allowed = conditions(readable[one]).get(group)
        if allowed is not None:
            possible = [kind for kind in possible if kind in allowed]
    return list(dict.fromkeys(possible))
