"""How often the host waits for a GPU, and how much it launches: a hidden `.item()` breaks them.

K = 16 lanes of two hidden layers; each number is independent of K.
"""

import torch

from tests.fake_gpu import device
from tests.unit.training import lanes
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.plain import PlainStep

K = 16
MLP = {"type": "mlp", "hidden_layers": 2, "hidden_units": 16}
WAITS_OF_A_SLICE = 4
WAITS_OF_LANES_COMING_IN = 4  # one per dtype, and which lanes they are
LAUNCHES_OF_A_STEP = 260  # operation by operation; compiled about 22


def loaded(rows):
    spec = lanes.group(MLP, rows=rows, precision="float32")
    step = FusedStep(spec, K, Traced())
    for lane in range(K):
        step.put(lane, lanes.hyper(seed=lane), None)
    lanes.epoch(step, spec, range(K), 0)
    return spec, step


def counted(step, spec):
    """Return waits and launches of an epoch in one slice, its orders on the device."""
    orders = torch.arange(spec.rows, device=spec.device).expand(K, -1)
    rates = torch.full((K, spec.steps), 0.01, dtype=torch.float64)
    device.native.reset()
    step.train_epoch(orders, rates)
    return sum(device.waits().values()), device.launches()


def test_waits_and_launches_of_a_step():
    few, many = ((spec.steps, *counted(step, spec)) for spec, step in (loaded(64), loaded(256)))
    steps, waits, launches = (b - a for a, b in zip(few, many, strict=True))
    assert (steps, waits) == (12, 0)
    assert launches / steps <= LAUNCHES_OF_A_STEP
    assert few[1] <= WAITS_OF_A_SLICE


def test_a_plain_step_waits_for_nothing_where_rows_are_augmented():
    waits = []
    for rows in (64, 256):
        network = {"type": "cnn", "channels": 4, "conv_layers": 1, "hidden_units": 8}
        spec = lanes.group(network, rows=rows, precision="float32", shape=(1, 8, 8))
        step = PlainStep(spec)
        step.put(0, lanes.hyper(random_flip=0.5, random_crop=1), None)
        orders = torch.arange(rows, device=spec.device).expand(1, -1)
        device.native.reset()
        step.train_epoch(orders, torch.full((1, spec.steps), 0.01, dtype=torch.float64))
        waits.append(sum(device.waits().values()))
    assert waits[1] == waits[0]


def test_waits_of_lanes_that_come_in_together():
    spec, step = loaded(64)
    waits, _ = counted(step, spec)
    for lane in range(K):
        step.put(lane, lanes.hyper(seed=lane + 100), None)
    assert counted(step, spec)[0] - waits <= WAITS_OF_LANES_COMING_IN


def test_an_evaluation_is_one_pass_where_memory_has_room_and_several_where_not():
    spec, step = loaded(64)
    rows = torch.randn(4000, *spec.inputs, device=spec.device)
    device.native.reset()
    whole = step.evaluate(rows)
    once = device.launches()
    step._chunk, found = 0, device.native.held()
    device.native.set_limit(found + (4 << 20))
    device.native.reset()
    parts, launched = step.evaluate(rows), device.launches()
    device.heal()
    assert torch.allclose(parts, whole)
    assert launched > 2 * once
