"""What trials must share to train in one group, and the key that says so.

Within a group only what `LaneHyper` holds may differ; everything else is structural: the network
(but its dropout rate), the data, batch size, loss, precision, and the optimizer where that has
an update of its own. In native code networks of one type and all optimizers mix.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner_service.definition.catalogue import LOSSES
from tuner_service.definition.catalogue import NETWORKS as CATALOGUE
from tuner_service.definition.trial_spec import TrialSpec
from tuner_service.errors import DataError
from workers.training.data import PreparedData
from workers.training.nets.losses import WEIGHTED, with_weights
from workers.training.nets.networks import NETWORKS, InputShape, complete
from workers.training.optim.registry import entry_of
from workers.training.steps.fused.padding import bucketed
from workers.training.steps.step import LaneHyper, steps_per_epoch

GroupNetwork = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class GroupSpec:
    """What a step is made from.

    Attributes:
        key: Equal for trials that may share a group.
        network: Without what may differ by lane.
        optimizer: The one kind, if that has its own update; None where other kinds may mix.
        batch_size: B, at most n.
        inputs: Shape of one row, for which the network is built.
        train_inputs: [n, …] in the training dtype; on the CPU if the data is streamed.
        loss: What is measured.
        train_targets: [n] int64 classes, [n, 1] zeros and ones, or [n, T] numbers; with weights one
            column more.
        augments: Whether trials flip or crop their training images.
        streamed: Whether the inputs lie in files, and come to the device batch by batch.
        weighted: Whether the targets bring each row's weight in the training loss.
        fuse: Whether the trials may be fused at all, and `fuse_reason` why not.
    """

    key: str
    network: Mapping[str, Any]
    optimizer: str | None
    loss: str
    batch_size: int  # B
    precision: str
    inputs: InputShape
    outputs: int
    device: torch.device
    train_inputs: Tensor  # [n, …]
    train_targets: Tensor  # [n], [n, 1] or [n, T]
    fuse: bool
    fuse_reason: str | None
    augments: bool = False
    streamed: bool = False
    weighted: bool = False

    @property
    def train_loss(self) -> str:
        """What is minimised: `loss`, perhaps with a weight for each row."""
        return f"{WEIGHTED}{self.loss}" if self.weighted else self.loss

    @property
    def rows(self) -> int:
        """n, rows of the training part."""
        return len(self.train_inputs)

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of what a network is given of one row: `inputs`, or the features of it."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def steps(self) -> int:
        """S, optimizer steps per epoch."""
        return steps_per_epoch(self.rows, self.batch_size)


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of data and weights (bfloat16 keeps both in float32 and autocasts)."""
    return torch.float64 if precision == "float64" else torch.float32


def group_of(
    spec: TrialSpec, data: PreparedData, *, device: torch.device, group_network: GroupNetwork
) -> GroupSpec:
    """Return the group a trial belongs to."""
    kind = str(spec.optimizer["type"])
    rows = data.train.rows
    # A batch larger than the data is the data: the step's tables have B places for a batch's rows.
    batch_size = rows if spec.batch_size == "full" else min(int(spec.batch_size), rows)
    network = group_network(spec.network)
    augments = _augments(spec, data.shape)
    if (
        entry_of(kind).update.native is None or augments
    ):  # no native code, whose groups mix networks
        network = bucketed(structure(spec.network))
    optimizer = None if entry_of(kind).mixes or mixes_networks(network) else kind
    parts = {
        "network": dict(network),
        "optimizer": optimizer,
        "loss": spec.loss,
        "class_weight": spec.class_weight,
        "pos_weight": spec.pos_weight,
        "batch_size": batch_size,
        "precision": spec.precision,
        "dataset": spec.dataset.model_dump(),
        "data_hash": data.data_hash,  # a file that changed meanwhile is another group
        "fuse": spec.fuse,
        "augments": augments,
        "streamed": data.streamed,
    }
    targets = weighted_targets(spec, data)
    return GroupSpec(
        key=_digest(parts),
        network=network,
        optimizer=optimizer,
        loss=spec.loss,
        batch_size=batch_size,
        precision=spec.precision,
        inputs=data.shape,
        outputs=data.outputs,
        device=device,
        train_inputs=data.train.inputs,
        train_targets=data.train.targets if targets is None else targets,
        fuse=spec.fuse,
        fuse_reason=None if spec.fuse else "training.fuse is false",
        augments=augments,
        streamed=data.streamed,
        weighted=targets is not None,
    )


