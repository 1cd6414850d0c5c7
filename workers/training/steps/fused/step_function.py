"""The fused step as a pure function over stacked tensors, and its trace.

    K   lanes
    B   rows of a batch; of the last, shorter batch in a function of its own where rows are coupled
    S   steps of an epoch
    P   a parameter's own shape
    C   columns of a coefficient table (stacked.py)

One run takes one optimizer step in every lane: it gathers each lane's rows, computes losses and
gradients by vmap, updates the weights, and counts. It reads and writes only the tensors it is
given, always the same ones, so that a whole epoch is S calls with the same arguments: nothing is
recompiled, sliced or allocated between steps, and a CUDA graph of it can be replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

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


@dataclass(frozen=True, slots=True)
class Features:
    """What a step function computes beyond the bare minimum; off unless some lane needs it."""

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
class StepInputs:
    """What a call brings and what it counts; the same tensors in every call, written in place."""

    counter: Tensor  # [1] int64, the step within the call
    steps_taken: Tensor  # [K] int64, optimizer steps of each lane
    seeds: Tensor  # [K] int64
    dropout_rates: Tensor  # [K] float64, probabilities
    flip_rates: Tensor  # [K] float64, probabilities
    crops: Tensor  # [K] int64, pixels
    smoothing: Tensor  # [K]
    l1: Tensor  # [K]
    clip: Tensor  # [K] largest norm of a lane's gradient; infinite where it is not clipped
    lane_coefficients: Tensor  # [K, C] of the update, the same in every step
    step_coefficients: Tensor  # [S, K, C] of the update, by step
    orders: Tensor  # [K, S·B] int64, rows of the training part
    row_weights: Tensor  # [S, B], 1/rows of the batch, or 0 for rows that pad the last one
    batch_rows: Tensor  # [S] float64, rows of each batch
    loss_sums: Tensor  # [K] float64, the loss summed over the call's rows
    train_inputs: Tensor  # [n, …]
    train_targets: Tensor  # [n, …]

    def tensors(self) -> list[Tensor]:
        """Return all of them, in this order."""
        return [getattr(self, each.name) for each in fields(self)]

    @property
    def read_only(self) -> tuple[Tensor, ...]:
        """Those that the step function does not write; the large ones are among them."""
        return self.train_inputs, self.train_targets, self.orders


class LaneInputs(NamedTuple):
    """What one lane's forward pass reads beside weights and rows; scalars inside the vmap."""

    seed: Tensor
    steps_taken: Tensor
    dropout_rate: Tensor
    flip_rate: Tensor
    crop: Tensor
    smoothing: Tensor


