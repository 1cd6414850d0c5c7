"""The fused step: K lanes of one group trained at once.

    K   lanes                S   steps of an epoch
    B   batch size           n   rows of the training part
    P   a parameter's shape

The weights and optimizer state of all lanes are stacked tensors [K, P] (step_function.py); a lane
is a row of each. Idle lanes compute along with a learning rate of zero. What runs the step function
(compiled code, a traced graph) is the `Executor`'s business (executors.py).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from workers.training.data.room import free_on_gpu
from workers.training.nets import networks
from workers.training.nets.losses import row_losses
from workers.training.optim import fused
from workers.training.steps import lane_budget
from workers.training.steps.fused.loading import LaneLoader
from workers.training.steps.fused.padding import corner
from workers.training.steps.fused.step_function import (
    Features,
    Named,
    StackedLanes,
    StepFunction,
    StepInputs,
    couples_rows,
    prepare,
    with_wide_norms,
)
from workers.training.steps.groups import GroupSpec, dtype_of, without_dropout
from workers.training.steps.lane_budget import evaluation_rows
from workers.training.steps.plain import precision
from workers.training.steps.step import LaneHyper, LaneState

EVALUATION_ROWS = 16384  # rows times lanes of one forward pass: bounds the activations
EVALUATION_SHARE = 0.25  # of a GPU's free memory, for the activations of one forward pass

LANE_INPUTS = (
    "steps_taken", "seeds", "dropout_rates", "flip_rates", "crops", "smoothing", "l1", "clip",
    "lane_coefficients",
)  # fmt: skip

CompiledStep = Callable[[Sequence[Tensor]], object]


class Executor(Protocol):
    """Turns step functions into something that runs, and knows as which backend."""

    @property
    def backend(self) -> str:
        """Its name."""

    @property
    def reason(self) -> str | None:
        """Why it is not a faster one."""

    def runnable(self, function: StepFunction, stacked: StackedLanes) -> CompiledStep:
        """Return what takes one step on these tensors, the fastest it has."""


class FusedStep:
    """K trials of one group.

    Args:
        group: What the trials share.
        lanes: K.
        executor: Runs the step function.
    """

    def __init__(self, group: GroupSpec, lanes: int, executor: Executor) -> None:
        self.lanes = lanes
        self._group = group
        self._executor = executor
        self._dtype = dtype_of(group.precision)
        self._loss = row_losses(group.train_loss)
        self._template = self._built(group.network).to(device=group.device, dtype=self._dtype)
        if group.precision == "bfloat16":
            with_wide_norms(self._template)
        self._eval_module = copy.deepcopy(self._template).eval()
        # Nothing is known of a user's network: it may couple rows in any way.
        user_module = networks.NETWORKS[str(group.network["type"])].user_module
        self._couples = user_module or couples_rows(self._template)
        self._hypers: list[LaneHyper | None] = [None] * lanes
        self._shapes: list[Mapping[str, torch.Size]] = [{}] * lanes
        self._seeded: dict[str, nn.Module] = {}  # networks in which initial weights are drawn
        # A user's network keeps the rates that it was built with, the same in every lane.
        self._own_rates = user_module
        self._per_trial = networks.NETWORKS[str(group.network["type"])].per_trial
        rates = [float(part.rate) for part in networks.dropouts(self._template).values()]
        drops = any(rates) or (bool(rates) and bool(self._per_trial))
        self._features = Features(dropout=user_module and drops)
        self._functions: dict[tuple[int, Features], StepFunction] = {}
        self._frozen = frozenset(
            name for name, each in self._template.named_parameters() if not each.requires_grad
        )
        self._shared = self._same_for_all()
        self._shared_on_cpu = {name: each.cpu() for name, each in self._shared.items()}
        self._stacked = self._new_stack()
        self._loader = self._new_loader()
        self._source = torch.zeros(lanes, len(fused.STEP_OPTION_COLUMNS), dtype=torch.float64)
        self._kept: dict[str, Named] = {}
        self._chunk = 0  # rows of an evaluation's forward pass; 0: not known yet

    @property
    def backend(self) -> str:
        """What runs the step function at present."""
        return self._executor.backend

    @property
    def backend_reason(self) -> str | None:
        """Why nothing faster does."""
        return self._executor.reason

    # -- lanes ------------------------------------------------------------------------------

    def put(self, lane: int, hyper: LaneHyper, state: LaneState | None) -> None:
        """Load a trial into a lane: from a canonical state, or freshly initialised."""
        if state is None:
            state = self._initial(hyper)
        self._require_shared(state)
        self._hypers[lane] = hyper
        # Features only come, they do not go: a function less would be compiled for every lane that
        # is refilled.
        self._features = self._features | Features.of(hyper)
        self._shapes[lane] = {key.split("/", 1)[1]: state[key].shape for key in _weights(state)}
        slots = fused.slots_of(hyper.optimizer, hyper.options)
        rows = {name: state[name] for name in self._named if name in state}
        rows |= self._rates(hyper)
        for role, slot in slots.items():
            for name in self._stacked.parameters:
                held = state.get(f"optimizer/{slot}/{name}")
                if held is not None:
                    rows[f"{role}/{name}"] = held
        self._loader.put(lane, rows | _hyper_rows(hyper, int(state["optimizer/steps"])))
        self._source[lane] = torch.tensor(
            fused.step_options_of(hyper.optimizer, hyper.options), dtype=torch.float64
        )

    def take(self, lane: int) -> LaneState:
        """Return a copy of the lane's canonical state, on the CPU."""
        hyper = self._hypers[lane]
        if hyper is None:
            raise LookupError(f"only an occupied lane has a state, but lane {lane} is idle")
        self._loader.flush()
        state = self._weights_of(lane, self._stacked.of_lanes)
        steps = self._stacked.inputs.steps_taken[lane].cpu().clone()
        state["optimizer/steps"] = steps
        if int(steps) == 0:
            return state
        stored = self._stored()
        for role, slot in fused.slots_of(hyper.optimizer, hyper.options).items():
            for name, wide in stored[role].items():
                state[f"optimizer/{slot}/{name}"] = _narrow(wide[lane], self._shapes[lane][name])
        return state

    def clear(self, lane: int) -> None:
        """Make the lane idle."""
        self._hypers[lane] = None

    def remember(self, lanes: Sequence[int]) -> None:
        """Keep a copy of the present weights of these lanes aside, on the device."""
        self._loader.flush()
        present = self._stacked.of_lanes
        if not self._kept:
            self._kept = {"weights": {name: wide.clone() for name, wide in present.items()}}
            return
        chosen = torch.tensor(list(lanes), device=self._group.device)  # [len(lanes)]
        for name, wide in present.items():
            self._kept["weights"][name].index_copy_(0, chosen, wide.index_select(0, chosen))

    def recall(self, lane: int) -> LaneState:
        """Return what was remembered of a lane, on the CPU."""
        return self._weights_of(lane, self._kept["weights"])

    # -- training ---------------------------------------------------------------------------

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        """Train on orders [K, n] with rates [K, S]; return [K], losses summed over rows."""
        rows, batch = orders.shape[1], self._group.batch_size
        self._loader.flush()
        self._write_inputs(orders, learning_rates)
        # Where rows are coupled (batch norm), rows that pad the last batch would change the others'
        # outputs: it has a step function of its own size.
        short = rows % batch if self._couples else 0
        with torch.no_grad(), precision(self._group.precision, self._group.device):
            self._run(
                [(-(-rows // batch) - (1 if short else 0), batch), (1 if short else 0, short)]
            )
        occupied = [hyper is not None for hyper in self._hypers]
        total = self._stacked.inputs.loss_sums.cpu()
        # Idle lanes compute along, on whatever they last held: what they say is dropped.
        return torch.where(torch.tensor(occupied), total, torch.zeros_like(total))

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Return [K, rows, …] outputs in evaluation mode."""
        self._loader.flush()
        with torch.no_grad(), precision(self._group.precision, self._group.device):
            joined = self._by_chunks(inputs)
        return joined.float() if joined.dtype == torch.bfloat16 else joined

    def _by_chunks(self, inputs: Tensor) -> Tensor:
        state = self._stacked.of_lanes
        if self._chunk == 0:
            self._chunk = self._evaluation_rows(inputs)
        while True:
            try:
                parts = [self._outputs(state, part) for part in torch.split(inputs, self._chunk)]
                return torch.cat(parts, dim=1)
            except torch.OutOfMemoryError:
                if self._chunk == 1:
                    raise
            self._chunk //= 2  # here, where what the failed try held is gone

    def _evaluation_rows(self, inputs: Tensor) -> int:
        """Return the rows of one forward pass: by the caches of a CPU, by the memory of a GPU."""
        if self._group.device.type == "cpu":
            rows = max(1, networks.rows_at_once(self._eval_module, EVALUATION_ROWS) // self.lanes)
            return min(rows, evaluation_rows(self._eval_module, inputs, rows, self.lanes))
        module = self._built(self._group.network)
        row = lane_budget.kept_numbers(module, self._group.row) * self._dtype.itemsize
        room = int(free_on_gpu(self._group.device) * EVALUATION_SHARE)
        return max(1, room // max(1, row * self.lanes))

    def _outputs(self, state: Named, inputs: Tensor) -> Tensor:
        def one(lane: Named, shared: Named) -> Tensor:
            outputs: Tensor = functional_call(self._eval_module, lane | shared, (inputs,))
            return outputs

        return vmap(one, in_dims=(0, None))(state, self._stacked.shared)  # [K, rows, …]

    def ready(self, rows: int, features: Features) -> None:
        """Make the step function for batches of this many rows, without running it."""
        self._features = self._features | features
        stacked = self._active()
        # Inductor keeps its code by these settings, too.
        with torch.no_grad(), precision(self._group.precision, self._group.device):
            self._executor.runnable(self._function(rows, stacked), stacked)

    def _run(self, batches: Sequence[tuple[int, int]]) -> None:
        """Take steps on batches of rows: pairs of (steps, rows), one after another."""
        stacked = self._active()
        # All that can fail for want of memory comes before the first step.
        runs = [
            (steps, self._executor.runnable(self._function(rows, stacked), stacked))
            for steps, rows in batches
            if steps > 0
        ]
        tensors = stacked.flat()
        for steps, run in runs:
            for _ in range(steps):
                run(tensors)

    def _function(self, rows: int, stacked: StackedLanes) -> StepFunction:
        key = (rows, self._features)
        prepare(self._template, self._features)
        if key not in self._functions:
            self._functions[key] = StepFunction(
                template=self._template,
                loss=self._loss,
                rows=rows,
                batch_size=self._group.batch_size,
                features=self._features,
                autocast=self._group.precision == "bfloat16",
                stacked=stacked,
                update=fused.update_of(self._group.optimizer),
            )
        return self._functions[key]

    def _active(self) -> StackedLanes:
        """Return the tensors without those that the present features do not need."""
        stacked = self._stacked
        squares = stacked.squares if self._features.squares else {}
        return replace(stacked, squares=squares)

    def _write_inputs(self, orders: Tensor, learning_rates: Tensor) -> None:
        """Write the epoch's orders, coefficients and row counts into the function's tensors."""
        inputs, batch = self._stacked.inputs, self._group.batch_size
        rows, steps = orders.shape[1], learning_rates.shape[1]
        inputs.counter.zero_()
        inputs.loss_sums.zero_()
        inputs.orders[:, :rows].copy_(orders)
        inputs.orders[:, rows : steps * batch].zero_()  # any row: its weight is zero
        coefficients = fused.step_coefficients(
            self._source, learning_rates.cpu(), inputs.steps_taken.cpu(), kind=self._group.optimizer
        )  # [S, K, C] float64
        inputs.step_coefficients[:steps].copy_(coefficients)
        last = rows - (steps - 1) * batch  # rows of the last batch
        inputs.row_weights[:steps].fill_(1.0 / batch)
        inputs.row_weights[steps - 1, :last] = 1.0 / last
        inputs.row_weights[steps - 1, last:] = 0.0
        inputs.batch_rows[:steps].fill_(batch)
        inputs.batch_rows[steps - 1] = last

    # -- state ------------------------------------------------------------------------------

    def _new_stack(self) -> StackedLanes:
        K, group = self.lanes, self._group
        stacked = {
            name: tensor.detach().expand(K, *tensor.shape).clone()  # P -> [K, P]
            for name, tensor in self._template.named_parameters()
            if name not in self._shared
        }
        parameters = {name: wide for name, wide in stacked.items() if name not in self._frozen}
        lane_inputs = ("seed", "step") if self._own_rates else ("rate", "seed", "step")
        of_lanes = {
            f"{path}.{n}" for path in networks.dropouts(self._template) for n in lane_inputs
        }
        buffers = {
            name: tensor.expand(K, *tensor.shape).clone()
            for name, tensor in self._template.named_buffers()
            if name not in of_lanes
        }
        return StackedLanes(
            parameters=parameters,
            averages={name: torch.zeros_like(tensor) for name, tensor in parameters.items()},
            squares={name: torch.zeros_like(tensor) for name, tensor in parameters.items()},
            buffers=buffers,
            frozen={name: wide for name, wide in stacked.items() if name in self._frozen},
            shared=self._shared,
            inputs=_new_inputs(group, K, self._dtype),
        )

    def _same_for_all(self) -> Named:
        """Return the parameters, name -> P, that are not trained and whose values no seed changes.

        A backbone that is read from a file is held once, whatever the number of lanes.
        """
        if not self._frozen:
            return {}
        drawn = [
            dict(networks.initialise(self._built(self._group.network), seed).named_parameters())
            for seed in (0, 1)
        ]
        return {
            name: drawn[0][name].detach().to(self._group.device, self._dtype)
            for name in sorted(self._frozen)
            if torch.equal(drawn[0][name], drawn[1][name])
        }

    def _require_shared(self, state: LaneState) -> None:
        for name, shared in self._shared_on_cpu.items():
            brought = state.get(f"parameters/{name}")
            if brought is None or brought is shared:
                continue
            if not torch.equal(brought.to(shared.dtype), shared):
                raise ValueError(
                    f"trials that train together must have the same frozen parameters, but "
                    f"{name} of this one differs; does build() draw it from more than the seed?"
                )

    def _new_loader(self) -> LaneLoader:
        """Return what writes lanes: all that a trial brings, by the names of its state."""
        stacked, inputs = self._stacked, self._stacked.inputs
        persistent = self._template.state_dict()  # other buffers are constants of the module
        trained_or_not = stacked.parameters | stacked.frozen
        weights = {f"parameters/{name}": wide for name, wide in trained_or_not.items()}
        weights |= {f"buffers/{n}": wide for n, wide in stacked.buffers.items() if n in persistent}
        if self._per_trial:
            paths = networks.dropouts(self._template)
            weights |= {f"buffers/{path}.rate": stacked.buffers[f"{path}.rate"] for path in paths}
        slots = {
            f"{role}/{name}": wide
            for role, stored in self._stored().items()
            for name, wide in stored.items()
        }
        of_lanes = {name: getattr(inputs, name) for name in LANE_INPUTS}
        self._named = tuple(weights)
        return LaneLoader(weights | slots | of_lanes, zeroed=slots)

    def _stored(self) -> dict[str, Named]:
        return {"average": self._stacked.averages, "square": self._stacked.squares}

    def _initial(self, hyper: LaneHyper) -> LaneState:
        """Return the state that belongs to the lane's seed, in the lane's own shapes."""
        module = networks.initialise(self._own(hyper), hyper.seed)
        persistent = module.state_dict()
        parameters = dict(module.named_parameters())
        state = {
            f"{'parameters' if name in parameters else 'buffers'}/{name}": tensor
            for name, tensor in persistent.items()
        }
        return {**state, "optimizer/steps": torch.tensor(0)}

    def _own(self, hyper: LaneHyper) -> nn.Module:
        """Return the lane's own network, on the CPU, with unspecified weights."""
        network = without_dropout(hyper.network or self._group.network)
        key = repr(sorted(network.items()))
        if key not in self._seeded:
            module = self._built(network)
            if self._per_trial:
                self._require_structure(network, module)
            self._seeded[key] = module
        return self._seeded[key]

    def _require_structure(self, network: Mapping[str, Any], module: nn.Module) -> None:
        """Refuse options that change more of a network than the values of its state."""
        rows = self._group.train_inputs[:2].cpu().float()  # [2, …]
        template, own = self._built(self._group.network), module.state_dict()
        same = {k: v.shape for k, v in own.items()} == {
            k: v.shape for k, v in template.state_dict().items()
        }
        with torch.no_grad():
            if same and torch.equal(
                functional_call(template.eval(), own, (rows,)), copy.deepcopy(module).eval()(rows)
            ):
                return
        given = {name: network[name] for name in sorted(self._per_trial) if name in network}
        raise ValueError(
            f"options in `per_trial` may set values of buffers and rates of dropouts alone, but "
            f"with {given} the network has other shapes or computes otherwise; keep the value in "
            f"a buffer, or take its option out of `per_trial`"
        )

    def _rates(self, hyper: LaneHyper) -> Named:
        """Return the dropout rates of a user's lane that has its own."""
        if not self._per_trial:
            return {}
        own = networks.dropouts(self._own(hyper))
        return {f"buffers/{path}.rate": part.rate for path, part in own.items()}

    def _built(self, network: Mapping[str, Any]) -> nn.Module:
        group = self._group
        return networks.build(network, inputs=group.inputs, outputs=group.outputs)

    def _weights_of(self, lane: int, named: Named) -> LaneState:
        shapes, buffers = self._shapes[lane], self._stacked.buffers
        own = {
            f"{'buffers' if name in buffers else 'parameters'}/{name}": _narrow(
                wide[lane], shapes[name]
            )
            for name, wide in named.items()
            if name in shapes
        }
        # Nobody writes them: a copy for each trial would cost more than the rest of it.
        return own | {f"parameters/{name}": value for name, value in self._shared_on_cpu.items()}


def _hyper_rows(hyper: LaneHyper, steps: int) -> dict[str, Tensor]:
    """Return a lane's rows of `LANE_INPUTS`."""
    clip = math.inf if hyper.gradient_clip is None else hyper.gradient_clip
    coefficients = fused.lane_coefficients(hyper.optimizer, hyper.options)
    return {
        "steps_taken": torch.tensor(steps),
        "seeds": torch.tensor(hyper.seed),
        "dropout_rates": torch.tensor(hyper.dropout, dtype=torch.float64),
        "flip_rates": torch.tensor(hyper.random_flip, dtype=torch.float64),
        "crops": torch.tensor(hyper.random_crop),
        "smoothing": torch.tensor(hyper.label_smoothing, dtype=torch.float64),
        "l1": torch.tensor(hyper.l1, dtype=torch.float64),
        "clip": torch.tensor(clip, dtype=torch.float64),
        "lane_coefficients": torch.tensor(coefficients, dtype=torch.float64),
    }


def _narrow(wide: Tensor, shape: torch.Size) -> Tensor:
    """Return a CPU copy of a lane's tensor in the lane's own shape."""
    return corner(wide, shape).cpu().clone()


def _weights(state: LaneState) -> list[str]:
    return [key for key in state if key.startswith(("parameters/", "buffers/"))]


def _new_inputs(group: GroupSpec, K: int, dtype: torch.dtype) -> StepInputs:
    """Return the inputs of K lanes: zeros, and the group's data."""
    S, B, device = group.steps, group.batch_size, group.device

    def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    return StepInputs(
        counter=zeros(1, kind=torch.int64),
        steps_taken=zeros(K, kind=torch.int64),
        seeds=zeros(K, kind=torch.int64),
        dropout_rates=zeros(K, kind=torch.float64),
        flip_rates=zeros(K, kind=torch.float64),
        crops=zeros(K, kind=torch.int64),
        smoothing=zeros(K),
        l1=zeros(K),
        clip=zeros(K),
        lane_coefficients=zeros(K, len(fused.LANE_COLUMNS)),
        step_coefficients=zeros(S, K, len(fused.STEP_COLUMNS)),
        orders=zeros(K, S * B, kind=torch.int64),
        row_weights=zeros(S, B),
        batch_rows=zeros(S, kind=torch.float64),
        loss_sums=zeros(K, kind=torch.float64),
        train_inputs=group.train_inputs,
        train_targets=group.train_targets,
    )
