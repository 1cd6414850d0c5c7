"""Width padding: networks of different widths in one group, exactly.

A network with narrower hidden layers is a wider one whose further units are zero: where
activation(0) = 0, a unit with zero weights in and zero weights out stays silent, gets zero
gradient, and every optimizer leaves zero at zero. So lanes of different `hidden_units` share the
shapes of a bucket's width. Batch normalisation keeps it so (a silent unit is normalised to its
bias, which is zero); layer normalisation does not (its mean is over all units).

Only the step pads: a lane's canonical state always has the lane's own shapes. A narrow tensor lies
in the low corner of the wide one, on every axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from workers.training.nets.layers import ZERO_PRESERVING
from workers.training.nets.networks import NETWORKS, complete

# Neighbours differ by at most a half, so that padding wastes little more than twice the arithmetic.
BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


def bucketed(network: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the network with each paddable width raised to its bucket; as it is where inexact."""
    widths = paddable(network)
    return {
        name: _bucket(int(value)) if name in widths else value for name, value in network.items()
    }


def paddable(network: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the network's widths that may be padded."""
    family = NETWORKS.get(str(network["type"]))
    if family is None or not family.widths:
        return ()
    whole = complete(network)
    # Layer norm's mean is over all units, silent ones included; sigmoid(0) is 1/2, not silent.
    exact = whole["activation"] in ZERO_PRESERVING and whole["norm"] != "layer"
    return family.widths if exact else ()


def corner(wide: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the view of the low corner of `wide` that has `shape`."""
    for axis, size in enumerate(shape):
        wide = wide.narrow(axis, 0, size)
    return wide


def embed(wide: Tensor, narrow: Tensor) -> None:
    """Write `narrow` into the low corner of `wide`, and zero into the rest."""
    if wide.shape != narrow.shape:
        wide.zero_()  # the lane may have been a wider network's
    corner(wide, narrow.shape).copy_(narrow)


def _bucket(width: int) -> int:
    return next((bucket for bucket in BUCKETS if bucket >= width), width)
