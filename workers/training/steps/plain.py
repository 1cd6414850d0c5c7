"""The plain step: one lane, autograd and `torch.optim`; the reference for every other step."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.training.nets import networks
from workers.training.nets.augmentation import augmented
from workers.training.nets.losses import row_losses
from workers.training.nets.sequences import use_torch_kernels
from workers.training.optim import plain
from workers.training.steps.groups import GroupSpec, dtype_of, without_dropout
from workers.training.steps.lane_budget import evaluation_rows
from workers.training.steps.step import LaneHyper, LaneState

EVALUATION_ROWS = 4096  # rows of one forward pass: bounds the activations of image networks


@dataclass(slots=True)
class _PlainLane:
    """What is in the lane. `steps`: optimizer steps taken."""

    hyper: LaneHyper
    optimizer: torch.optim.Optimizer
    steps: int


class PlainStep:
    """One trial at a time on one device.

    Args:
        reason: Why the group runs plain; None where nothing faster was wanted.
    """

    lanes = 1
    backend = "plain"

    def __init__(self, group: GroupSpec, reason: str | None = None) -> None:
        self.backend_reason = reason
        self._group = group
        self._loss = row_losses(group.train_loss)
        self._built_from: Mapping[str, Any] | None = None
        self._rows_at_once = 0  # of an evaluation; 0: not known yet
        self._template: nn.Module  # float32, on the CPU: where initial weights are drawn
        self._module: nn.Module  # in the training dtype, on the device
        self._dropouts: list[networks.Dropout] = []
        self._user_module = False
        self._trial: _PlainLane | None = None
        self._kept: LaneState = {}

    def put(self, lane: int, hyper: LaneHyper, state: LaneState | None) -> None:
        """Load a trial: from a canonical state, or freshly initialised from its seed."""
        _only_lane(lane)
        self._build(without_dropout(hyper.network or self._group.network))
        module = self._module
        trained = [parameter for _, parameter in self._trained()]
        if not trained:
            raise ValueError("a network needs something to train, but has no parameter that is")
        optimizer = plain.build(hyper.optimizer, hyper.options, trained)
        steps = 0
        if state is None:
            # Drawn on the CPU in float32, then moved: the same weights on every device.
            networks.initialise(self._template, hyper.seed)
            module.load_state_dict(self._template.state_dict())
        else:
            load_weights(module, state)
            plain.load_state(hyper.optimizer, optimizer, self._trained(), state)
            steps = int(state["optimizer/steps"])
        rate = None if self._user_module else hyper.dropout
        networks.arm(module, rate=rate, seed=hyper.seed, step=steps)
        self._trial = _PlainLane(hyper, optimizer, steps)
        self._kept = {}  # the weights of whoever was here before are nobody's best

    def take(self, lane: int) -> LaneState:
        """Return a copy of the canonical state, on the CPU."""
        _only_lane(lane)
        trial = self._trial
        if trial is None:
            raise LookupError("only an occupied lane has a state, but lane 0 is idle")
        named = self._trained()
        state = plain.state_of(trial.hyper.optimizer, trial.optimizer, named, steps=trial.steps)
        return _on_cpu(_weights(self._module) | state)

    def clear(self, lane: int) -> None:
        """Make the lane idle."""
        _only_lane(lane)
        self._trial = None

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        """Train on orders [1, rows] with rates [1, steps]; return [1], the rows' summed loss."""
        total = torch.zeros((), dtype=torch.float64, device=self._group.device)
        if self._trial is None:
            return total.unsqueeze(0)
        self._module.train()
        for dropout in self._dropouts:
            # A mask at rate 0 keeps everything, and costs as much as the rest of a small step.
            dropout.train(float(dropout.rate) > 0)
        rates = learning_rates[0].tolist()  # [S] floats: torch.optim takes no tensor per step
        with precision(self._group.precision, self._group.device):
            for batch, rate in zip(_batches(self._group, orders[0]), rates, strict=True):
                # On the device: `.item()` here would wait for it once a step.
                total += self._step(self._trial, batch, rate).double() * len(batch[1])
        return total.unsqueeze(0)

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Return [1, rows, …] outputs in evaluation mode."""
        with precision(self._group.precision, self._group.device):
            if self._rows_at_once == 0:
                self._rows_at_once = rows_at_once(self._module, inputs, self._group.device)
            outputs = forward(self._module, inputs, self._group.device, rows=self._rows_at_once)
            return outputs.unsqueeze(0)

    def remember(self, lanes: Sequence[int]) -> None:
        """Keep a copy of the present weights, on the device."""
        for lane in lanes:
            _only_lane(lane)
            self._kept = _weights(self._module)

    def recall(self, lane: int) -> LaneState:
        """Return the remembered weights, on the CPU."""
        _only_lane(lane)
        return _on_cpu(self._kept)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that are: what is frozen has no state of the optimizer either."""
        return [
            (name, each) for name, each in self._module.named_parameters() if each.requires_grad
        ]

    def _build(self, network: Mapping[str, Any]) -> None:
        if self._built_from == network:
            return
        group = self._group
        self._template = networks.build(network, inputs=group.inputs, outputs=group.outputs)
        module = copy.deepcopy(self._template)
        use_torch_kernels(module)
        self._module = module.to(device=group.device, dtype=dtype_of(group.precision))
        self._dropouts = list(networks.dropouts(self._module).values())
        self._user_module = networks.NETWORKS[str(network["type"])].user_module
        self._built_from = network
        self._rows_at_once = 0

    def _step(self, trial: _PlainLane, batch: tuple[Tensor, Tensor], rate: float) -> Tensor:
        """Take one optimizer step on inputs and targets [B, …]; return the mean loss.

        The loss is without penalty.
        """
        hyper, module, taken = trial.hyper, self._module, trial.steps
        trial.steps += 1  # first: a step that breaks midway is not taken for none
        for dropout in self._dropouts:
            if dropout.training:
                dropout.step.fill_(taken)
        if self._user_module:
            # Its dropout draws from torch's generator: the same masks wherever the trial runs.
            torch.manual_seed((hyper.seed * 1_000_003 + taken) % 2**63)
        inputs, targets = batch  # [B, …], [B] or [B, T]
        outputs = _full(module(_inputs(inputs, hyper, taken)))
        losses = self._loss(outputs, targets, hyper.label_smoothing)  # [B]
        loss = losses.mean()
        trial.optimizer.zero_grad()
        # The loss that is told is without the penalty: trials that differ in l1 stay comparable.
        penalised = loss + hyper.l1 * _magnitude(module) if hyper.l1 else loss
        penalised.backward()  # type: ignore[no-untyped-call]
        if hyper.gradient_clip is not None:
            # After the penalty's gradient and before weight decay, which torch adds in the step.
            nn.utils.clip_grad_norm_(module.parameters(), hyper.gradient_clip)
        plain.set_rate(trial.optimizer, rate)
        trial.optimizer.step()
        return loss.detach()


