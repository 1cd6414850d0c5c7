"""The built-in networks and activations."""

from tuner_service.definition.catalogue.entries import Activation, Network, by_name
from tuner_service.definition.options import Option

ACTIVATIONS = by_name(
    Activation(name="relu", description="max(x, 0)", zero_at_zero=True),
    Activation(name="leaky_relu", description="x, or 0.01 x below zero", zero_at_zero=True),
    Activation(name="elu", description="x, or exp(x) - 1 below zero", zero_at_zero=True),
    Activation(name="gelu", description="x Φ(x), exact (not the tanh form)", zero_at_zero=True),
    Activation(name="silu", description="x sigmoid(x), also called swish", zero_at_zero=True),
    Activation(name="tanh", description="hyperbolic tangent", zero_at_zero=True),
    Activation(name="sigmoid", description="1 / (1 + exp(-x))", zero_at_zero=False),
)

_ACTIVATION = Option(
    name="activation",
    type="string",
    default="relu",
    choices=tuple(ACTIVATIONS),
    description="Non-linearity after each hidden layer.",
)
_DROPOUT = Option(
    name="dropout",
    type="float",
    default=0.0,
    low=0.0,
    high=1.0,
    high_open=True,
    fusible=True,
    description="Probability with which a hidden unit is dropped in training.",
)


def _norm(*kinds: str) -> Option:
    return Option(
        name="norm",
        type="string",
        default="none",
        choices=("none", *kinds),
        description="Normalisation before each activation.",
    )


NETWORKS = by_name(
    Network(
        name="mlp",
        description="Multilayer perceptron: equally wide hidden layers; images are flattened.",
        inputs=("table", "image"),
        options=(
            Option(
                name="hidden_layers",
                type="int",
                default=2,
                low=0,
                high=32,
                description="Number of hidden layers; 0 is a linear model.",
            ),
            Option(
                name="hidden_units",
                type="int",
                default=64,
                low=1,
                high=16384,
                description="Units of each hidden layer.",
            ),
            _ACTIVATION,
            _DROPOUT,
            _norm("batch", "layer"),
        ),
    ),
    Network(
        name="cnn",
        description=(
            "Convolutional network: blocks of convolution, normalisation, activation and 2×2 max "
            "pooling, channels doubling from block to block, then one hidden layer."
        ),
        inputs=("image",),
        options=(
            Option(
                name="conv_layers",
                type="int",
                default=2,
                low=1,
                high=6,
                description="Number of blocks; images under four pixels a side are not pooled.",
            ),
            Option(
                name="channels",
                type="int",
                default=16,
                low=1,
                high=1024,
                description="Channels of the first block; each further block has twice as many.",
            ),
            Option(
                name="kernel_size",
                type="int",
                default=3,
                choices=(1, 3, 5, 7),
                description="Side of the convolution's kernel; padding keeps the image's size.",
            ),
            Option(
                name="hidden_units",
                type="int",
                default=64,
                low=1,
                high=16384,
                description="Units of the hidden layer after the blocks.",
            ),
            _ACTIVATION,
            _DROPOUT.model_copy(
                update={"description": "Dropout probability before the output layer."}
            ),
            _norm("batch", "layer"),
        ),
    ),
)
