"""A study's search space in Optuna's terms."""

from typing import assert_never

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner_service.definition.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Space,
)


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution for one parameter."""
    match parameter:
        case FloatParameter():
            return FloatDistribution(
                parameter.low, parameter.high, log=parameter.log, step=parameter.step
            )
        case IntParameter():
            return IntDistribution(
                parameter.low, parameter.high, log=parameter.log, step=parameter.step or 1
            )
        case CategoricalParameter():
            return CategoricalDistribution(tuple(parameter.choices))
        case _:
            assert_never(parameter)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return every parameter's distribution, conditional ones included, in the space's order."""
    return {name: distribution_of(parameter) for name, parameter in space.parameters}
