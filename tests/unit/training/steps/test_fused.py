"""The fused step against the plain step, lane by lane."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from tests.unit.training import lanes
from tests.unit.training.steps.contract import ManyLanesContract, TrainStepContract
from workers.training.nets.losses import with_weights
from workers.training.optim.registry import OPTIMIZERS
from workers.training.steps.fused.executors import Compiled, CompiledStep, Traced, compiled
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.fused.step_function import StackedLanes, StepFunction
from workers.training.steps.plain import PlainStep

NETWORKS = {
    "mlp": ({"type": "mlp", "hidden_units": 8}, (10,)),
    "mlp, elu, batch norm": (
        {"type": "mlp", "hidden_units": 8, "norm": "batch", "activation": "elu"},
        (10,),
    ),
    "mlp with layer norm": ({"type": "mlp", "hidden_units": 8, "norm": "layer"}, (10,)),
    "linear": ({"type": "mlp", "hidden_layers": 0}, (10,)),
    "cnn": ({"type": "cnn", "channels": 2, "hidden_units": 6, "norm": "batch"}, (1, 6, 6)),
}


FAMILIES = {
    "resnet": ({"channels": 4, "stages": 2}, (1, 6, 6)),
    "resnet with batch norm": ({"channels": 2, "stages": 2, "norm": "batch"}, (1, 6, 6)),
    "rnn": ({"hidden_units": 6}, (4, 3)),
    "gru": ({"hidden_units": 6, "hidden_layers": 2}, (5,)),
    "lstm": ({"hidden_units": 6, "bidirectional": True}, (1, 4, 3)),
    "transformer": ({"width": 6, "heads": 4, "layers": 1}, (4, 3)),
}


def assert_lanes_equal_plain(spec, hypers, *, epochs, runner=None, tolerance=1e-9):
    step = FusedStep(spec, len(hypers), runner or Traced())
    losses = lanes.curve(step, spec, hypers, epochs)
    for lane, hyper in enumerate(hypers):
        reference, plain = lanes.plain_curve(spec, hyper, epochs)
        worst = ((losses[:, lane] - reference).abs() / reference.abs()).max()
        assert worst <= tolerance, (hyper.optimizer, hyper.options, float(worst))
        outputs, expected = step.evaluate(spec.train_inputs)[lane], plain.evaluate(
            spec.train_inputs
        )[0]  # fmt: skip
        assert torch.allclose(outputs, expected, atol=1e3 * tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_trials_equal_plain_trials_for_every_optimizer(name):
    network, shape = NETWORKS[name]
    spec = lanes.group(network, shape=shape)
    assert_lanes_equal_plain(spec, lanes.every_optimizer(), epochs=10)


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_trials_equal_plain_trials_for_every_family(name):
    options, shape = FAMILIES[name]
    spec = lanes.group({"type": name.split()[0], **options}, shape=shape)
    hypers = [lanes.hyper(dropout=0.2), lanes.hyper("sgd", {"momentum": 0.9}, seed=2)]
    assert_lanes_equal_plain(spec, hypers, epochs=10)


@pytest.mark.parametrize("kind", [kind for kind, entry in OPTIMIZERS.items() if not entry.mixes])
def test_fused_trials_equal_plain_trials_in_a_group_of_one_optimizer(kind):
    spec = replace(lanes.group({"type": "mlp", "hidden_units": 8}), optimizer=kind)
    hypers = [lanes.hyper(kind, {"weight_decay": w}, seed=s) for s, w in ((1, 0.0), (2, 0.1))]
    assert_lanes_equal_plain(spec, hypers, epochs=10)
    reference, plain = lanes.plain_curve(spec, hypers[1], 4)
    start, fused, late = PlainStep(spec), FusedStep(spec, 2, Traced()), PlainStep(spec)
    lanes.curve(start, spec, hypers[1:], 1)
    fused.put(1, hypers[1], start.take(0))
    second = [lanes.epoch(fused, spec, [9, 2], e)[1] for e in (1, 2)]
    late.put(0, hypers[1], fused.take(1))
    third = lanes.epoch(late, spec, [2], 3)
    assert torch.allclose(torch.stack([*second, third[0]]), reference[1:], rtol=1e-9)
    assert lanes.same_state(late.take(0), plain.take(0), tolerance=1e-7)


def test_fused_trials_equal_plain_trials_on_flipped_and_cropped_images():
    network = {"type": "cnn", "channels": 2, "conv_layers": 1, "hidden_units": 6}
    spec = lanes.group(network, shape=(2, 5, 6))
    choices = [{}, {"random_flip": 0.5}, {"random_crop": 2}, {"random_flip": 1.0, "random_crop": 1}]
    hypers = [lanes.hyper(seed=s, **changes) for s, changes in enumerate(choices)]
    assert_lanes_equal_plain(spec, hypers, epochs=10)
    same_seed = [lanes.plain_curve(spec, replace(h, seed=0), 1)[0].item() for h in hypers]
    assert len(set(same_seed)) == len(hypers)


def test_fused_trials_equal_plain_trials_with_everything_on():
    spec = lanes.group({"type": "mlp", "hidden_units": 8})
    extras = [{"dropout": 0.3}, {"label_smoothing": 0.1}, {"l1": 1e-2}, {"gradient_clip": 0.1}]
    everything = {name: value for extra in extras for name, value in extra.items()}
    hypers = [
        lanes.hyper("nesterov", seed=seed, **extra)
        for seed, extra in enumerate([{}, *extras, everything])
    ]
    assert_lanes_equal_plain(spec, hypers, epochs=10)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "mse", "mae", "huber"])
def test_fused_trials_equal_plain_trials_for_every_loss(loss):
    spec = lanes.group({"type": "mlp", "hidden_units": 8}, loss=loss)
    assert_lanes_equal_plain(spec, [lanes.hyper(), lanes.hyper("sgd", seed=2)], epochs=10)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "binary_cross_entropy", "mse"])
def test_fused_trials_equal_plain_trials_with_a_weight_for_each_row(loss):
    spec = lanes.group({"type": "mlp", "hidden_units": 8}, loss=loss)
    weights = torch.linspace(0.0, 3.0, spec.rows, dtype=torch.float64)
    spec = replace(spec, train_targets=with_weights(spec.train_targets, weights), weighted=True)
    assert_lanes_equal_plain(spec, [lanes.hyper(), lanes.hyper("sgd", seed=2)], epochs=10)


@pytest.mark.parametrize("batch_size", [1, 7, 70])
def test_fused_trials_equal_plain_trials_for_any_batch_size(batch_size):
    spec = lanes.group({"type": "mlp", "hidden_units": 8}, batch_size=batch_size)
    assert_lanes_equal_plain(spec, [lanes.hyper(), lanes.hyper("sgd", seed=2)], epochs=2)


def test_single_precision_stays_close_over_fifty_steps():
    spec = lanes.group({"type": "mlp", "hidden_units": 8}, precision="float32")
    hypers = [lanes.hyper(dropout=0.2), lanes.hyper("sgd", {"momentum": 0.9}, seed=2)]
    assert_lanes_equal_plain(spec, hypers, epochs=10, tolerance=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_fused_trials_are_close_to_plain_trials_in_half_precision(family, norm):
    shape = (1, 6, 6) if family == "cnn" else (10,)
    spec = lanes.group({"type": family, "norm": norm}, precision="bfloat16", shape=shape)
    assert_lanes_equal_plain(spec, [lanes.hyper(), lanes.hyper(seed=2)], epochs=2, tolerance=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_compiled_trials_equal_plain_trials():
    # No short last batch, which is a step function of its own: the class below compiles such.
    spec = lanes.group({"type": "mlp", "hidden_units": 8, "norm": "batch"}, rows=64)
    assert_lanes_equal_plain(spec, lanes.every_optimizer(dropout=0.2), epochs=3, runner=Compiled())


class TestTracedStep(ManyLanesContract):
    @pytest.fixture
    def make(self):
        return lambda spec, count: FusedStep(spec, count, Traced())


class CompiledOnce(Compiled):
    """Inductor's code, compiled once for all steps whose step functions have the same trace."""

    codes: ClassVar[dict[tuple[str, str], CompiledStep]] = {}

    def runnable(self, function: StepFunction, stacked: StackedLanes) -> CompiledStep:
        if function not in self._runs:
            graph = function.trace(stacked)
            shapes = str([(tensor.shape, tensor.dtype) for tensor in stacked.flat()])
            key = graph.print_readable(print_output=False), shapes
            if key not in self.codes:
                self.codes[key] = compiled(graph, stacked)
            self._runs[function] = self.codes[key]
        return self._runs[function]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
class TestCompiledStep(TrainStepContract):
    network: ClassVar[dict[str, Any]] = {"type": "mlp", "hidden_layers": 0}

    @pytest.fixture
    def make(self):
        return lambda spec, count: FusedStep(spec, count, CompiledOnce())

    def crews(self):
        """Two; every optimizer is compiled in `test_compiled_trials_equal_plain_trials`."""
        yield self.pair()