@dataclass(slots=True)
class StackedLanes:
    """Every tensor a step function reads or writes.

    Attributes:
        parameters: Name -> [K, P].
        averages: Slot a of each parameter, [K, P].
        squares: Slot b, [K, P]; empty where no lane's optimizer has one.
        buffers: Name -> [K, …], those of normalisation layers and of user modules.
        frozen: Name -> [K, P] of parameters that are not trained, each lane's own.
        shared: Name -> P of those that are the same in every lane.
    """

    parameters: Named
    averages: Named
    squares: Named
    buffers: Named
    frozen: Named
    shared: Named
    inputs: StepInputs

    @property
    def of_lanes(self) -> Named:
        """Name -> [K, …], what a network is called with but for what all lanes share."""
        return self.parameters | self.frozen | self.buffers

    def flat(self) -> list[Tensor]:
        """Return all tensors, in the order in which `StepFunction` takes them."""
        named = [tensor for group in self._named() for tensor in group.values()]
        return [*named, *self.inputs.tensors()]

    def refilled(self, tensors: Sequence[Tensor]) -> "StackedLanes":
        """Return the same names over other `tensors`, ordered as in `flat`."""
        rest = iter(tensors)
        named = [{name: next(rest) for name in group} for group in self._named()]
        parameters, averages, squares, buffers, frozen, shared = named
        inputs = StepInputs(*rest)
        return StackedLanes(parameters, averages, squares, buffers, frozen, shared, inputs)

    def _named(self) -> tuple[Named, ...]:
        return (
            self.parameters, self.averages, self.squares, self.buffers, self.frozen, self.shared,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class StepFunction:
    """One optimizer step of every lane, written once and traced.

    Attributes:
        template: The network of the group's shapes; its own weights are never used.
        loss: By row.
        rows: Rows of the batch.
        batch_size: B, the distance between two batches in `orders`.
        features: What is computed.
        autocast: Compute in bfloat16.
        stacked: For names; the tensors it runs on are passed.
        update: The optimizers' step.
    """

    template: nn.Module
    loss: RowLoss
    rows: int
    batch_size: int
    features: Features
    autocast: bool
    stacked: StackedLanes
    update: Update

    def __call__(self, *tensors: Tensor) -> tuple[()]:
        """Take the step, in place, on tensors as in `StackedLanes.flat`."""
        stacked = self.stacked.refilled(tensors)
        gradients, losses, buffers = self._gradients(stacked)
        if self.features.l1:
            gradients = _with_l1(gradients, stacked)
        if self.features.clip:
            gradients = _clipped(gradients, stacked.inputs.clip)
        inputs = stacked.inputs
        inputs.steps_taken.add_(1)  # first: an update that breaks midway is not taken for none
        self._update(stacked, gradients)
        for name, value in buffers.items():
            stacked.buffers[name].copy_(value)
        rows = inputs.batch_rows.index_select(0, inputs.counter)  # [1]
        # In float64: in float32 a long epoch's sum would lose digits of each batch.
        inputs.loss_sums.add_(losses.double() * rows)
        inputs.counter.add_(1)
        return ()

    def trace(self, stacked: StackedLanes) -> GraphModule:
        """Return the step function as a graph of tensor operations, without running it."""
        with torch.no_grad():
            graph = make_fx(self, tracing_mode="fake")(*stacked.flat())
        # A fake tensor's strides are not always the kernel's, and a view recorded for one can be
        # impossible on the other (elu's backward): reshape copies where it must.
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
            node.target = torch.ops.aten.reshape.default
        graph.recompile()
        return graph

    def _gradients(self, stacked: StackedLanes) -> tuple[Named, Tensor, Named]:
        """Return gradients [K, P], mean batch losses [K] and new buffers [K, …]."""
        inputs = stacked.inputs
        # Positions of the batch's rows in `orders`: the counter is a tensor, so that every step is
        # the same step function.
        first = inputs.counter * self.batch_size  # [1]
        at = first + torch.arange(self.rows, device=first.device)  # [B]
        rows = inputs.orders.index_select(1, at)  # [K, B]
        weights = inputs.row_weights.index_select(0, inputs.counter)[0, : self.rows]  # [B]
        lanes = LaneInputs(
            seed=inputs.seeds,
            steps_taken=inputs.steps_taken,
            dropout_rate=inputs.dropout_rates,
            flip_rate=inputs.flip_rates,
            crop=inputs.crops,
            smoothing=inputs.smoothing,
        )  # each [K]
        gradient = grad_and_value(self._lane_loss, has_aux=True)
        gradients, (losses, buffers) = vmap(gradient, in_dims=(0, 0, 0, None, 0, 0, 0, None))(
            stacked.parameters,  # [K, P]
            stacked.buffers,  # [K, …]
            stacked.frozen,  # [K, P]
            stacked.shared,  # P
            lanes,
            inputs.train_inputs[rows],  # [K, B, …]
            inputs.train_targets[rows],  # [K, B, …]
            weights,
        )
        return gradients, losses, buffers

    def _lane_loss(
        self,
        parameters: Named,
        buffers: Named,
        frozen: Named,
        shared: Named,
        lane: LaneInputs,
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Named]:
        """Return one lane's batch loss and its buffers after the forward pass.

        Args:
            parameters: Name -> P; `buffers` likewise, and what is not trained.
            inputs: [B, …]; `targets` likewise.
            weights: [B], by which the rows' losses are summed to the mean.
        """
        # A layer writes its running statistics into the tensors it is given: give it copies, and
        # hand those back as a result. Functionalising the writes themselves would drop them.
        updated = {name: tensor.clone() for name, tensor in buffers.items()}
        state = {**parameters, **frozen, **shared, **updated, **self._dropout_state(lane)}
        if self.features.augments:
            inputs = augmented(
                inputs,
                flip=lane.flip_rate,
                crop=lane.crop,
                seed=lane.seed,
                step=lane.steps_taken,
            )
        device = inputs.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocast):
            outputs = functional_call(self.template, state, (inputs,))  # [B, …]
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()  # a softmax of bfloat16 is off in the third digit
        smoothing = lane.smoothing if self.features.smoothing else 0.0
        losses = self.loss(outputs, targets, smoothing)  # [B]
        # Σ wᵢ·lossᵢ is the mean over the batch's real rows: padding has the weight zero.
        return (losses * weights).sum(), updated

    def _dropout_state(self, lane: LaneInputs) -> Named:
        """Return what every dropout draws its masks from: they depend on nothing else."""
        if not self.features.dropout:
            return {}
        drawn_from = {"rate": lane.dropout_rate, "seed": lane.seed, "step": lane.steps_taken}
        return {
            f"{path}.{name}": value
            for path in dropouts(self.template)
            for name, value in drawn_from.items()
            if f"{path}.{name}" not in self.stacked.buffers  # a user's network's own rate
        }

    def _update(self, stacked: StackedLanes, gradients: Named) -> None:
        """Take the optimizers' step, in place, parameter by parameter."""
        inputs = stacked.inputs
        of_step = inputs.step_coefficients.index_select(0, inputs.counter)[0]  # [K, C]
        for name, parameter in stacked.parameters.items():
            average, square = stacked.averages[name], stacked.squares.get(name)
            new, new_average, new_square = self.update(
                parameter, gradients[name], average, square,
                lane=inputs.lane_coefficients, step=of_step,
            )  # fmt: skip
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


