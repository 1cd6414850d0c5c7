"""Torch's optimizers for the plain step, with their state under canonical names.

Every step keeps a kind's state in the same slots (`registry.py`), so that a trial may go on in
another step than it began in.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from workers.training.optim.registry import Slot, complete, entry_of
from workers.training.optim.updates import Options

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def build(kind: str, options: Options, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer with learning rate 0: `set_rate` gives it one before every step."""
    return entry_of(kind).build(list(parameters), complete(kind, options))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_of(
    kind: str, optimizer: torch.optim.Optimizer, parameters: NamedParameters, *, steps: int
) -> dict[str, Tensor]:
    """Return the optimizer's state under its canonical names, copied; slots not yet made: absent.

    Args:
        kind: Which optimizer it is.
        optimizer: As made by `build`.
        parameters: (name, parameter) of the network.
        steps: Optimizer steps taken.
    """
    state = {"optimizer/steps": torch.tensor(steps)}
    if not steps:
        return state
    slots = _slots(kind)
    for name, parameter in parameters:
        held = optimizer.state.get(parameter, {})
        for slot in slots:
            if isinstance(held.get(slot.torch_name), Tensor):
                own = held[slot.torch_name]
                state[f"optimizer/{slot.name}/{name}"] = own.detach().clone()
    return state


def load_state(
    kind: str,
    optimizer: torch.optim.Optimizer,
    parameters: NamedParameters,
    state: Mapping[str, Tensor],
) -> None:
    """Continue from a canonical state: what `state_of`, or a fused lane, returned."""
    steps = state["optimizer/steps"]
    if not steps:
        return
    entry = entry_of(kind)
    for name, parameter in parameters:
        held = optimizer.state[parameter]
        held.update(entry.torch_state(optimizer.param_groups[0], steps))
        for slot in _slots(kind):
            value = state.get(f"optimizer/{slot.name}/{name}")
            if value is not None:
                held[slot.torch_name] = value.to(parameter.device, parameter.dtype, copy=True)


def _slots(kind: str) -> list[Slot]:
    entry = entry_of(kind)
    return [slot for slot in (entry.average, entry.square) if slot is not None]
