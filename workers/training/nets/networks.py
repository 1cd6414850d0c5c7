"""The built-in networks, and how a network is built and initialised.

    networks.build({"type": "mlp", "hidden_units": 32, …}, inputs=(64,), outputs=10) -> nn.Module
    networks.initialise(module, seed)   the same weights for a seed, whichever step trains them

Input shapes: (features,) for tables, (channels, height, width) for images, (time, features) for
sequences. Every network returns [B, outputs].

A family fits the fused step when vmap can take its forward pass: no `.item()`, no `if` on a tensor,
no write into an unbatched tensor (docs/fused-trials.md). Its `Family` entry says so, and which of
its parameters may be padded to a common width. Names of parameters never depend on a rate.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuner_service.definition import catalogue
from workers.training.nets.layers import BatchNorm, Dropout, InputShape
from workers.training.nets.mlp_cnn import Cnn, Mlp
from workers.training.nets.residual import Resnet
from workers.training.nets.sequences import Recurrent, Transformer, too_long

Build = Callable[[Mapping[str, Any], InputShape, int], nn.Module]

__all__ = [
    "NETWORKS",
    "BatchNorm",
    "Dropout",
    "Family",
    "InputShape",
    "arm",
    "build",
    "complete",
    "dropouts",
    "initialise",
    "register",
    "rows_at_once",
    "seeded",
]

LARGEST_ACTIVATION = 1 << 26  # numbers: 256 MiB in float32
_REBUILD = "_tuner_rebuild"


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of network.

    Attributes:
        build: Makes the module from its parameters, an input shape and a number of outputs.
        fusible: Whether vmap takes its forward and backward pass.
        widths: Names of parameters that may be padded with zero units to a larger value.
        brought: Not ours but a user's (`workers.training.user_modules`): initial weights are those
            that its own code draws, and nothing is known of it.
        reason: Why it is not fusible.
        refuses: Why it is not fusible on rows of a shape; None where it is.
        per_trial: Options of a user's network that trials of one group may differ in: they set
            values of buffers and rates of dropouts, and change nothing else.
    """

    build: Build
    fusible: bool = True
    widths: tuple[str, ...] = ()
    user_module: bool = False
    reason: str | None = None
    refuses: Callable[[InputShape], str | None] = lambda inputs: None
    per_trial: frozenset[str] = frozenset()


NETWORKS: dict[str, Family] = {
    "mlp": Family(Mlp, widths=("hidden_units",)),
    "cnn": Family(Cnn),
    "resnet": Family(Resnet),
    "rnn": Family(Recurrent, refuses=too_long),
    "gru": Family(Recurrent, refuses=too_long),
    "lstm": Family(Recurrent, refuses=too_long),
    "transformer": Family(Transformer),
}


def register(name: str, family: Family) -> None:
    """Add a family under a name that is not taken."""
    if name in NETWORKS:
        raise ValueError(f"network names must be unique, but {name!r} is taken")
    NETWORKS[name] = family


def complete(network: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a built-in network with every option: what is missing has the catalogue's default.

    Any other is returned as it is.

    Raises:
        ValueError: If the family has no such option.
    """
    kind = str(network["type"])
    if kind not in catalogue.NETWORKS:
        return network
    given = {name: value for name, value in network.items() if name != "type"}
    return {"type": kind, **catalogue.NETWORKS[kind].complete(given)}


def build(network: Mapping[str, Any], *, inputs: InputShape, outputs: int) -> nn.Module:
    """Build a network on the CPU, in float32, with unspecified weights (see `initialise`).

    Args:
        network: `type` and the options of that family, see `complete`.
        inputs: Shape of one row.
        outputs: Classes, or regression targets.

    Raises:
        ShapeError: If rows of this shape do not fit the network.
        KeyError: If the type is unknown.
        ValueError: If the family has no such option.
    """
    family, network = NETWORKS[network["type"]], complete(network)
    module = family.build(network, inputs, outputs)
    if family.user_module:
        # A function, not a partial: copies of the module share it.
        module.__dict__[_REBUILD] = lambda: family.build(network, inputs, outputs)
    return module


def initialise(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and buffer the value that belongs to the seed, in place.

    A user's network gets the values that building it under the seed gives. Ours get
    torch's own initial distributions, drawn on the CPU in the order of the modules, so that the
    module must be on the CPU. The process's generator is left as it was.

    Raises:
        ValueError: If a module owns parameters but has no `reset_parameters`.
    """
    rebuild = module.__dict__.get(_REBUILD)
    if rebuild is not None:
        with seeded(seed):
            module.load_state_dict(rebuild().state_dict())
        return module
    # From torch's generator although nothing else here has state: the initial distributions are
    # torch's own code.
    with seeded(seed):
        for name, part in module.named_modules():
            # Module by module, not parameter by parameter: a layer's own initialisation counts.
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            elif next(part.parameters(recurse=False), None) is not None:
                kind = type(part).__name__
                raise ValueError(
                    f"a module that owns parameters needs reset_parameters() to be initialised "
                    f"from a seed, but {name or 'the root'} ({kind}) has none"
                )
    return module


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator seeded with `seed`, and put its state back after."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def rows_at_once(module: nn.Module, most: int) -> int:
    """Return how many rows, up to `most`, to evaluate at once: attention may take much memory."""
    return max(1, min(most, LARGEST_ACTIVATION // int(getattr(module, "numbers_per_row", 1))))


def dropouts(module: nn.Module) -> dict[str, Dropout]:
    """Return every `Dropout` in the network by its path."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Dropout)}


def arm(module: nn.Module, *, rate: float | None, seed: int, step: int) -> None:
    """Set every dropout's rate, seed and step (optimizer steps taken) before a plain step.

    Args:
        rate: None leaves the rates that the network was built with, as a user's network wants.
    """
    for part in dropouts(module).values():
        if rate is not None:
            part.rate.fill_(rate)
        part.seed.fill_(seed)
        part.step.fill_(step)
