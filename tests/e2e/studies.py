"""Tiny studies on iris: a trial of a few milliseconds an epoch."""

from typing import Any

GRID_POINTS = 8  # sgd with 3 momentums and adam, two learning rates each


def base(name: str, **more: Any) -> dict[str, Any]:
    """Return a study on iris without search space."""
    return {
        "name": name,
        "dataset": {"name": "iris"},
        "network": {"type": "mlp", "hidden_layers": 1, "hidden_units": 8},
        "objective": {"metric": "val_accuracy"},
        "training": {"epochs": 3, "batch_size": 32, "seed": 0},
        **more,
    }


def grid(name: str) -> dict[str, Any]:
    """Return a grid of `GRID_POINTS` points with a condition."""
    return base(
        name,
        parameters={
            "learning_rate": {"type": "categorical", "choices": [0.01, 0.1]},
            "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
            "momentum": {
                "type": "categorical",
                "choices": [0.0, 0.5, 0.9],
                "when": {"optimizer": ["sgd"]},
            },
        },
        sampler={"type": "grid"},
    )


def sampled(name: str, sampler: str, trials: int, **more: Any) -> dict[str, Any]:
    """Return a random or TPE study over learning rate, batch size, optimizer and momentum."""
    training = {"epochs": 3, "seed": 0, **more.pop("training", {})}
    budget = {"trials": trials, **more.pop("budget", {})}
    return base(
        name,
        parameters={
            "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
            "batch_size": {"type": "categorical", "choices": [16, 32]},
            "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
            "momentum": {
                "type": "float",
                "low": 0.1,
                "high": 0.9,
                "when": {"optimizer": ["sgd"]},
            },
        },
        sampler={"type": sampler, "seed": 7},
        budget=budget,
        training=training,
        **more,
    )


def endless(name: str, trials: int, **more: Any) -> dict[str, Any]:
    """Return a study whose trials outlast any test."""
    return sampled(name, "random", trials, training={"epochs": 100_000}, **more)
