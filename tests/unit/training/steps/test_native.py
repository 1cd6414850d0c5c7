"""The native step against the plain step, lane by lane."""

import ctypes
import dataclasses
import re
import shutil
from typing import ClassVar

import pytest
import torch

from tests.unit.training import lanes
from tests.unit.training.steps.contract import ManyLanesContract
from workers.training.steps.native import backend, recurrent
from workers.training.steps.native import library as native_library
from workers.training.steps.native import step as native_step
from workers.training.steps.native.library import NativeError, SliceStruct
from workers.training.steps.native.step import NativeStep
from workers.training.steps.probe import probe
from workers.training.steps.select import BackendSelector

CPU = torch.device("cpu")


def mlp(**options):
    return {"type": "mlp", "hidden_units": 8, **options}


@pytest.fixture(scope="module")
def library():
    if not any(map(shutil.which, native_library.COMPILERS)):
        pytest.skip("no C++ compiler on this machine")
    return native_library.build(native_library.cache_directory())


@pytest.fixture
def assert_equal_plain(library):
    def check(spec, hypers, *, epochs, tolerance=1e-9, rate=0.01):
        step = NativeStep(spec, len(hypers), library)
        losses = lanes.curve(step, spec, hypers, epochs, rate=rate)
        for lane, hyper in enumerate(hypers):
            reference, plain = lanes.plain_curve(spec, hyper, epochs, rate=rate)
            worst = ((losses[:, lane] - reference).abs() / reference.abs()).max()
            assert worst <= tolerance, (hyper.optimizer, hyper.options, float(worst))
            expected = plain.evaluate(spec.train_inputs)[0]
            outputs = step.evaluate(spec.train_inputs)[lane]
            assert torch.allclose(outputs, expected, atol=1e2 * tolerance)

    return check


@pytest.mark.parametrize("activation", native_step.ACTIVATIONS)
def test_native_trials_equal_plain_trials_for_every_optimizer(activation, assert_equal_plain):
    spec = lanes.group(mlp(activation=activation))
    epochs = 10 if activation == "relu" else 2
    assert_equal_plain(spec, lanes.every_optimizer(dropout=0.2), epochs=epochs)


def test_native_cnns_equal_plain_cnns_for_every_optimizer(assert_equal_plain):
    network: ClassVar = {"type": "cnn", "channels": 2, "hidden_units": 6, "norm": "batch"}
    spec = lanes.group(network, shape=(1, 6, 6))
    assert_equal_plain(spec, lanes.every_optimizer(), epochs=10)


@pytest.mark.parametrize("optimizer", [None, "nadam"])
def test_native_optimizers_with_updates_of_their_own_equal_torchs(optimizer, assert_equal_plain):
    """All side by side, each with two sets of options; or one kind in a group of its own."""
    spec = dataclasses.replace(lanes.group(mlp()), optimizer=optimizer)
    assert native_step.unsuitable(spec) is None
    others = {"l1": 1e-3, "dropout": 0.2}
    hypers = [
        lanes.hyper(kind, options, seed=seed, **(others if seed % 2 else {}))
        for seed, (kind, options) in enumerate([*lanes.OWN_OPTIMIZERS, ("adam", {})])
        if optimizer in (None, kind)
    ]
    assert_equal_plain(spec, hypers, epochs=10)


RECURRENT_HYPERS = [
    lanes.hyper("adam", dropout=0.2),
    lanes.hyper("nesterov", {"momentum": 0.9}, seed=2, l1=1e-3, dropout=0.3),
    lanes.hyper("rmsprop", seed=3, gradient_clip=0.1),
]


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((10, 3), {"hidden_units": 8}),
        ((10,), {"hidden_units": 5}),
        ((140, 2), {"hidden_units": 4}),  # more steps than vmap is given
        ((5, 3), {"hidden_units": 7, "hidden_layers": 2}),
        # A line of several channels: rows come channels last, weights channels first.
        ((2, 6, 5), {"hidden_units": 9, "hidden_layers": 3, "bidirectional": True}),
        ((1, 7, 4), {"hidden_units": 33, "bidirectional": True}),
    ],
)
def test_native_recurrent_networks_equal_plain_ones(kind, shape, options, assert_equal_plain):
    spec = lanes.group({"type": kind, **options}, shape=shape)
    assert_equal_plain(spec, RECURRENT_HYPERS, epochs=2)


@pytest.mark.parametrize("activation", native_step.ACTIVATIONS)
def test_native_rnns_equal_plain_rnns_for_every_activation(activation, assert_equal_plain):
    spec = lanes.group({"type": "rnn", "hidden_units": 9, "activation": activation}, shape=(6, 5))
    assert_equal_plain(spec, RECURRENT_HYPERS, epochs=2)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_native_recurrent_networks_equal_plain_ones_in_float32(kind, assert_equal_plain):
    spec = lanes.group({"type": kind, "hidden_units": 20}, shape=(10, 3), precision="float32")
    hypers = [lanes.hyper("sgd", {"momentum": 0.9}), lanes.hyper("adam", seed=2, dropout=0.2)]
    assert_equal_plain(spec, hypers, epochs=2, tolerance=1e-5)


