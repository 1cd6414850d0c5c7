"""Groups, hyperparameters and runs shared by the tests of fused training."""

import torch

from workers.training.nets.randomness import epoch_orders
from workers.training.steps.groups import GroupSpec
from workers.training.steps.plain import PlainStep
from workers.training.steps.step import LaneHyper

OPTIMIZERS = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
    ("nesterov", {"momentum": 0.8}),
    ("adagrad", {"weight_decay": 0.01}),
    ("rmsprop", {"alpha": 0.9}),
    ("rmsprop", {"momentum": 0.5, "weight_decay": 0.01}),
    ("adam", {"beta1": 0.8}),
    ("adamw", {"weight_decay": 0.1}),
]
OWN_OPTIMIZERS = [
    ("adamax", {"weight_decay": 0.01}),
    ("adamax", {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3}),
    ("adadelta", {"weight_decay": 0.01}),
    ("adadelta", {"rho": 0.7, "eps": 1e-4}),
    ("nadam", {"beta1": 0.8, "weight_decay": 0.01}),
    ("nadam", {"momentum_decay": 0.1, "beta2": 0.9}),
    ("radam", {}),
    ("radam", {"beta2": 0.9, "weight_decay": 0.01}),
    ("lion", {"weight_decay": 0.1}),
    ("lion", {"beta1": 0.5, "beta2": 0.6}),
]
CLASSES = 4


def group(network, *, batch_size=16, rows=70, precision="float64", shape=(10,), loss=None):
    """A group on random data; 70 rows in batches of 16 leave a short last batch of 6."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if precision == "float64" else torch.float32
    inputs = torch.randn(rows, *shape, generator=generator).to(dtype)
    numbers = loss in ("mse", "mae", "huber")
    if numbers:
        targets = torch.randn(rows, 2, generator=generator).to(dtype)
    elif loss == "binary_cross_entropy":
        targets = torch.randint(0, 2, (rows, 1), generator=generator).to(dtype)
    else:
        targets = torch.randint(0, CLASSES, (rows,), generator=generator)
    return GroupSpec(
        key=repr((sorted(network.items()), batch_size, rows, precision, shape, loss)),
        network=network,
        optimizer=None,
        loss=loss or "cross_entropy",
        batch_size=batch_size,
        precision=precision,
        inputs=shape,
        outputs=CLASSES if targets.dtype == torch.int64 else targets.shape[1],
        device=torch.device("cpu"),
        train_inputs=inputs,
        train_targets=targets,
        fuse=True,
        fuse_reason=None,
    )


def hyper(kind="adam", options=None, *, seed=1, network=None, **others):
    """A lane's hyperparameters; everything but the optimizer is off unless named."""
    off = {"dropout": 0.0, "label_smoothing": 0.0, "l1": 0.0, "gradient_clip": None}
    return LaneHyper(
        optimizer=kind, options=options or {}, seed=seed, network=network, **{**off, **others}
    )


def every_optimizer(**others):
    """One lane per optimizer, each with its own seed."""
    return [
        hyper(kind, options, seed=seed, **others)
        for seed, (kind, options) in enumerate(OPTIMIZERS, start=1)
    ]


def epoch(step, spec, seeds, number, *, rate=0.01):
    """Train one epoch; return [K] losses."""
    orders = epoch_orders(
        torch.tensor(seeds), torch.full((len(seeds),), number, dtype=torch.int64), spec.rows
    )
    rates = torch.full((len(seeds), spec.steps), rate, dtype=torch.float64)
    return step.train_epoch(orders, rates)


def curve(step, spec, hypers, epochs, *, rate=0.01):
    """Put every lane in fresh and train; return [epochs, K] losses."""
    for lane, lane_hyper in enumerate(hypers):
        step.put(lane, lane_hyper, None)
    seeds = [lane_hyper.seed for lane_hyper in hypers]
    return torch.stack([epoch(step, spec, seeds, e, rate=rate) for e in range(epochs)]).cpu()


def plain_curve(spec, lane_hyper, epochs, *, rate=0.01):
    """Return [epochs] losses of the plain step, and the step."""
    step = PlainStep(spec)
    return curve(step, spec, [lane_hyper], epochs, rate=rate)[:, 0], step


def same_state(one, other, *, tolerance=0.0):
    """Whether two canonical states have the same names, and values within the tolerance."""
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].double(), other[name].double(), rtol=tolerance, atol=tolerance)
        for name in one
    )
