"""Built-in networks: shapes, deterministic initialisation, dropout from coordinates."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from tuner_service.errors import DataError
from workers.training import networks

SHAPES = {"mlp": (64,), "cnn": (1, 8, 8)}
VARIANTS = [
    {"type": "mlp"},
    {"type": "mlp", "hidden_layers": 1, "hidden_units": 7, "activation": "tanh", "dropout": 0.2},
    {"type": "mlp", "norm": "batch"},
    {"type": "mlp", "norm": "layer", "activation": "gelu"},
    {"type": "cnn", "channels": 4},
    {"type": "cnn", "channels": 3, "conv_layers": 3, "norm": "batch", "dropout": 0.5},
    {"type": "cnn", "channels": 4, "kernel_size": 2, "norm": "layer", "activation": "silu"},
]


def built(network, seed=0):
    module = networks.build(network, inputs=SHAPES[network["type"]], outputs=5)
    return networks.initialise(module, seed)


def rows(network, count=6):
    return torch.rand(count, *SHAPES[network["type"]], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("network", VARIANTS)
def test_network_maps_rows_to_outputs(network):
    assert built(network)(rows(network)).shape == (6, 5)


@pytest.mark.parametrize("network", VARIANTS)
def test_initialisation_belongs_to_the_seed(network):
    first, again, other = (built(network, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_initialisation_forgets_training_and_leaves_the_process_generator_alone():
    module = built({"type": "mlp", "norm": "batch"})
    fresh = {name: value.clone() for name, value in module.state_dict().items()}
    module(torch.rand(9, 64)).sum().backward()
    state = torch.get_rng_state()
    networks.initialise(module, 0)
    assert all(torch.equal(fresh[name], value) for name, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_initialisation_refuses_parameters_nobody_resets():
    module = nn.Module()
    module.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"reset_parameters.* root \(Module\)"):
        networks.initialise(nn.Sequential(nn.Linear(2, 2), module)[1], 0)


def test_parameter_names_do_not_depend_on_dropout():
    without, with_ = (built({"type": "cnn", "dropout": rate}).state_dict() for rate in (0.0, 0.5))
    assert list(without) == list(with_)


def test_cnn_refuses_rows_that_are_no_images():
    with pytest.raises(DataError, match=r"channels, height, width.*\(64,\)"):
        networks.build({"type": "cnn"}, inputs=(64,), outputs=3)


def test_dropout_depends_on_step_and_is_off_in_evaluation():
    module, x = built({"type": "mlp", "dropout": 0.5}), torch.rand(6, 64)
    networks.arm(module, rate=0.5, seed=1, step=0)
    first, again = module(x), module(x)
    networks.arm(module, rate=0.5, seed=1, step=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, module(x))
    module.eval()
    networks.arm(module, rate=0.5, seed=2, step=1)
    assert torch.equal(module(x), built({"type": "mlp"})(x))


def test_dropout_keeps_the_mean():
    layer = networks.Dropout(0.3, salt=0)
    assert layer(torch.ones(400, 100)).mean() == pytest.approx(1.0, abs=0.01)


def test_batch_norm_takes_a_batch_of_one_row():
    module = built({"type": "mlp", "norm": "batch"})
    before = module.norms[0].running_mean.clone()
    assert torch.isfinite(module(torch.rand(1, 64))).all()
    assert torch.equal(before, module.norms[0].running_mean)


@pytest.mark.parametrize("network", VARIANTS)
def test_declared_fusible_families_survive_vmap(network):
    assert networks.NETWORKS[network["type"]].fusible
    modules, x = [built(network, seed) for seed in range(3)], rows(network)
    parameters, buffers = stack_module_state(modules)

    def loss(p, b):
        copies = {name: value.clone() for name, value in b.items()}
        return functional_call(modules[0], (p, copies), (x,)).square().mean()

    stacked = vmap(grad(loss))(parameters, buffers)
    modules[2](x).square().mean().backward()
    for name, parameter in modules[2].named_parameters():
        assert torch.allclose(stacked[name][2], parameter.grad, atol=1e-6)
