"""Built-in networks: shapes, deterministic initialisation, dropout from coordinates."""

import ast
import types

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from workers.training.bundle import network_source
from workers.training.nets import networks
from workers.training.nets.layers import Dropout, GroupNorm, ShapeError
from workers.training.nets.sequences import EncoderBlock, Transformer, use_torch_kernels

SHAPES = {"mlp": (64,), "cnn": (1, 8, 8), "resnet": (2, 8, 8)}  # the others: (6, 3)
TORCHS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
VARIANTS = [
    {"type": "mlp"},
    {"type": "mlp", "hidden_layers": 1, "hidden_units": 7, "activation": "tanh", "dropout": 0.2},
    {"type": "mlp", "norm": "batch"},
    {"type": "mlp", "norm": "layer", "activation": "gelu"},
    {"type": "cnn", "channels": 4},
    {"type": "cnn", "channels": 3, "conv_layers": 3, "norm": "batch", "dropout": 0.5},
    {"type": "cnn", "channels": 4, "kernel_size": 2, "norm": "layer", "activation": "silu"},
    {"type": "resnet", "channels": 4, "stages": 2, "dropout": 0.2},
    {"type": "resnet", "channels": 2, "stages": 3, "blocks": 2, "norm": "batch"},
    {"type": "rnn", "hidden_units": 5, "activation": "relu"},
    {"type": "gru", "hidden_units": 5, "hidden_layers": 2, "dropout": 0.2},
    {"type": "lstm", "hidden_units": 5, "hidden_layers": 2, "bidirectional": True},
    {"type": "transformer", "width": 8, "heads": 2, "dropout": 0.1},
    {"type": "transformer", "width": 7, "heads": 3, "layers": 1, "feedforward_factor": 1},
]


def shape_of(network):
    return SHAPES.get(network["type"], (6, 3))


def built(network, seed=0):
    module = networks.build(network, inputs=shape_of(network), outputs=5)
    return networks.initialise(module, seed)


def rows(network, count=6):
    return torch.rand(count, *shape_of(network), generator=torch.Generator().manual_seed(1))


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
    with pytest.raises(ShapeError, match=r"channels, height, width.*\(64,\)"):
        networks.build({"type": "cnn"}, inputs=(64,), outputs=3)


def test_an_option_that_a_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match="mlp has no option widht"):
        networks.build({"type": "mlp", "widht": 8}, inputs=(64,), outputs=3)


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
    layer = Dropout(0.3, salt=0)
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


@pytest.mark.parametrize("network", VARIANTS)
def test_the_source_that_travels_is_the_same_network(network):
    """Trained on, too: the masks of its dropout are those of the trial."""
    ours = built(network)
    ours(rows(network))  # moves running statistics
    source = types.ModuleType("network")
    exec(network_source.source_of(networks.NETWORKS[network["type"]].build), source.__dict__)
    theirs = source.build(network=networks.complete(network), inputs=shape_of(network), outputs=5)
    theirs.load_state_dict(ours.state_dict())
    assert type(theirs) is not type(ours)
    assert torch.equal(theirs.eval()(rows(network)), ours.eval()(rows(network)))
    assert torch.equal(theirs.train()(rows(network)), ours.train()(rows(network)))


@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_the_source_that_travels_stands_alone(kind):
    """Its imports are met where nothing of this project is, and no name stands in it twice."""
    text = network_source.source_of(networks.NETWORKS[kind].build)
    tree = ast.parse(text)
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(names) == len(set(names))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imported if network_source._is_ours(node)]


def test_a_network_that_needs_the_service_cannot_travel(monkeypatch):
    texts = {"workers.training.nets.a": "from workers.training.nets.b import x\n",
             "workers.training.nets.b": "from tuner_service.errors import DataError\n"}  # fmt: skip
    monkeypatch.setattr(network_source, "_text", texts.__getitem__)
    with pytest.raises(ValueError, match=r"nets\.b travels .* from tuner_service\.errors import"):
        network_source._needed("workers.training.nets.a")


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "transformer"])
def test_sequence_networks_read_images_by_lines_and_tables_by_numbers(kind):
    network = {"type": kind, "width" if kind == "transformer" else "hidden_units": 4}
    image, table = torch.rand(3, 2, 5, 4), torch.rand(3, 7)
    for given, read in ((image, image.transpose(1, 2).reshape(3, 5, 8)), (table, table[..., None])):
        one, other = (
            networks.initialise(networks.build(network, inputs=x.shape[1:], outputs=2), 0)
            for x in (given, read)
        )
        assert torch.equal(one(given), other(read))
    with pytest.raises(ShapeError, match=r"\(steps, features\).*\(1, 2, 3, 4\)"):
        networks.build(network, inputs=(1, 2, 3, 4), outputs=2)