def _batches(group: GroupSpec, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets [B, …] of rows `order`, on the device."""
    inputs, device = group.train_inputs, group.device
    # Row numbers where the inputs lie and where the targets do: streamed inputs stay on the CPU.
    here = torch.split(order.to(inputs.device), group.batch_size)
    there = torch.split(order.to(device), group.batch_size)
    for near, far in zip(here, there, strict=True):
        if inputs.device.type == device.type:
            yield inputs[near], group.train_targets[far]
            continue
        batch = torch.empty((len(near), *inputs.shape[1:]), dtype=inputs.dtype, pin_memory=True)
        torch.index_select(inputs, 0, near, out=batch)
        # Pinned, the copy holds nobody up: the next batch is gathered while this one trains.
        yield batch.to(device, non_blocking=True), group.train_targets[far]


def _inputs(rows: Tensor, hyper: LaneHyper, step: int) -> Tensor:
    """Return a batch's rows as they are trained on."""
    if not hyper.augments:
        return rows

    # As tensors, the fused step's types: a Python number would round the probability otherwise.
    # Filled in on the device: a copy of `torch.tensor` there would be waited for at every step.
    def number(value: float) -> Tensor:
        kind = torch.float64 if isinstance(value, float) else torch.int64
        return torch.full((), value, dtype=kind, device=rows.device)

    return augmented(
        rows,
        flip=number(float(hyper.random_flip)),
        crop=number(hyper.random_crop),
        seed=number(hyper.seed),
        step=number(step),
    )


def rows_at_once(module: nn.Module, inputs: Tensor, device: torch.device) -> int:
    """Return how many of the rows [N, …] to evaluate at once; a CPU is sent a few to find out."""
    rows = networks.rows_at_once(module, EVALUATION_ROWS)
    if device.type != "cpu" or not len(inputs):
        return rows
    return evaluation_rows(module.eval(), inputs, rows)


def forward(
    module: nn.Module, inputs: Tensor, device: torch.device, *, rows: int | None = None
) -> Tensor:
    """Return [rows, …] outputs on the device, in evaluation mode, without gradients, by chunks.

    Args:
        rows: Of a chunk, where it is known.
    """
    module.eval()
    with torch.no_grad():
        parts = torch.split(inputs, rows or rows_at_once(module, inputs, device))
        return torch.cat([_full(module(part.to(device))) for part in parts])


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `parameters/…` and `buffers/…` of a canonical state into the module."""
    prefixes = ("parameters/", "buffers/")
    weights = {k.split("/", 1)[1]: v for k, v in state.items() if k.startswith(prefixes)}
    module.load_state_dict(weights)


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in tf32 or bfloat16 inside; what torch did before is put back after."""
    products, convolutions = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = (
        name == "tf32"
    )  # of itself torch allows it, unlike in products
    # Without its cache, which would go on with the rounded weights of the first of several steps.
    autocast = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False
    )
    try:
        with autocast:
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _weights(module: nn.Module) -> LaneState:
    parameters = {name for name, _ in module.named_parameters()}
    return {
        f"{'parameters' if name in parameters else 'buffers'}/{name}": tensor.detach().clone()
        for name, tensor in module.state_dict().items()
    }


def _on_cpu(state: LaneState) -> LaneState:
    return {name: tensor.cpu() for name, tensor in state.items()}


def _full(outputs: Tensor) -> Tensor:
    # Losses and metrics of a bfloat16 network are computed in float32.
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def _magnitude(module: nn.Module) -> Tensor:
    return torch.stack([parameter.abs().sum() for parameter in module.parameters()]).sum()


def _only_lane(lane: int) -> None:
    if lane != 0:
        raise IndexError(f"the plain step has one lane, 0, but got lane {lane}")
