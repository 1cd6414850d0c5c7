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


def _activation(default: str) -> Option:
    return _ACTIVATION.model_copy(update={"default": default})


def _dropout(place: str) -> Option:
    return _DROPOUT.model_copy(update={"description": f"Dropout probability {place}."})


def _norm(*kinds: str, default: str = "none") -> Option:
    return Option(
        name="norm",
        type="string",
        default=default,
        choices=("none", *kinds),
        description="Normalisation before each activation.",
    )


_CHANNELS = Option(
    name="channels",
    type="int",
    default=16,
    low=1,
    high=1024,
    description="Channels of the first block; each further block has twice as many.",
)


def _recurrent(name: str, description: str, *own: Option) -> Network:
    return Network(
        name=name,
        description=f"{description} Reads a sequence step by step; an image line by line, a row of "
        "a table number by number. Fused up to 128 steps.",
        inputs=("table", "image", "sequence"),
        native_limits={"hidden_units": 256},
        options=(
            Option(
                name="hidden_layers",
                type="int",
                default=1,
                low=1,
                high=32,
                description="Number of recurrent layers.",
            ),
            Option(
                name="hidden_units",
                type="int",
                default=64,
                low=1,
                high=16384,
                description="Units of each layer, and direction.",
            ),
            Option(
                name="bidirectional",
                type="boolean",
                default=False,
                description="Whether each layer also reads backwards.",
            ),
            *own,
            _dropout("after each layer"),
        ),
    )


NETWORKS = by_name(
    Network(
        name="mlp",
        description="Multilayer perceptron: equally wide hidden layers; images and "
        "sequences are flattened.",
        inputs=("table", "image", "sequence"),
        native_limits={"hidden_units": 1024},  # measured up to there: 1.04 to 100 times as fast
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
        native_limits={"hidden_units": 1024, "channels": 64},
        options=(
            Option(
                name="conv_layers",
                type="int",
                default=2,
                low=1,
                high=6,
                description="Number of blocks; images under four pixels a side are not pooled.",
            ),
            _CHANNELS,
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
            _dropout("before the output layer"),
            _norm("batch", "layer"),
        ),
    ),
    Network(
        name="resnet",
        description=(
            "Residual network: a 3×3 convolution, stages of blocks of two such convolutions with "
            "a shortcut, channels doubling and sides halving from stage to stage, then the mean "
            "over pixels."
        ),
        inputs=("image",),
        options=(
            Option(
                name="stages",
                type="int",
                default=3,
                low=1,
                high=6,
                description="Number of stages; images under four pixels a side are not halved.",
            ),
            Option(
                name="blocks",
                type="int",
                default=1,
                low=1,
                high=32,
                description="Residual blocks of each stage.",
            ),
            _CHANNELS.model_copy(
                update={
                    "description": "Channels of the first stage; each further has twice as many."
                }
            ),
            _ACTIVATION,
            _dropout("before the output layer"),
            _norm("batch", "group", "layer", default="group").model_copy(
                update={"description": "Normalisation after each convolution; group: 8 groups."}
            ),
        ),
    ),
    _recurrent("rnn", "Recurrent network (Elman).", _activation("tanh")),
    _recurrent("gru", "Network of gated recurrent units."),
    _recurrent("lstm", "Network of long short-term memory cells."),
    Network(
        name="transformer",
        description=(
            "Transformer encoder: attention over the steps of a sequence, the lines of an image "
            "or the numbers of a table, with learned positions and norms before each part; the "
            "mean over steps is the result."
        ),
        inputs=("table", "image", "sequence"),
        options=(
            Option(
                name="layers",
                type="int",
                default=2,
                low=1,
                high=48,
                description="Number of encoder blocks.",
            ),
            Option(
                name="heads",
                type="int",
                default=4,
                low=1,
                high=64,
                description="Attention heads; each has width / heads channels, rounded up.",
            ),
            Option(
                name="width",
                type="int",
                default=64,
                low=1,
                high=4096,
                description="Numbers that stand for a step between blocks.",
            ),
            Option(
                name="feedforward_factor",
                type="int",
                default=4,
                low=1,
                high=16,
                description="Width of a block's hidden layer, over `width`.",
            ),
            _activation("gelu"),
            _dropout("after the embedding, each attention and each feed-forward part"),
        ),
    ),
)
