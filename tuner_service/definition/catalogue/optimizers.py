"""The built-in optimizers."""

from tuner_service.definition.catalogue.entries import Optimizer, by_name
from tuner_service.definition.options import Option


def _learning_rate(default: float) -> Option:
    return Option(
        name="learning_rate",
        type="float",
        default=default,
        low=0.0,
        low_open=True,
        fusible=True,
        description="Step size (the peak, under a schedule).",
    )


def _momentum(default: float) -> Option:
    return Option(
        name="momentum",
        type="float",
        default=default,
        low=0.0,
        high=1.0,
        high_open=True,
        fusible=True,
        description="Share of the last update that is kept.",
    )


def _weight_decay(default: float, description: str) -> Option:
    return Option(
        name="weight_decay",
        type="float",
        default=default,
        low=0.0,
        fusible=True,
        description=description,
    )


def _decay_rate(name: str, default: float, description: str) -> Option:
    return Option(
        name=name,
        type="float",
        default=default,
        low=0.0,
        high=1.0,
        high_open=True,
        fusible=True,
        description=description,
    )


def _eps(default: float) -> Option:
    return Option(
        name="eps",
        type="float",
        default=default,
        low=0.0,
        low_open=True,
        fusible=True,
        description="Added to the denominator for numerical stability.",
    )


_L2 = _weight_decay(0.0, "L2 penalty, added to the gradient as a loss term.")
_BETAS = (
    _decay_rate("beta1", 0.9, "Decay of the gradient's running mean."),
    _decay_rate("beta2", 0.999, "Decay of the squared gradient's running mean."),
)

OPTIMIZERS = by_name(
    Optimizer(
        name="sgd",
        description="Stochastic gradient descent, with momentum if that is above zero.",
        fusible=True,
        options=(_learning_rate(0.01), _momentum(0.0), _L2),
    ),
    Optimizer(
        name="nesterov",
        description="SGD with Nesterov momentum; with momentum 0 it is plain SGD.",
        fusible=True,
        options=(_learning_rate(0.01), _momentum(0.9), _L2),
    ),
    Optimizer(
        name="adagrad",
        description="Adagrad: steps shrink with the sum of squared gradients.",
        fusible=True,
        options=(_learning_rate(0.01), _L2, _eps(1e-10)),
    ),
    Optimizer(
        name="rmsprop",
        description="RMSprop: steps scaled by a running mean of squared gradients.",
        fusible=True,
        options=(
            _learning_rate(0.001),
            _momentum(0.0),
            _L2,
            _decay_rate("alpha", 0.99, "Decay of the squared gradient's running mean."),
            _eps(1e-8),
        ),
    ),
    Optimizer(
        name="adam",
        description="Adam, with weight decay as an L2 loss term.",
        fusible=True,
        options=(_learning_rate(0.001), _L2, *_BETAS, _eps(1e-8)),
    ),
    Optimizer(
        name="adamw",
        description="Adam with decoupled weight decay.",
        fusible=True,
        options=(
            _learning_rate(0.001),
            _weight_decay(0.01, "Decoupled: weights shrink by learning_rate × this each step."),
            *_BETAS,
            _eps(1e-8),
        ),
    ),
    Optimizer(
        name="adamax",
        description="Adam by the gradient's largest size so far, with weight decay as an L2 loss "
        "term.",
        fusible=False,
        options=(_learning_rate(0.002), _L2, *_BETAS, _eps(1e-8)),
    ),
    Optimizer(
        name="adadelta",
        description="Adadelta: steps scaled by running means of squared gradients and updates.",
        fusible=False,
        options=(
            _learning_rate(1.0),
            _L2,
            _decay_rate("rho", 0.9, "Decay of both running means."),
            _eps(1e-6),
        ),
    ),
    Optimizer(
        name="nadam",
        description="Adam with Nesterov momentum, with weight decay as an L2 loss term.",
        fusible=False,
        options=(
            _learning_rate(0.002),
            _L2,
            *_BETAS,
            _eps(1e-8),
            Option(
                name="momentum_decay",
                type="float",
                default=0.004,
                low=0.0,
                fusible=True,
                description="How fast the momentum rises from half of beta1 to beta1.",
            ),
        ),
    ),
    Optimizer(
        name="radam",
        description="Rectified Adam: a warm-up by the variance of its step size; weight decay as "
        "an L2 loss term.",
        fusible=False,
        options=(_learning_rate(0.001), _L2, *_BETAS, _eps(1e-8)),
    ),
    Optimizer(
        name="lion",
        description="Lion: steps by the sign of an interpolated momentum, decoupled weight decay.",
        fusible=False,
        options=(
            _learning_rate(0.0001),
            _weight_decay(0.0, "Decoupled: weights shrink by learning_rate × this each step."),
            _decay_rate("beta1", 0.9, "Weight of the momentum in the step's direction."),
            _decay_rate("beta2", 0.99, "Decay of the momentum."),
        ),
    ),
)
