"""Small networks on a CPU: many trials per call, in our own C++ (kernels.cpp).

    K   lanes            n   rows of the call        S   steps of the call
    P   numbers of a trial's weights

A small network leaves a CPU idle between operations, and a stack of many leaves its caches. Here
each lane takes all steps of a call in one go, at its own width: nothing is stacked, padded or
compiled per group, and an idle lane costs nothing.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner_service.definition.catalogue import NETWORKS
from workers.training.nets import networks
from workers.training.optim import fused
from workers.training.optim.registry import complete, entry_of
from workers.training.optim.updates import SharedUpdate
from workers.training.steps.groups import GroupSpec, dtype_of
from workers.training.steps.native.layout import Layout, layout_of
from workers.training.steps.native.library import (
    MOST_LAYERS,
    Library,
    OptimizerStruct,
    SliceStruct,
    TrialStruct,
)
from workers.training.steps.native.recurrent import KINDS as KINDS_OF_CELLS
from workers.training.steps.native.recurrent import too_large
from workers.training.steps.step import LaneHyper, LaneState

ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "mae", "huber")
ROLES = ("weights", "average", "square")


def suits(network: Mapping[str, Any]) -> bool:
    """Whether there is native code for the network, at any width."""
    kind, network = str(network["type"]), networks.complete(network)
    if kind in KINDS_OF_CELLS:
        return _activation(network) in ACTIVATIONS and 2 * network["hidden_layers"] <= MOST_LAYERS
    if kind not in ("mlp", "cnn") or network["activation"] not in ACTIVATIONS:
        return False
    layers = network["hidden_layers" if kind == "mlp" else "conv_layers"]
    return layers + 2 <= MOST_LAYERS and (kind == "mlp" or network["kernel_size"] % 2 == 1)


def unsuitable(group: GroupSpec) -> str | None:
    """Return why a group cannot run natively; None if it can."""
    if group.device.type != "cpu":
        return "the device is no CPU"
    if group.optimizer is not None and entry_of(group.optimizer).update.native is None:
        return f"optimizer {group.optimizer} has no native code"
    if group.augments:
        return "flips and crops have no native code"
    if group.streamed and len(group.inputs) == 3 and group.inputs[0] > 1:
        return "streamed images of several channels have no native code"  # it copies their rows
    if not suits(group.network):
        return "the network has no native code"
    if str(group.network["type"]) in KINDS_OF_CELLS and _is_too_large(group):
        return "its batches of sequences are too large for native code"
    # tf32 is a GPU's shorter float32: a CPU has no such thing, and float32 is what it computes.
    if group.precision not in ("float32", "float64", "tf32"):
        return f"precision {group.precision} has no native code"
    return None if group.train_loss in LOSSES else f"loss {group.train_loss} has no native code"


def _is_too_large(group: GroupSpec) -> bool:
    # Widths may differ within a group: the widest that may share one stands for all.
    kind = str(group.network["type"])
    return too_large(
        {**(NETWORKS[kind].native_limits or {}), **group.network}, group.inputs, group.batch_size
    )


@dataclass(slots=True)
class _Lane:
    """One trial in its lane: its tensors, and what the library sees of them."""

    hyper: LaneHyper
    layout: Layout
    flat: dict[str, Tensor]  # weights, average, square: [P]
    statistics: Tensor  # of batch normalisation
    batches: dict[str, Tensor]  # num_batches_tracked of each batch normalisation
    trial: Any
    step_options: list[float]

    def views(self, role: str) -> dict[str, Tensor]:
        """Return each parameter's place in a role's flat tensor."""
        return self.layout.parameters(self.flat[role])


class NativeStep:
    """K networks of one group, each of its own width.

    Args:
        group: What the trials share.
        lanes: K.
        library: As `native_library.build` made it.
    """

    backend = "native"
    backend_reason: str | None = None

    def __init__(self, group: GroupSpec, lanes: int, library: Path) -> None:
        self.lanes = lanes
        self._group = group
        self._dtype = dtype_of(group.precision)
        self._library = Library(library, self._dtype)
        self._inputs = channels_last(group.train_inputs)
        self._targets = group.train_targets.contiguous()
        self._occupied: list[_Lane | None] = [None] * lanes
        self._kept: dict[int, LaneState] = {}
        self._buffer = torch.zeros(0, dtype=torch.uint8)

    # -- lanes ------------------------------------------------------------------------------

    def put(self, lane: int, hyper: LaneHyper, state: LaneState | None) -> None:
        """Load a trial into a lane: from a canonical state, or freshly initialised."""
        if state is None:
            state = self._initial(hyper)
        made = self._new_lane(hyper, int(state["optimizer/steps"]))
        slots = fused.slots_of(hyper.optimizer, hyper.options)
        for name, view in made.views("weights").items():
            view.copy_(state[f"parameters/{name}"].view(view.shape))
        for role, slot in slots.items():
            for name, view in made.views(role).items():
                held = state.get(f"optimizer/{slot}/{name}")
                if held is not None:
                    view.copy_(held.view(view.shape))
        for name, view in made.layout.buffers(made.statistics).items():
            view.copy_(state[f"buffers/{name}"])
        made.batches = {name: state[f"buffers/{name}"].clone() for name in made.layout.counters}
        self._occupied[lane] = made

    def take(self, lane: int) -> LaneState:
        """Return a copy of the lane's canonical state."""
        held = self._lane(lane)
        state = _weights(held)
        state["optimizer/steps"] = torch.tensor(held.trial.steps)
        if held.trial.steps == 0:
            return state
        for role, slot in fused.slots_of(held.hyper.optimizer, held.hyper.options).items():
            for name, view in held.views(role).items():
                state[f"optimizer/{slot}/{name}"] = _copy(view, held.layout.shapes[name])
        return state

    def clear(self, lane: int) -> None:
        """Make the lane idle."""
        self._occupied[lane] = None

    def remember(self, lanes: Sequence[int]) -> None:
        """Keep a copy of the present weights of these lanes aside."""
        for lane in lanes:
            self._kept[lane] = _weights(self._lane(lane))

    def recall(self, lane: int) -> LaneState:
        """Return what was remembered of a lane."""
        return dict(self._kept[lane])

    # -- training ---------------------------------------------------------------------------

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        """Train on orders [K, n] with rates [K, S]; return [K], losses summed over rows."""
        orders = orders.contiguous()  # [K, n]; the library reads a lane's row as plain memory
        coefficients = self._step_coefficients(learning_rates)
        totals = torch.zeros(self.lanes, dtype=torch.float64)
        for index, lane in enumerate(self._occupied):
            if lane is not None:
                # Lane after lane: each lane's weights stay in the cache for all its steps.
                totals[index] = self._train(lane, orders[index], coefficients[index])
        return totals

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Return [K, rows, O] outputs in evaluation mode; zeros for idle lanes."""
        rows = channels_last(inputs.to(self._dtype))  # [rows, …]
        outputs = torch.zeros(self.lanes, len(rows), self._group.outputs, dtype=self._dtype)
        for index, lane in enumerate(self._occupied):
            if lane is not None:
                buffer, out = self._buffer_for(lane), outputs[index]
                self._library.evaluate(
                    lane.trial, rows.data_ptr(), len(rows), out.data_ptr(), buffer.data_ptr()
                )
        return outputs

    def _train(self, lane: _Lane, order: Tensor, coefficients: Tensor) -> float:
        """Train one lane on rows `order` [n] with `coefficients` [S, 3]."""
        part = SliceStruct(
            rows=self._inputs.data_ptr(),
            targets=self._targets.data_ptr(),
            order=order.data_ptr(),
            coefficients=coefficients.data_ptr(),
            rows_in_slice=len(order),
            batch=self._group.batch_size,
            loss=LOSSES.index(self._group.train_loss),
        )
        total = self._library.train(lane.trial, part, self._buffer_for(lane).data_ptr())
        lane.trial.steps += len(coefficients)
        # The library counts no batches: num_batches_tracked is told by shapes alone.
        full, last = divmod(len(order), self._group.batch_size)
        for name, count in lane.batches.items():
            # A batch of a single value is none for its statistics (networks.BatchNorm).
            positions = lane.layout.positions[name]
            count += full * (self._group.batch_size * positions > 1) + (last * positions > 1)
        return float(total)

    def _step_coefficients(self, learning_rates: Tensor) -> Tensor:
        """Return [K, S, 3], what of the update changes from step to step; zeros for idle lanes."""
        table = torch.zeros(*learning_rates.shape, len(fused.STEP_COLUMNS), dtype=torch.float64)
        lanes: dict[str | None, list[int]] = {}  # by the kind, where it has an update of its own
        for index, lane in enumerate(self._occupied):
            if lane is not None:
                kind = lane.hyper.optimizer
                lanes.setdefault(None if entry_of(kind).mixes else kind, []).append(index)
        for own, indices in lanes.items():
            held = [self._lane(index) for index in indices]
            source = torch.tensor([lane.step_options for lane in held], dtype=torch.float64)
            steps = torch.tensor([lane.trial.steps for lane in held])
            theirs = fused.step_coefficients(source, learning_rates[indices], steps, kind=own)
            table[indices] = theirs.transpose(0, 1)
        return table

    # -- memory -----------------------------------------------------------------------------

    def _lane(self, lane: int) -> _Lane:
        held = self._occupied[lane]
        if held is None:
            raise LookupError(f"only an occupied lane has a state, but lane {lane} is idle")
        return held

    def _initial(self, hyper: LaneHyper) -> LaneState:
        group = self._group
        network = hyper.network or group.network
        module = networks.build(network, inputs=group.inputs, outputs=group.outputs)
        networks.initialise(module, hyper.seed)
        parameters = {f"parameters/{name}": p.detach() for name, p in module.named_parameters()}
        own = {name for name, _ in module.named_parameters()}
        buffers = {f"buffers/{n}": t for n, t in module.state_dict().items() if n not in own}
        return {**parameters, **buffers, "optimizer/steps": torch.tensor(0)}

    def _new_lane(self, hyper: LaneHyper, steps: int) -> _Lane:
        network = networks.complete(hyper.network or self._group.network)
        layout = layout_of(
            network, self._group.inputs, self._group.outputs, stride=self._library.stride
        )
        flat = {role: torch.zeros(layout.size, dtype=self._dtype) for role in ROLES}
        statistics = torch.zeros(layout.statistics, dtype=self._dtype)
        trial = TrialStruct(
            layers=ctypes.addressof(layout.layers),
            count=len(layout.layers),
            activation=ACTIVATIONS.index(_activation(network)),
            size=layout.size,
            cells=ctypes.addressof(layout.cells),
            cell_count=len(layout.cells),
            optimizer=_optimizer(hyper),
            **{role: flat[role].data_ptr() for role in ROLES},
            statistics=statistics.data_ptr(),
            dropout=hyper.dropout,
            smoothing=hyper.label_smoothing,
            l1=hyper.l1,
            # Negative: not clipped. Infinity would do as well, at the cost of a norm per step.
            clip=-1.0 if hyper.gradient_clip is None else hyper.gradient_clip,
            seed=hyper.seed,
            steps=steps,
        )
        options = fused.step_options_of(hyper.optimizer, hyper.options)
        return _Lane(hyper, layout, flat, statistics, {}, trial, options)

    def _buffer_for(self, lane: _Lane) -> Tensor:
        """Return the workspace, at least as large as the lane needs."""
        size = self._library.buffer_bytes(lane.trial, self._group.batch_size)
        if len(self._buffer) < size:  # one for all lanes, which never train at once
            self._buffer = torch.zeros(size, dtype=torch.uint8)
        return self._buffer


def _activation(network: Mapping[str, Any]) -> str:
    """Return a complete network's non-linearity; gru and lstm have no choice."""
    return str(network.get("activation", "tanh"))