def weighted_targets(spec: TrialSpec, data: PreparedData) -> Tensor | None:
    """Return the training part's targets with each row's weight; None where rows count alike.

    Raises:
        DataError: The weights do not fit the data, or the loss is a module's own.
    """
    by_class: tuple[float, ...] = ()
    if spec.class_weight is not None or spec.pos_weight is not None:
        by_class = class_weights(spec, data)
    elif data.weights is None:
        return None
    if spec.loss not in LOSSES:
        raise DataError(
            "weight, class_weight and pos_weight do not reach a loss that the network's module "
            "brings; weigh its rows there, and leave them out"
        )
    if by_class not in data.weighted:
        targets, dtype = data.train.targets, dtype_of(spec.precision)
        weights = data.weights
        if weights is None:
            weights = torch.ones(len(targets), dtype=dtype, device=targets.device)
        if by_class:
            classes = targets if targets.dim() == 1 else targets[:, 0].long()
            weights = weights * torch.tensor(by_class, dtype=dtype, device=targets.device)[classes]
        data.weighted[by_class] = with_weights(targets, weights)
    return data.weighted[by_class]


def class_weights(spec: TrialSpec, data: PreparedData) -> tuple[float, ...]:
    """Return the weight of each class, in their order.

    Raises:
        DataError: A class that is named is none of the data's, or there are not two for pos_weight.
    """
    labels, given = data.classes or (), spec.class_weight
    if spec.pos_weight is not None:
        if len(labels) != 2:
            raise DataError(f"pos_weight is for two classes, but the data has {len(labels)}")
        return 1.0, spec.pos_weight
    if isinstance(given, dict):
        unknown = [label for label in given if label not in labels]
        if unknown:
            raise DataError(
                f"class_weight names the class {unknown[0]!r}, which the data has not; its classes "
                f"are {', '.join(map(repr, labels[:20]))}"
            )
        return tuple(given.get(label, 1.0) for label in labels)
    counts = torch.bincount(data.train.targets.flatten().long(), minlength=len(labels)).tolist()
    # As scikit-learn's: the mean over the training rows is 1. A class without rows weighs nothing.
    return tuple(sum(counts) / (len(labels) * n) if n else 0.0 for n in counts)


def mixes_networks(network: Mapping[str, Any]) -> bool:
    """Whether a group has nothing of its networks in common but the type: native code takes it.

    Then its lanes have networks and optimizers of their own.
    """
    entry = CATALOGUE.get(str(network["type"]))
    return set(network) == {"type"} and entry is not None and entry.native_limits is not None


def _augments(spec: TrialSpec, shape: InputShape) -> bool:
    if not hyper_of(spec).augments:
        return False
    if len(shape) != 3:
        raise DataError(
            f"random_flip and random_crop need images (channels, height, width), but rows are of "
            f"shape {shape}; leave them out"
        )
    return True


def hyper_of(spec: TrialSpec) -> LaneHyper:
    """Return what is the trial's own within its group."""
    options = {k: float(v) for k, v in spec.optimizer.items() if k not in ("type", "learning_rate")}
    return LaneHyper(
        optimizer=str(spec.optimizer["type"]),
        options=options,
        dropout=_dropout(spec.network),
        label_smoothing=spec.label_smoothing,
        l1=spec.l1,
        gradient_clip=spec.gradient_clip,
        seed=spec.seed,
        network=spec.network,
        random_flip=spec.random_flip,
        random_crop=spec.random_crop,
    )


def _dropout(network: Mapping[str, Any]) -> float:
    return 0.0 if without_dropout(network) is network else float(complete(network)["dropout"])


def without_dropout(network: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the network without its dropout rate, which every lane has for itself.

    What a user's network calls dropout is its own business.
    """
    family = NETWORKS.get(str(network["type"]))
    if family is not None and family.user_module:
        return network
    return {name: value for name, value in network.items() if name != "dropout"}


def structure(network: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the network without what every lane has for itself."""
    family = NETWORKS.get(str(network["type"]))
    own = family.per_trial if family is not None else frozenset()
    return {k: v for k, v in without_dropout(network).items() if k not in own}


def _digest(parts: Mapping[str, Any]) -> str:
    # Sorted, so that equal parts are equal keys in every process; 64 bits of it are enough for the
    # few groups of one trainer.
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