def test_batches_of_long_sequences_are_left_to_torch():
    spec = lanes.group({"type": "lstm"}, shape=(4000, 3), rows=4, batch_size=1024)
    assert native_step.unsuitable(spec) == "its batches of sequences are too large for native code"


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 8, 8), {}),
        ((3, 6, 5), {"kernel_size": 1, "activation": "sigmoid"}),
        ((2, 5, 7), {"kernel_size": 5, "channels": 9, "activation": "tanh"}),
        ((1, 3, 3), {"conv_layers": 1, "activation": "gelu"}),
        ((1, 9, 9), {"conv_layers": 4, "channels": 1, "activation": "silu"}),
    ],
)
def test_native_cnn_equals_plain_cnn(shape, options, norm, assert_equal_plain):
    network: ClassVar = {"type": "cnn", "channels": 4, "hidden_units": 6, "norm": norm, **options}
    spec = lanes.group(network, shape=shape)
    hypers = [
        lanes.hyper("adam", dropout=0.2),
        lanes.hyper("nesterov", seed=2, l1=1e-3),
        lanes.hyper("rmsprop", seed=3, gradient_clip=0.1),
    ]
    assert_equal_plain(spec, hypers, epochs=2)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("batch_size", [1, 23, 70])  # 23: the last batch is one row
def test_native_norms_equal_plain_norms(norm, batch_size, assert_equal_plain):
    spec = lanes.group(mlp(norm=norm), batch_size=batch_size)
    assert_equal_plain(spec, lanes.every_optimizer(dropout=0.2)[::3], epochs=2)


@pytest.mark.parametrize("loss", native_step.LOSSES)
def test_native_trials_equal_plain_trials_for_every_loss(loss, assert_equal_plain):
    spec = lanes.group(mlp(), loss=loss)
    hypers = [
        lanes.hyper(),
        lanes.hyper("sgd", seed=2, label_smoothing=0.2),
        lanes.hyper("sgd", seed=3, l1=1e-2),
        lanes.hyper("sgd", seed=4, gradient_clip=0.05),
        lanes.hyper("adamw", seed=5, l1=1e-3, gradient_clip=0.1, dropout=0.5, label_smoothing=0.1),
    ]
    assert_equal_plain(spec, hypers, epochs=10)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 70])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_native_trials_equal_plain_trials_for_any_shape(batch_size, depth, assert_equal_plain):
    spec = lanes.group(mlp(hidden_layers=depth), batch_size=batch_size, shape=(3, 5, 1))
    assert_equal_plain(spec, [lanes.hyper(), lanes.hyper("sgd", seed=2)], epochs=2)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_lanes_may_have_any_width(precision, assert_equal_plain):
    # Around the vectors, the tiles and the power-of-two strides of the products.
    spec = lanes.group({"type": "mlp"}, precision=precision)
    widths = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 128, 130]
    hypers = [lanes.hyper(seed=w, dropout=0.1, network=mlp(hidden_units=w)) for w in widths]
    tolerance = 1e-5 if precision == "float32" else 1e-9
    assert_equal_plain(spec, hypers, epochs=10, tolerance=tolerance)


def test_probe_finds_native_code_faithful(library, monkeypatch):
    spec = lanes.group(mlp())
    reason = probe(spec, NativeStep(spec, 2, library))
    assert reason is None or reason.startswith("fusing does not pay")


@pytest.mark.parametrize(
    ("network", "precision", "reason"),
    [
        (mlp(), "float32", None),
        (mlp(), "tf32", None),
        ({"type": "cnn", "norm": "batch"}, "float32", None),
        ({"type": "cnn", "kernel_size": 4}, "float32", "the network has no native code"),
        ({"type": "other"}, "float32", "the network has no native code"),
        (mlp(), "bfloat16", "precision bfloat16 has no native code"),
    ],
)
def test_what_native_code_takes(network, precision, reason):
    assert native_step.unsuitable(lanes.group(network, precision=precision)) == reason


def test_selector_groups_networks_of_one_type_together(library):
    selector = BackendSelector(CPU, cache=native_library.cache_directory(), probe=False)
    assert selector.group_network(mlp(dropout=0.1, norm="batch")) == {"type": "mlp"}
    assert selector.group_network({"type": "cnn", "channels": 7}) == {"type": "cnn"}
    assert selector.group_network(mlp(hidden_units=1300)) == mlp(hidden_units=1536)
    spec = lanes.group({"type": "mlp"})
    step = selector.make_step(spec, selector.lanes_for(spec, 3))
    assert (step.backend, step.backend_reason) == ("native", None)
    half = lanes.group({"type": "mlp"}, precision="bfloat16")
    assert selector.lanes_for(half, 3) == 1
    step = selector.make_step(half, 1)
    assert (step.backend, step.backend_reason) == ("plain", "precision bfloat16 has no native code")