@pytest.mark.parametrize("kind", TORCHS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_networks_equal_torchs(kind, bidirectional):
    network = {"type": kind, "hidden_units": 5, "hidden_layers": 2, "bidirectional": bidirectional}
    ours = built(network)
    theirs = TORCHS[kind](3, 5, num_layers=2, bidirectional=bidirectional, batch_first=True)
    for depth, layer in enumerate(ours.layers):
        for cells, end in zip(layer, ("", "_reverse"), strict=False):
            for name, parameter in cells.named_parameters():
                setattr(theirs, f"{name}_l{depth}{end}", parameter)
    last = theirs(rows(network))[1]
    last = last[0] if kind == "lstm" else last
    expected = ours.output(last[-2:].movedim(0, 1).flatten(1) if bidirectional else last[-1])
    assert torch.allclose(ours(rows(network)), expected, atol=1e-6)


def test_encoder_block_equals_torchs():
    network = networks.complete({"type": "transformer", "width": 8, "heads": 2})
    ours = networks.initialise(EncoderBlock(network, 0), 0)
    theirs = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    )
    names = {"norms.0": "norm1", "norms.1": "norm2", "joined": "self_attn.out_proj"}
    names |= {"expand": "linear1", "contract": "linear2"}
    state = {}
    for name, value in ours.state_dict().items():
        part, kind = name.rsplit(".", 1)
        attention = part == "queries_keys_values"
        state[f"self_attn.in_proj_{kind}" if attention else f"{names[part]}.{kind}"] = value
    theirs.load_state_dict(state)
    x = torch.rand(4, 6, 8)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_transformer_knows_the_order_of_steps():
    network = {"type": "transformer", "width": 8}
    module, x = built(network), rows(network)
    assert isinstance(module, Transformer)
    assert not torch.allclose(module(x), module(x.flip(1)), atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (4, 2), (6, 2), (16, 8), (64, 8)])
def test_group_norm_has_groups_of_two_channels_or_more(channels, groups):
    assert GroupNorm(channels).num_groups == groups


def test_attention_over_long_sequences_is_evaluated_in_small_parts():
    module = networks.build({"type": "transformer", "width": 4}, inputs=(784,), outputs=2)
    assert networks.rows_at_once(module, 4096) == 2**26 // (4 * 784**2)
    assert networks.rows_at_once(nn.Linear(2, 2), 4096) == 4096


def test_long_sequences_run_plain_and_say_why():
    family = networks.NETWORKS["lstm"]
    assert family.refuses((128, 3)) is None
    assert family.refuses((200,)) == (
        "a recurrent network over 200 steps is not fused; the most is 128"
    )


@pytest.mark.parametrize(
    "network",
    [
        {"type": "rnn"},
        {"type": "rnn", "activation": "relu"},
        {"type": "rnn", "activation": "gelu"},  # torch has no kernel for it
        {"type": "gru", "hidden_layers": 2, "bidirectional": True},
        {"type": "lstm", "hidden_layers": 2, "bidirectional": True},
        {"type": "transformer", "width": 10, "heads": 3},
    ],
)
def test_torchs_kernels_compute_what_is_written_out(network):
    x = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    written, torchs = (
        networks.initialise(networks.build(network, inputs=(6, 3), outputs=2), 1).double()
        for _ in range(2)
    )
    use_torch_kernels(torchs)
    torch.testing.assert_close(torchs(x), written(x), rtol=1e-12, atol=1e-12)
    for module in (written, torchs):
        module(x).square().sum().backward()
    for one, other in zip(torchs.parameters(), written.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)
