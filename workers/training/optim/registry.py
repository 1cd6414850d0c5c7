"""The optimizers, one entry per kind: torch's, its state, its fused update, its native code.

Options and defaults stand in the catalogue (`tuner_service/definition/catalogue/optimizers.py`),
which the service reads without torch; everything else that a kind is stands here. Every step keeps
a kind's state in the same slots, each shaped as its parameter:

    momentum   velocity of sgd, nesterov and rmsprop (only where momentum > 0)
    first      running mean of the gradient: adam and its kin, lion
    second     running mean of the squared gradient: adam, adamw, nadam, radam
    square     the same of rmsprop and adadelta
    infinity   adamax's running maximum of the gradient's size
    delta      adadelta's running mean of the squared update
    sum        adagrad's sum of squared gradients
    steps      int64 scalar, steps taken

Weight decay is the L2 loss term (added to the gradient), but decoupled in adamw and lion.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuner_service.definition import catalogue
from tuner_service.definition.faults import did_you_mean
from workers.training.optim import updates
from workers.training.optim.lion import Lion
from workers.training.optim.updates import Options, OwnUpdate, SharedUpdate

Build = Callable[[list[nn.Parameter], Options], torch.optim.Optimizer]
TorchState = Callable[[Mapping[str, Any], Tensor], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of an optimizer's state per parameter: its name here, and in torch's optimizer."""

    name: str
    torch_name: str


def _step_counter(group: Mapping[str, Any], steps: Tensor) -> dict[str, Tensor]:
    del group
    return {"step": steps.to(torch.float32).clone()}


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """One kind of optimizer.

    Attributes:
        build: (parameters, complete options) -> torch optimizer with learning rate 0.
        update: How lanes are stepped together. Kinds with a `SharedUpdate` may mix in a group; each
            with an `OwnUpdate` has groups of its own, but in native code, where all mix.
        average: The slot a of the update.
        square: The slot b; None: it has none.
        torch_state: (torch's parameter group, steps taken) -> what torch keeps per parameter beside
            the slots, so that a state can go on in it.
    """

    build: Build
    update: SharedUpdate | OwnUpdate
    average: Slot | None = None
    square: Slot | None = None
    torch_state: TorchState = _step_counter

    @property
    def mixes(self) -> bool:
        """Whether other kinds may train beside it in a group that is no native one."""
        return isinstance(self.update, SharedUpdate)

    def slots(self, options: Options) -> dict[str, Slot]:
        """Return the slots in use by role; the velocity is none without momentum."""
        roles = {"average": self.average, "square": self.square}
        return {
            role: slot
            for role, slot in roles.items()
            if slot is not None and (slot is not VELOCITY or options["momentum"] > 0)
        }


def _of_torch(optimizer: Callable[..., torch.optim.Optimizer]) -> Build:
    """Return how an optimizer is made that takes the options under their own names."""

    def build(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
        given: dict[str, Any] = dict(options)
        if "beta1" in given:
            given["betas"] = (given.pop("beta1"), given.pop("beta2"))
        return optimizer(parameters, lr=0.0, **given)

    return build


def _nesterov(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    # Torch refuses nesterov without momentum, which is plain SGD.
    sgd = functools.partial(torch.optim.SGD, nesterov=options["momentum"] > 0)
    return _of_torch(sgd)(parameters, options)


def _nadam(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    def double_product(parameters: list[nn.Parameter], **given: Any) -> torch.optim.Optimizer:
        # Not foreach, which wants the product of momenta in the weights' type.
        optimizer = torch.optim.NAdam(parameters, foreach=False, **given)
        for parameter in parameters:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                # Torch would take float32, whose rounding the fused step could not follow.
                "mu_product": torch.ones((), dtype=torch.float64),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    return _of_torch(double_product)(parameters, options)


def _nadam_state(group: Mapping[str, Any], steps: Tensor) -> dict[str, Tensor]:
    """Return the counter, and the product of the momenta over the steps taken."""
    t = torch.arange(1, int(steps) + 1, dtype=torch.float64)
    beta1, decay = float(group["betas"][0]), float(group["momentum_decay"])
    momenta = beta1 * (1.0 - 0.5 * torch.exp2(t * decay * math.log2(0.96)))
    return {**_step_counter(group, steps), "mu_product": momenta.prod()}


def _no_state(group: Mapping[str, Any], steps: Tensor) -> dict[str, Tensor]:
    del group, steps
    return {}


VELOCITY = Slot("momentum", "momentum_buffer")
_FIRST, _SECOND = Slot("first", "exp_avg"), Slot("second", "exp_avg_sq")

OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "sgd": OptimizerEntry(
        build=_of_torch(torch.optim.SGD),
        update=updates.SGD,
        average=VELOCITY,
        torch_state=_no_state,
    ),
    "nesterov": OptimizerEntry(
        build=_nesterov,
        update=updates.NESTEROV,
        average=VELOCITY,
        torch_state=_no_state,
    ),
    "adagrad": OptimizerEntry(
        build=_of_torch(torch.optim.Adagrad),
        update=updates.ADAGRAD,
        square=Slot("sum", "sum"),
    ),
    "rmsprop": OptimizerEntry(
        build=_of_torch(torch.optim.RMSprop),
        update=updates.RMSPROP,
        average=VELOCITY,
        square=Slot("square", "square_avg"),
    ),
    "adam": OptimizerEntry(
        build=_of_torch(torch.optim.Adam),
        update=updates.ADAM,
        average=_FIRST,
        square=_SECOND,
    ),
    "adamw": OptimizerEntry(
        build=_of_torch(torch.optim.AdamW),
        update=updates.ADAMW,
        average=_FIRST,
        square=_SECOND,
    ),
    "adamax": OptimizerEntry(
        build=_of_torch(torch.optim.Adamax),
        update=updates.ADAMAX,
        average=_FIRST,
        square=Slot("infinity", "exp_inf"),
    ),
    "adadelta": OptimizerEntry(
        build=_of_torch(torch.optim.Adadelta),
        update=updates.ADADELTA,
        average=Slot("delta", "acc_delta"),
        square=Slot("square", "square_avg"),
    ),
    "nadam": OptimizerEntry(
        build=_nadam,
        update=updates.NADAM,
        average=_FIRST,
        square=_SECOND,
        torch_state=_nadam_state,
    ),
    "radam": OptimizerEntry(
        build=_of_torch(torch.optim.RAdam), update=updates.RADAM, average=_FIRST, square=_SECOND
    ),
    "lion": OptimizerEntry(build=_of_torch(Lion), update=updates.LION, average=_FIRST),
}


def entry_of(kind: str) -> OptimizerEntry:
    """Return the entry of a kind.

    Raises:
        ValueError: There is no such optimizer.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {kind!r}{did_you_mean(kind, OPTIMIZERS)}")
    return OPTIMIZERS[kind]


def complete(kind: str, options: Options) -> Options:
    """Return every option of a kind but the learning rate; what is missing has its default.

    Raises:
        ValueError: There is no such optimizer, or it has no such option.
    """
    entry_of(kind)
    return catalogue.OPTIMIZERS[kind].complete(options, without=("learning_rate",))
