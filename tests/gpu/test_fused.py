"""Fused trials on a CUDA device, against the plain step there."""

import dataclasses

import pytest
import torch

from tests.unit.training import builders, lanes
from workers.training.engine.engine import Engine
from workers.training.optim.registry import OPTIMIZERS
from workers.training.steps.fused.executors import Compiled, Traced
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.select import BackendSelector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # inductor's own imports
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # inductor's advice where float32 is meant
]

MLP = {"type": "mlp", "hidden_units": 16}
CNN = {"type": "cnn", "channels": 4, "hidden_units": 8, "norm": "batch"}
FAMILIES = {
    "resnet": ({"channels": 4, "stages": 2}, (1, 6, 6)),
    "rnn": ({"hidden_units": 6}, (4, 3)),
    "gru": ({"hidden_units": 6, "hidden_layers": 2}, (5,)),
    "lstm": ({"hidden_units": 6, "bidirectional": True}, (1, 4, 3)),
    "transformer": ({"width": 6, "heads": 4, "layers": 1}, (4, 3)),
}
TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2}


def on_gpu(spec):
    device = torch.device("cuda")
    return dataclasses.replace(
        spec,
        device=device,
        train_inputs=spec.train_inputs.to(device),
        train_targets=spec.train_targets.to(device),
    )


@pytest.mark.parametrize("runner", [Traced, Compiled])
@pytest.mark.parametrize("precision", list(TOLERANCES))
@pytest.mark.parametrize(("network", "shape"), [(MLP, (10,)), (CNN, (1, 6, 6))])
def test_fused_trials_equal_plain_trials(network, shape, precision, runner):
    spec = on_gpu(lanes.group(network, shape=shape, precision=precision))
    hypers = lanes.every_optimizer(dropout=0.2)
    step = FusedStep(spec, len(hypers), runner())
    losses = lanes.curve(step, spec, hypers, 3)
    for lane, hyper in enumerate(hypers):
        reference, _ = lanes.plain_curve(spec, hyper, 3)
        worst = ((losses[:, lane] - reference).abs() / reference.abs()).max()
        assert worst <= TOLERANCES[precision], (hyper.optimizer, float(worst))


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_trials_equal_plain_trials_for_every_family(name):
    options, shape = FAMILIES[name]
    spec = on_gpu(lanes.group({"type": name, **options}, shape=shape))
    crops = {"random_flip": 0.5, "random_crop": 1} if name == "resnet" else {}
    hypers = [lanes.hyper(dropout=0.2, **crops), lanes.hyper("sgd", {"momentum": 0.9}, seed=2)]
    step = FusedStep(spec, len(hypers), Traced())
    losses = lanes.curve(step, spec, hypers, 3)
    for lane, hyper in enumerate(hypers):
        assert torch.allclose(losses[:, lane], lanes.plain_curve(spec, hyper, 3)[0], rtol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind, entry in OPTIMIZERS.items() if not entry.mixes])
def test_fused_trials_equal_plain_trials_in_a_group_of_one_optimizer(kind):
    spec = dataclasses.replace(on_gpu(lanes.group(MLP)), optimizer=kind)
    step, hyper = FusedStep(spec, 2, Traced()), lanes.hyper(kind)
    losses = lanes.curve(step, spec, [hyper, lanes.hyper(kind, seed=2)], 3)
    assert torch.allclose(losses[:, 0], lanes.plain_curve(spec, hyper, 3)[0], rtol=1e-9)


def test_orders_and_masks_are_those_of_the_cpu():
    spec, hyper = lanes.group(MLP), lanes.hyper(dropout=0.3)
    gpu, cpu = FusedStep(on_gpu(spec), 1, Traced()), FusedStep(spec, 1, Traced())
    there, here = (lanes.curve(s, spec, [hyper], 3) for s in (gpu, cpu))
    assert torch.allclose(there, here, rtol=1e-9)