def channels_last(inputs: Tensor) -> Tensor:
    """Return rows [n, …] as the library reads them: images [n, H, W, C], others flat."""
    if inputs.dim() == 4:
        inputs = inputs.movedim(1, -1)
    return inputs.contiguous()


def _optimizer(hyper: LaneHyper) -> OptimizerStruct:
    update, given = entry_of(hyper.optimizer).update, complete(hyper.optimizer, hyper.options)
    if update.native is None:
        raise ValueError(f"optimizer {hyper.optimizer} has no native code")
    # A decoupled decay is in the step's coefficients: adamw has no l2, and lion's is not read.
    decay = given["weight_decay"]
    if isinstance(update, SharedUpdate):
        decay = update.lane(given).get("l2", 0.0)
    square = next((given[name] for name in ("beta2", "alpha", "rho") if name in given), 0.0)
    return OptimizerStruct(
        kind=update.native,
        l2=decay,
        momentum=given.get("momentum", 0.0),
        beta2=square,
        eps=given.get("eps", 0.0),
        beta1=given.get("beta1", 0.0),
    )


def _weights(lane: _Lane) -> LaneState:
    shapes = lane.layout.shapes
    state = {f"parameters/{n}": _copy(v, shapes[n]) for n, v in lane.views("weights").items()}
    buffers = lane.layout.buffers(lane.statistics) | lane.batches
    return state | {f"buffers/{name}": tensor.clone() for name, tensor in buffers.items()}


def _copy(view: Tensor, shape: Sequence[int]) -> Tensor:
    return view.clone(memory_format=torch.contiguous_format).view(tuple(shape))
