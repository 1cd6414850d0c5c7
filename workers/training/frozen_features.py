"""What the frozen front part of a network makes of the data, computed once instead of every step.

A module that says `cache_features = True` has a network with `forward_features(x)` and
`forward_head(features)`, as timm's networks have, whose `forward` is the one after the other. If
nothing in the first part is trained or drawn, its results are the same in every epoch of every
trial: they take the inputs' place, and the head is what trains.

    n   rows                F…  shape of one row's features
"""

import copy
import types
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workers.training.data import PreparedData
from workers.training.nets import networks
from workers.training.steps.groups import structure
from workers.training.steps.plain import EVALUATION_ROWS, precision

CHECKED_ROWS = 4
MOST_BYTES = 2 << 30  # of one data set's features: more are computed anew in every step
TOLERANCE = 1e-4  # of forward against the two parts one after the other, which may round otherwise


def only_head(module: nn.Module) -> nn.Module:
    """Have a network take features in place of rows; its state keeps its names."""
    module.forward = types.MethodType(type(module).forward_head, module)  # type: ignore[attr-defined]
    return module


class FrozenFeatures:
    """Keeps features, by data set and network, as long as somebody holds the data set."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[weakref.ref[PreparedData], PreparedData]] = {}

    def of(
        self, network: Mapping[str, Any], data: PreparedData, *, precision_name: str
    ) -> PreparedData | None:
        """Return the data with features [n, F…] for inputs; None where they are too large to keep.

        Args:
            network: Of a user's module that declares `cache_features`, as it was built from rows.

        Raises:
            TypeError: The network lacks a part, or its front part is trained, drawn from the seed,
                or different in training.
        """
        key = id(data), repr((sorted(structure(network).items()), precision_name))
        known = self._kept.get(key)
        if known is not None and known[0]() is data:
            return known[1]
        with networks.seeded(0):
            module = networks.build(network, inputs=data.shape, outputs=data.outputs)
        module = module.to(data.train.targets.device, data.train.inputs.dtype)
        sample = data.train.inputs[:CHECKED_ROWS].to(data.train.targets.device)
        row = _require_frozen(module, sample, network, data)
        every = {"train": data.train, "validation": data.validation, "test": data.test}
        parts = {name: part for name, part in every.items() if part is not None}
        if sum(part.rows for part in parts.values()) * row.numel() * row.itemsize > MOST_BYTES:
            return None
        with precision(precision_name, sample.device):
            made = {
                name: replace(part, inputs=_features(module, part.inputs, sample.device))
                for name, part in parts.items()
            }
        featured = replace(
            data, train=made["train"], validation=made.get("validation"), test=made.get("test")
        )
        self._kept = {k: each for k, each in self._kept.items() if each[0]() is not None}
        self._kept[key] = weakref.ref(data), featured
        return featured


def _features(module: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Return [n, F…] of inputs [n, …], in evaluation mode and without gradients, by chunks."""
    module.eval()
    rows = networks.rows_at_once(module, EVALUATION_ROWS)
    with torch.no_grad():
        parts = [_front(module, part.to(device)) for part in torch.split(inputs, rows)]
    return torch.cat([part.to(inputs.dtype) for part in parts])


def _front(module: nn.Module, rows: Tensor) -> Tensor:
    features: Tensor = module.forward_features(rows)  # type: ignore[operator]
    return features


def _require_frozen(
    module: nn.Module, sample: Tensor, network: Mapping[str, Any], data: PreparedData
) -> Tensor:
    """Return the features of one row, or refuse a network whose features are not always the same.

    Args:
        sample: [CHECKED_ROWS, …].
    """
    for name in ("forward_features", "forward_head"):
        if not callable(getattr(module, name, None)):
            raise TypeError(f"cache_features needs a network with {name}, but it has none")
    # A copy: a front part that counts what it sees would have seen these rows.
    trained = copy.deepcopy(module).train()
    first, second = _front(trained, sample), _front(trained, sample)
    if first.requires_grad:
        raise TypeError(
            "cache_features needs a front part without anything to train, but forward_features "
            "has a gradient: call requires_grad_(False) on every part that it uses"
        )
    module.eval()
    with torch.no_grad():
        features, whole = _front(module, sample), module(sample)
        head: Tensor = module.forward_head(features)  # type: ignore[operator]
    if not (torch.equal(first, second) and torch.allclose(first, features, rtol=TOLERANCE)):
        raise TypeError(
            "cache_features needs features that are the same in training and in evaluation, but "
            "they differ: keep dropout and batch norm of the front part in evaluation mode"
        )
    if not torch.allclose(whole, head, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())):
        raise TypeError("forward(x) must be forward_head(forward_features(x)), but they differ")
    with networks.seeded(1):
        other = networks.build(network, inputs=data.shape, outputs=data.outputs)
    again = _features(other.to(sample.device, sample.dtype), sample, sample.device)
    if not torch.allclose(again, features, rtol=TOLERANCE):
        raise TypeError(
            "cache_features needs the same front part in every trial, but another seed gives other "
            "features: read its weights from a file, or draw them from a generator of their own"
        )
    return features[0]
