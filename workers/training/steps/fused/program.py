"""The fused step as a pure program over stacked tensors, and its trace.

    K   lanes
    B   rows of a batch; of the last, shorter batch in a program of its own where rows are coupled
    S   steps of an epoch
    P   a parameter's own shape
    C   columns of a coefficient table (stacked.py)

One run takes one optimizer step in every lane: it gathers each lane's rows, computes losses and
gradients by vmap, updates the weights, and counts. It reads and writes only the tensors it is
given, always the same ones, so that a whole epoch is S calls with the same arguments: nothing is
recompiled, sliced or allocated between steps, and a CUDA graph of it can be replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.batchnorm import _BatchNorm

from workers.training.nets.augmentation import augmented
from workers.training.nets.layers import Dropout
from workers.training.nets.losses import RowLoss
from workers.training.nets.networks import dropouts
from workers.training.optim.fused import Update, slots_of
from workers.training.steps.step import LaneHyper

Named = dict[str, Tensor]

LANE_NUMBERS = ("smoothing", "rates", "seeds", "steps", "flips", "crops")  # of the forward pass
READ_ONLY = ("inputs", "targets", "orders")  # large, and not written by the program


@dataclass(frozen=True, slots=True)
class Features:
    """What a program computes beyond the bare minimum; off unless some lane needs it."""

    dropout: bool = False
    smoothing: bool = False
    l1: bool = False
    clip: bool = False
    squares: bool = False
    augments: bool = False

    @classmethod
    def of(cls, hyper: LaneHyper) -> "Features":
        """Return what one lane needs."""
        return cls(
            dropout=hyper.dropout > 0,
            smoothing=hyper.label_smoothing > 0,
            l1=hyper.l1 > 0,
            clip=hyper.gradient_clip is not None,
            augments=hyper.augments,
            squares="square" in slots_of(hyper.optimizer, hyper.options),
        )

    def __or__(self, other: "Features") -> "Features":
        """Return what both need."""
        union = {f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)}
        return Features(**union)


@dataclass(slots=True)
class StackedLanes:
    """Every tensor a program reads or writes.

    Attributes:
        parameters: Name -> [K, P].
        averages: Slot a of each parameter, [K, P].
        squares: Slot b, [K, P].
        buffers: Name -> [K, …], those of normalisation layers and of user modules.
        feed: What the epoch brings:
            counter [1] int64, the step within the call; steps, seeds [K] int64;
            rates, flips [K] float64 (probabilities); crops [K] int64; smoothing, l1, clip [K];
            lane [K, C]; pace [S, K, C];
            orders [K, S·B] int64; weights [S, B], 1/rows or 0 for rows that pad the last batch;
            counts [S] float64, rows of each batch; total [K] float64, the loss summed over rows;
            inputs [n, …]; targets [n, …].
    """

    parameters: Named = field(default_factory=dict)
    averages: Named = field(default_factory=dict)
    squares: Named = field(default_factory=dict)
    buffers: Named = field(default_factory=dict)
    feed: Named = field(default_factory=dict)

    def flat(self) -> list[Tensor]:
        """Return all tensors, in the order in which `Program` takes them."""
        return [tensor for named in self._groups() for tensor in named.values()]

    def refilled(self, tensors: Sequence[Tensor]) -> "StackedLanes":
        """Return an arena of the same names that holds `tensors`, ordered as in `flat`."""
        rest = iter(tensors)
        return StackedLanes(*({name: next(rest) for name in named} for named in self._groups()))

    def _groups(self) -> tuple[Named, ...]:
        return self.parameters, self.averages, self.squares, self.buffers, self.feed


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """One optimizer step of every lane, written once and traced.

    Attributes:
        template: The network of the group's shapes; its own weights are never used.
        loss: By row.
        rows: Rows of the batch.
        batch_size: B, the distance between two batches in `orders`.
        features: What is computed.
        autocast: Compute in bfloat16.
        arena: For names; the tensors it runs on are passed.
        update: The optimizers' step.
    """

    template: nn.Module
    loss: RowLoss
    rows: int
    batch_size: int
    features: Features
    autocast: bool
    arena: StackedLanes
    update: Update

    def __call__(self, *tensors: Tensor) -> tuple[()]:
        """Take the step, in place, on tensors as in `Arena.flat`."""
        arena = self.arena.refilled(tensors)
        gradients, losses, buffers = self._gradients(arena)
        if self.features.l1:
            gradients = _with_l1(gradients, arena)
        if self.features.clip:
            gradients = _clipped(gradients, arena.feed["clip"])
        self._update(arena, gradients)
        for name, value in buffers.items():
            arena.buffers[name].copy_(value)
        feed = arena.feed
        count = feed["counts"].index_select(0, feed["counter"])  # [1]
        feed["total"].add_(losses.double() * count)
        feed["steps"].add_(1)
        feed["counter"].add_(1)
        return ()

    def trace(self, arena: StackedLanes) -> GraphModule:
        """Return the program as a graph of tensor operations, without running it."""
        with torch.no_grad():
            graph = make_fx(self, tracing_mode="fake")(*arena.flat())
        # A fake tensor's strides are not always the kernel's, and a view recorded for one can be
        # impossible on the other (elu's backward): reshape copies where it must.
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
            node.target = torch.ops.aten.reshape.default
        graph.recompile()
        return graph

    def _gradients(self, arena: StackedLanes) -> tuple[Named, Tensor, Named]:
        """Return gradients [K, P], mean batch losses [K] and new buffers [K, …]."""
        feed = arena.feed
        at = feed["counter"] * self.batch_size + torch.arange(
            self.rows, device=feed["counter"].device
        )
        picked = feed["orders"].index_select(1, at)  # [K, rows]
        weights = feed["weights"].index_select(0, feed["counter"])[0, : self.rows]  # [rows]
        lanes = {name: feed[name] for name in LANE_NUMBERS}
        gradient = grad_and_value(self._lane_loss, has_aux=True)
        gradients, (losses, buffers) = vmap(gradient, in_dims=(0, 0, 0, 0, 0, None))(
            arena.parameters,
            arena.buffers,
            lanes,
            feed["inputs"][picked],
            feed["targets"][picked],
            weights,
        )
        return gradients, losses, buffers

    def _lane_loss(
        self,
        parameters: Named,
        buffers: Named,
        lane: Named,
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Named]:
        """Return one lane's batch loss and its buffers after the forward pass."""
        # A layer writes its running statistics into the tensors it is given: give it copies, and
        # hand those back as a result. Functionalising the writes themselves would drop them.
        updated = {name: tensor.clone() for name, tensor in buffers.items()}
        state = {**parameters, **updated, **self._dropout_state(lane)}
        if self.features.augments:
            inputs = augmented(
                inputs,
                flip=lane["flips"],
                crop=lane["crops"],
                seed=lane["seeds"],
                step=lane["steps"],
            )
        device = inputs.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocast):
            outputs = functional_call(self.template, state, (inputs,))
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        smoothing = lane["smoothing"] if self.features.smoothing else 0.0
        return (self.loss(outputs, targets, smoothing) * weights).sum(), updated

    def _dropout_state(self, lane: Named) -> Named:
        if not self.features.dropout:
            return {}
        names = {"rate": "rates", "seed": "seeds", "step": "steps"}
        return {
            f"{path}.{own}": lane[fed]
            for path in dropouts(self.template)
            for own, fed in names.items()
        }

    def _update(self, arena: StackedLanes, gradients: Named) -> None:
        feed = arena.feed
        pace = feed["pace"].index_select(0, feed["counter"])[0]  # [K, C]
        for name, parameter in arena.parameters.items():
            average, square = arena.averages[name], arena.squares.get(name)
            new, new_average, new_square = self.update(
                parameter, gradients[name], average, square, lane=feed["lane"], step=pace
            )
            parameter.copy_(new)
            average.copy_(new_average)
            if square is not None and new_square is not None:
                square.copy_(new_square)


def prepare(template: nn.Module, features: Features) -> nn.Module:
    """Put the template in training mode, its dropouts only where they are needed."""
    template.train()
    for part in template.modules():
        if isinstance(part, Dropout):
            part.train(features.dropout)
    return template


def couples_rows(template: nn.Module) -> bool:
    """Whether a row's output depends on the batch's other rows, so that none may be added."""
    return any(isinstance(part, _BatchNorm) for part in template.modules())


def _with_l1(gradients: Named, arena: StackedLanes) -> Named:
    """Add the gradient of l1·Σ|p|."""
    return {
        name: gradient + _beside(arena.feed["l1"], gradient) * arena.parameters[name].sign()
        for name, gradient in gradients.items()
    }


def _clipped(gradients: Named, limit: Tensor) -> Named:
    """Scale each lane's gradient to a norm of at most `limit` [K], as torch's clip_grad_norm_."""
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]
    norm = torch.stack(squares).sum(0).sqrt()  # [K]
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * _beside(factor, gradient) for name, gradient in gradients.items()}


def _beside(lanes: Tensor, stacked: Tensor) -> Tensor:
    """Return [K] as [K, 1, …], to go with [K, P]."""
    return lanes.reshape(-1, *(1,) * (stacked.dim() - 1))