def test_recording_a_graph_leaves_the_state_alone():
    spec, hyper = on_gpu(lanes.group(MLP)), lanes.hyper()
    step = FusedStep(spec, 1, Traced())
    step.put(0, hyper, None)
    lanes.epoch(step, spec, [1], 0)
    assert int(step.take(0)["optimizer/steps"]) == spec.steps


@pytest.mark.parametrize("runner", [Traced, Compiled])
def test_lane_that_diverges_changes_no_bit_of_the_others(runner):
    spec = on_gpu(lanes.group(MLP, precision="float32"))
    hypers = [lanes.hyper(seed=s, dropout=0.1) for s in (1, 2, 3)]
    sane, broken = (FusedStep(spec, 3, runner()) for _ in range(2))
    healthy = lanes.curve(sane, spec, hypers, 3)
    for lane, hyper in enumerate(hypers):
        broken.put(lane, hyper, None)
    poisoned = broken.take(1)
    poisoned["parameters/output.bias"][0] = float("nan")
    broken.put(1, hypers[1], poisoned)
    losses = torch.stack([lanes.epoch(broken, spec, [1, 2, 3], e) for e in range(3)])
    assert losses[:, 1].isnan().all()
    for lane in (0, 2):
        assert torch.equal(losses[:, lane], healthy[:, lane])
        assert lanes.same_state(broken.take(lane), sane.take(lane))


@pytest.mark.parametrize("network", [MLP, CNN])
def test_resumed_lane_continues(network):
    spec = on_gpu(lanes.group(network, shape=(1, 6, 6)))
    hypers = [lanes.hyper(seed=1, dropout=0.1), lanes.hyper("sgd", {"momentum": 0.9}, seed=2)]
    straight, resumed = (FusedStep(spec, 2, Traced()) for _ in range(2))
    lanes.curve(straight, spec, hypers, 2)
    for lane, hyper in enumerate(hypers):
        resumed.put(lane, hyper, straight.take(lane))
    for step in (straight, resumed):
        lanes.epoch(step, spec, [1, 2], 2)
    for lane in (0, 1):
        assert lanes.same_state(resumed.take(lane), straight.take(lane), tolerance=1e-9)


def test_out_of_memory_halves_the_group_and_goes_on(tmp_path):
    wide = builders.mlp(hidden_layers=2, hidden_units=1024)
    specs = [builders.spec(network=wide, fuse=True, epochs=1, seed=n) for n in range(64)]
    starts = [builders.start(n, one, folder=tmp_path) for n, one in enumerate(specs)]
    selector = BackendSelector(torch.device("cuda"), compile=False, probe=False)
    engine = Engine("cuda", steps=selector)
    # 64 lanes keep 0.8 GB of weights and slots, and a recording sets as much aside.
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.mem_get_info()[1])
    try:
        events = builders.run_all(engine, starts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {builders.only(events, n, "finished").backend for n in range(64)} == {"traced"}


def test_ladder_fuses_on_a_gpu():
    spec = on_gpu(lanes.group(MLP))
    selector = BackendSelector(spec.device, background=False, probe=False)
    count = selector.lanes_for(spec, 1000)
    assert count >= 64
    step = selector.make_step(spec, count)
    step.put(0, lanes.hyper(), None)
    lanes.epoch(step, spec, [1] * count, 0)
    assert step.backend == "compiled"


def test_streamed_data_trains_the_same():
    """From main memory by way of pinned batches, with the weights of data on the device."""
    there = on_gpu(lanes.group(MLP, precision="float64"))
    here = dataclasses.replace(there, streamed=True, train_inputs=there.train_inputs.cpu())
    ends = []
    for spec in (there, here):
        losses, step = lanes.plain_curve(spec, lanes.hyper(dropout=0.2), 3)
        ends.append((losses.tolist(), step.evaluate(spec.train_inputs).tolist()))
    assert ends[0] == ends[1]