def with_wide_norms(template: nn.Module) -> nn.Module:
    """Have the template normalise in its parameters' type, whatever autocast made of the inputs.

    Autocast leaves norms alone, whose kernels take bfloat16 beside float32; what vmap makes of them
    does not.
    """
    for part in template.modules():
        if isinstance(part, _BatchNorm | nn.LayerNorm | nn.GroupNorm):
            part.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return template


def couples_rows(template: nn.Module) -> bool:
    """Whether a row's output depends on the batch's other rows, so that none may be added."""
    return any(isinstance(part, _BatchNorm) for part in template.modules())


def _with_l1(gradients: Named, stacked: StackedLanes) -> Named:
    """Add the gradient of l1·Σ|p|, which is l1·sign(p), and 0 at 0 as autograd has it."""
    l1 = stacked.inputs.l1  # [K]
    return {
        name: gradient + _beside(l1, gradient) * stacked.parameters[name].sign()
        for name, gradient in gradients.items()
    }


def _clipped(gradients: Named, limit: Tensor) -> Named:
    """Scale each lane's gradient to a norm of at most `limit` [K].

    g·min(1, limit / (‖g‖₂ + 1e-6)), the norm over all parameters of the lane: Pascanu et al. 2013,
    algorithm 1, with the 1e-6 of torch.nn.utils.clip_grad_norm_.
    """
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]  # each [K]
    norm = torch.stack(squares).sum(0).sqrt()  # [K]
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # [K]; 1 where the limit is infinite
    return {name: gradient * _beside(factor, gradient) for name, gradient in gradients.items()}


def _beside(lanes: Tensor, stacked: Tensor) -> Tensor:
    """Return [K] as [K, 1, …], to go with [K, P]."""
    return lanes.reshape(-1, *(1,) * (stacked.dim() - 1))
