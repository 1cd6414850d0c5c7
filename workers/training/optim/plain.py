"""Torch's optimizers for the plain step, with their state under canonical names.

The fused step has the same optimizers as stacked updates (stacked.py, stacked_own.py). Both keep
their state in the same slots, each shaped as its parameter:

    momentum   velocity of sgd, nesterov and rmsprop (only where momentum > 0)
    first      adam's, adamw's, nadam's, radam's, lion's running mean of the gradient
    square     rmsprop's, adadelta's running mean of the squared gradient
    second     adam's, adamw's, nadam's, radam's
    delta      adadelta's running mean of the squared update
    sum        adagrad's sum of squared gradients
    steps      int64 scalar, steps taken

Weight decay is the L2 loss term (added to the gradient), but decoupled in adamw and lion.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.training.optim.lion import Lion

Options = Mapping[str, float]
NamedParameters = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True, slots=True)
class Kind:
    """An optimizer: how torch's is made, and which of its state is which canonical slot.

    Attributes:
        build: (parameters, options) -> torch optimizer; the learning rate is set before each step.
        slots: Canonical slot -> name in the torch optimizer's per-parameter state.
        fusible: Whether it may share a group with other kinds; else each kind has its own groups.
    """

    build: Callable[[list[nn.Parameter], Options], torch.optim.Optimizer]
    slots: Mapping[str, str]
    fusible: bool = True


def _sgd(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=options.get("momentum", 0.0),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _nesterov(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    momentum = options.get("momentum", 0.9)
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=momentum,
        nesterov=momentum > 0,  # torch refuses nesterov without momentum, which is plain SGD
        weight_decay=options.get("weight_decay", 0.0),
    )


def _adagrad(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(
        parameters,
        lr=0.0,
        eps=options.get("eps", 1e-10),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _rmsprop(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        parameters,
        lr=0.0,
        alpha=options.get("alpha", 0.99),
        eps=options.get("eps", 1e-8),
        momentum=options.get("momentum", 0.0),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _adam(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters,
        lr=0.0,
        betas=betas(options),
        eps=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _adamw(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=betas(options),
        eps=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 1e-2),
    )


def _adadelta(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(
        parameters,
        lr=0.0,
        rho=options.get("rho", 0.9),
        eps=options.get("eps", 1e-6),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _nadam(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    optimizer = torch.optim.NAdam(
        parameters,
        lr=0.0,
        betas=betas(options),
        eps=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
        momentum_decay=options.get("momentum_decay", 4e-3),
        foreach=False,  # which wants the product below in the weights' type
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            # Torch would take float32, whose rounding the fused step could not follow.
            "mu_product": torch.ones((), dtype=torch.float64),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _radam(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return torch.optim.RAdam(
        parameters,
        lr=0.0,
        betas=betas(options),
        eps=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
    )


def _lion(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    return Lion(
        parameters,
        betas=(options.get("beta1", 0.9), options.get("beta2", 0.99)),
        weight_decay=options.get("weight_decay", 0.0),
    )


def betas(options: Options) -> tuple[float, float]:
    """Return the decay rates of adam and its kin."""
    return options.get("beta1", 0.9), options.get("beta2", 0.999)


_VELOCITY = {"momentum": "momentum_buffer"}
_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}

OPTIMIZERS: dict[str, Kind] = {
    "sgd": Kind(_sgd, _VELOCITY),
    "nesterov": Kind(_nesterov, _VELOCITY),
    "adagrad": Kind(_adagrad, {"sum": "sum"}),
    "rmsprop": Kind(_rmsprop, {"square": "square_avg", **_VELOCITY}),
    "adam": Kind(_adam, _MOMENTS),
    "adamw": Kind(_adamw, _MOMENTS),
    "adadelta": Kind(_adadelta, {"square": "square_avg", "delta": "acc_delta"}, fusible=False),
    "nadam": Kind(_nadam, _MOMENTS, fusible=False),
    "radam": Kind(_radam, _MOMENTS, fusible=False),
    "lion": Kind(_lion, {"first": "exp_avg"}, fusible=False),
}


def build(kind: str, options: Options, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer with learning rate 0: `set_rate` gives it one before every step."""
    return OPTIMIZERS[kind].build(list(parameters), options)


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
    for name, parameter in parameters:
        held = optimizer.state.get(parameter, {})
        for slot, own in OPTIMIZERS[kind].slots.items():
            if isinstance(held.get(own), Tensor):
                state[f"optimizer/{slot}/{name}"] = held[own].detach().clone()
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
    for name, parameter in parameters:
        held = optimizer.state[parameter]
        if kind not in ("sgd", "nesterov"):
            held["step"] = steps.to(torch.float32).clone()
        if kind == "nadam":
            held["mu_product"] = _momenta(optimizer.param_groups[0], int(steps))
        for slot, own in OPTIMIZERS[kind].slots.items():
            value = state.get(f"optimizer/{slot}/{name}")
            if value is not None:
                held[own] = value.to(parameter.device, parameter.dtype, copy=True)


def _momenta(group: Mapping[str, Any], steps: int) -> Tensor:
    """Return the product of nadam's momenta over the steps taken."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    beta1, decay = float(group["betas"][0]), float(group["momentum_decay"])
    return (beta1 * (1.0 - 0.5 * torch.exp2(t * decay * math.log2(0.96)))).prod()