def test_lanes_of_different_networks_train_side_by_side(assert_equal_plain):
    spec = lanes.group({"type": "cnn"}, shape=(1, 8, 8))
    networks = [
        {"type": "cnn", "channels": 2, "hidden_units": 3},
        {"type": "cnn", "channels": 8, "conv_layers": 1, "norm": "batch", "kernel_size": 5},
        mlp(hidden_layers=3, activation="tanh"),
    ]
    hypers = [lanes.hyper(seed=s, network=network) for s, network in enumerate(networks)]
    assert_equal_plain(spec, hypers, epochs=5)


@pytest.mark.parametrize("changed", ["layers", "structure"])
def test_a_library_of_other_structures_is_refused(library, monkeypatch, changed, caplog):
    if changed == "layers":
        monkeypatch.setattr(native_library, "MOST_LAYERS", 65)
        said = "most_layers, but got 64 and 65"
    else:
        shorter = type("Shorter", (ctypes.Structure,), {"_fields_": SliceStruct._fields_[:-1]})
        monkeypatch.setitem(native_library.STRUCTURES, "slice", shorter)
        said = "size_slice, but got 56 and 48"
    with pytest.raises(NativeError, match=said):
        native_library.Library(library, torch.float32)
    assert backend.load(library.parent, probe=False) is None
    assert said in caplog.text


@pytest.mark.parametrize("name", native_library.STRUCTURES)
def test_fields_stand_in_the_order_of_the_source(name):
    """Their sizes are compared at load; that two have not changed places only the names tell."""
    source = "\n".join(
        path.read_text() for path in (native_library.SOURCE, *native_library.INCLUDED)
    )
    (body,) = re.findall(
        rf"^(?:template.*)?struct {name.title()} \{{$(.*?)^\}};", source, re.M | re.S
    )
    declared = re.sub(r"//.*", "", body).split(";")
    names = [re.sub(r"[\s*]", "", part).split(",") for part in map(_without_type, declared)]
    fields = [field for field, *_ in native_library.STRUCTURES[name]._fields_]
    assert [one for part in names for one in part if one] == fields


def _without_type(declaration):
    return re.sub(r"^\s*(const )?\w+\s", "", declaration)


def test_numbers_of_what_is_chosen_are_the_enums():
    source = native_library.SOURCE.read_text() + native_library.INCLUDED[0].read_text()
    for enum, ours in (
        ("Activation", native_step.ACTIVATIONS),
        ("Loss", native_step.LOSSES),
        ("CellKind", tuple(recurrent.KINDS)),
    ):
        (names,) = re.findall(rf"enum {enum} \{{([^}}]*)\}}", source)
        assert [n.strip().lower() for n in names.split(",")] == [
            f"k{one.replace('_', '')}" for one in ours
        ]


def test_missing_compiler_leaves_the_other_backends(tmp_path, monkeypatch):
    monkeypatch.setattr(native_library.shutil, "which", lambda name: None)
    with pytest.raises(NativeError, match="no C\\+\\+ compiler"):
        native_library.build(tmp_path)
    selector = BackendSelector(CPU, cache=tmp_path, probe=False)
    assert selector.group_network(mlp()) == mlp()


def test_unusable_cache_leaves_the_other_backends(tmp_path, library, monkeypatch):
    monkeypatch.setattr(native_library, "build", lambda directory: tmp_path / "not-there.so")
    selector = BackendSelector(CPU, cache=tmp_path, probe=False)
    assert selector.group_network(mlp()) == mlp()


def test_failing_compiler_says_what_it_said(tmp_path, monkeypatch, library):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {}")
    monkeypatch.setattr(native_library, "SOURCE", broken)
    with pytest.raises(NativeError, match=r"did not compile broken.cpp"):
        native_library.build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_library_is_compiled_once(tmp_path, library, monkeypatch):
    path = native_library.build(library.parent)
    assert path == library
    monkeypatch.setattr(native_library, "_compile", None)
    assert native_library.build(library.parent) == library


class TestNativeStep(ManyLanesContract):
    @pytest.fixture
    def make(self, library):
        return lambda spec, count: NativeStep(spec, count, library)

    def crews(self):
        yield from super().crews()
        # Not lion: a bias before a batch norm has rounding for a gradient, and lion takes its sign.
        others = [one for one in lanes.OWN_OPTIMIZERS if one[0] != "lion"]
        yield [lanes.hyper(*one, seed=seed) for seed, one in enumerate(others)]


class TestNativeStepOfImages(TestNativeStep):
    network: ClassVar = {"type": "cnn", "channels": 3, "hidden_units": 5, "norm": "batch"}
    shape = (2, 6, 6)
