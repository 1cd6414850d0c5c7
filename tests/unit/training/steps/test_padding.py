"""Narrow networks in a wide group."""

import pytest
import torch

from tests.unit.training import lanes
from workers.training.nets.layers import ZERO_PRESERVING
from workers.training.steps.fused import padding
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.step import FusedStep

WIDE = 12


def mlp(width=WIDE, **others):
    return {"type": "mlp", "hidden_units": width, **others}


@pytest.mark.parametrize(
    ("network", "padded"),
    [
        (mlp(33), mlp(48)),
        (mlp(32), mlp(32)),
        (mlp(9999), mlp(9999)),
        (mlp(33, norm="batch"), mlp(48, norm="batch")),
        (mlp(33, norm="layer"), mlp(33, norm="layer")),
        (mlp(33, activation="sigmoid"), mlp(33, activation="sigmoid")),
    ],
)
def test_width_is_raised_to_its_bucket_only_where_exact(network, padded):
    assert padding.bucketed(network) == padded


@pytest.mark.parametrize("activation", sorted(ZERO_PRESERVING))
def test_padded_lane_equals_its_unpadded_trial(activation):
    options = {"activation": activation, "norm": "batch" if activation == "relu" else "none"}
    spec = lanes.group(mlp(**options))
    hypers = [
        lanes.hyper("adam", seed=1, dropout=0.2, network=mlp(5, **options)),
        lanes.hyper("rmsprop", seed=2, l1=1e-3, gradient_clip=0.5, network=mlp(7, **options)),
        lanes.hyper("adamw", seed=3, network=mlp(**options)),
    ]
    step = FusedStep(spec, 3, Traced())
    losses = lanes.curve(step, spec, hypers, 5)
    for lane, hyper in enumerate(hypers):
        reference, plain = lanes.plain_curve(spec, hyper, 5)
        assert torch.allclose(losses[:, lane], reference, rtol=1e-9)
        expected = plain.evaluate(spec.train_inputs)[0]
        assert torch.allclose(step.evaluate(spec.train_inputs)[lane], expected, atol=1e-6)
        assert lanes.same_state(step.take(lane), plain.take(0), tolerance=1e-5)


def test_wide_then_narrow_trial_in_one_lane_leaves_nothing_behind():
    spec = lanes.group(mlp())
    narrow = lanes.hyper(seed=2, network=mlp(5))
    used, fresh = FusedStep(spec, 1, Traced()), FusedStep(spec, 1, Traced())
    lanes.curve(used, spec, [lanes.hyper(seed=1)], 2)
    assert torch.equal(lanes.curve(used, spec, [narrow], 2), lanes.curve(fresh, spec, [narrow], 2))


def test_state_moves_between_buckets():
    narrow = lanes.hyper(seed=2, network=mlp(5))
    small, large = lanes.group(mlp(8)), lanes.group(mlp(WIDE))
    one, two = FusedStep(small, 1, Traced()), FusedStep(large, 1, Traced())
    lanes.curve(one, small, [narrow], 1)
    two.put(0, narrow, one.take(0))
    assert lanes.same_state(one.take(0), two.take(0))
