"""Torch's optimizers behind canonical names, and the stacked update that equals them."""

import re

import pytest
import torch
from torch import nn

from tuner_service.definition.catalogue import OPTIMIZERS
from workers.training.nets import networks
from workers.training.optim import fused, plain, registry
from workers.training.steps.native import library

CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
    ("nesterov", {"momentum": 0.8}),
    ("nesterov", {"momentum": 0.0}),
    ("adagrad", {"weight_decay": 0.01}),
    ("rmsprop", {"alpha": 0.9}),
    ("rmsprop", {"momentum": 0.5, "weight_decay": 0.1}),
    ("adam", {"beta1": 0.8, "weight_decay": 0.01}),
    ("adamw", {"weight_decay": 0.1}),
]

OWN = [
    ("adadelta", {"weight_decay": 0.01}),
    ("adadelta", {"rho": 0.7, "eps": 1e-4}),
    ("nadam", {"beta1": 0.8, "weight_decay": 0.01}),
    ("nadam", {"momentum_decay": 0.1, "beta2": 0.9}),
    ("radam", {}),
    ("radam", {"beta2": 0.9, "weight_decay": 0.01}),
    ("adamax", {"weight_decay": 0.01}),
    ("adamax", {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3}),
    ("lion", {"weight_decay": 0.1}),
    ("lion", {"beta1": 0.5, "beta2": 0.6}),
]


def problem(seed=0):
    with networks.seeded(seed):
        return nn.Linear(4, 3).double(), torch.randn(30, 8, 4).double()


def train(module, optimizer, batches):
    for rows in batches:
        plain.set_rate(optimizer, RATE)
        optimizer.zero_grad()
        module(rows).square().mean().backward()
        optimizer.step()


RATE = 0.05
TORCHS = {
    ("sgd", "momentum=0.9 weight_decay=0.01"): torch.optim.SGD,
    ("nesterov", "momentum=0.8"): lambda p, **o: torch.optim.SGD(p, nesterov=True, **o),
    ("adagrad", "weight_decay=0.01 eps=1e-6"): torch.optim.Adagrad,
    ("rmsprop", "alpha=0.9 momentum=0.5 weight_decay=0.1 eps=1e-4"): torch.optim.RMSprop,
    ("adam", "beta1=0.8 beta2=0.95 weight_decay=0.01 eps=1e-4"): torch.optim.Adam,
    ("adamw", "beta1=0.8 beta2=0.95 weight_decay=0.1 eps=1e-4"): torch.optim.AdamW,
    ("adadelta", "rho=0.7 eps=1e-4 weight_decay=0.01"): torch.optim.Adadelta,
    ("nadam", "beta1=0.8 beta2=0.9 momentum_decay=0.1 weight_decay=0.01"): torch.optim.NAdam,
    ("adamax", "beta1=0.8 beta2=0.9 weight_decay=0.01 eps=1e-4"): torch.optim.Adamax,
    ("radam", "beta1=0.8 beta2=0.9 weight_decay=0.01 eps=1e-4"): torch.optim.RAdam,
}


def numbers(given):
    return {name: float(value) for name, value in (one.split("=") for one in given.split())}


@pytest.mark.parametrize(("kind", "given"), TORCHS)
def test_an_optimizer_is_torchs_under_its_name(kind, given):
    options = numbers(given)
    theirs = dict(options)
    if "beta1" in theirs:
        theirs["betas"] = (theirs.pop("beta1"), theirs.pop("beta2"))
    (ours, batches), (reference, _) = problem(), problem()
    train(ours, plain.build(kind, options, ours.parameters()), batches)
    train(reference, TORCHS[kind, given](reference.parameters(), lr=RATE, **theirs), batches)
    close = 1e-6 if kind == "nadam" else 1e-12  # torch has its product of momenta in float32
    for mine, other in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=close, atol=close)


def test_every_optimizer_has_a_reference():
    by_the_paper = {"lion"}  # which torch has not
    missing = set(OPTIMIZERS) - {kind for kind, _ in TORCHS} - by_the_paper
    assert missing == set(), "add torch's own to TORCHS, or a test by the paper as lion has"


@pytest.mark.parametrize(("kind", "options"), CASES + OWN)
def test_state_survives_a_change_of_optimizer_object(kind, options):
    (straight, data), (moved, _) = problem(), problem()
    train(straight, plain.build(kind, options, straight.parameters()), data)

    first = plain.build(kind, options, moved.parameters())
    train(moved, first, data[:10])
    state = plain.state_of(kind, first, moved.named_parameters(), steps=10)
    second = plain.build(kind, options, moved.parameters())
    plain.load_state(kind, second, moved.named_parameters(), state)
    train(moved, second, data[10:])

    assert torch.equal(straight.weight, moved.weight)


def test_state_has_canonical_names_and_is_a_copy():
    module, data = problem()
    optimizer = plain.build("adam", {}, module.parameters())
    train(module, optimizer, data[:2])
    state = plain.state_of("adam", optimizer, module.named_parameters(), steps=2)
    slots = {f"optimizer/{slot}/{name}" for slot in ("first", "second") for name in PARAMETERS}
    assert set(state) == {"optimizer/steps", *slots}
    held = state["optimizer/first/weight"].clone()
    train(module, optimizer, data[2:])
    assert torch.equal(state["optimizer/first/weight"], held)


def test_nesterov_without_momentum_is_plain_sgd():
    (sgd, data), (nesterov, _) = problem(), problem()
    train(sgd, plain.build("sgd", {}, sgd.parameters()), data)
    train(nesterov, plain.build("nesterov", {"momentum": 0}, nesterov.parameters()), data)
    assert torch.equal(sgd.weight, nesterov.weight)


PARAMETERS = ("weight", "bias")


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def stacked_train(cases, module, batches, *, rate=0.05, own=None):
    """The stacked update driven by autograd, lane by lane; returns [K, …] weights."""
    parameters = module.weight.detach().expand(len(cases), -1, -1).clone()
    average, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    rates = torch.full((len(cases), len(batches)), rate, dtype=torch.float64)
    lane = double([fused.lane_coefficients(*case) for case in cases])
    options = double([fused.step_options_of(*case) for case in cases])
    steps = fused.step_coefficients(options, rates, torch.zeros(len(cases)), kind=own)
    for index, rows in enumerate(batches):
        weights = parameters.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((rows @ weights.mT).square().mean((1, 2)).sum(), weights)
        parameters, average, square = fused.update_of(own)(
            parameters, gradient, average, square, lane=lane, step=steps[index]
        )
    return parameters


@pytest.mark.parametrize(
    "own", [None, *(name for name, entry in registry.OPTIMIZERS.items() if not entry.mixes)]
)
def test_stacked_update_equals_the_plain_steps_optimizer(own):
    cases = CASES if own is None else [(own, {}), *(case for case in OWN if case[0] == own)]
    lanes = stacked_train(cases, problem()[0], problem()[1], own=own)
    for index, (kind, options) in enumerate(cases):
        module, data = problem()
        module.bias.data.zero_()
        module.bias.requires_grad_(False)
        train(module, plain.build(kind, options, [module.weight]), data)
        assert torch.allclose(lanes[index], module.weight, rtol=1e-12, atol=1e-12), kind


def test_update_without_squares_equals_the_full_one_for_sgd():
    torch.manual_seed(0)
    p, g, a = torch.rand(3, 2, 5, 4, dtype=torch.float64).unbind()
    kinds = [fused.lane_coefficients("nesterov", {"momentum": m}) for m in (0.0, 0.9)]
    lane = double(kinds)
    step = double([[0.0, 0.1, 1.0]] * 2)
    full = fused.stacked_update(p, g, a, torch.zeros_like(p), lane=lane, step=step)
    short = fused.stacked_update(p, g, a, None, lane=lane, step=step)
    assert torch.equal(full[0], short[0])
    assert torch.equal(full[1], short[1])
    assert short[2] is None


def test_bias_correction_is_right_at_late_steps():
    options = double([fused.step_options_of("adam", {}), fused.step_options_of("sgd", {})])
    table = fused.step_coefficients(options, double([[1.0], [1.0]]), torch.tensor([99, 99]))
    scale, size, shrink = table[0, 0].tolist()
    assert size == pytest.approx(1 / (1 - 0.9**100), rel=1e-14)
    assert scale == pytest.approx((1 - 0.999**100) ** -0.5, rel=1e-14)
    assert shrink == 1.0
    assert table[0, 1].tolist() == [0.0, 1.0, 1.0]


def test_nadam_equals_torchs_whose_product_of_momenta_is_in_single_precision():
    (ours, data), (theirs, _) = problem(), problem()
    train(ours, plain.build("nadam", {}, ours.parameters()), data)
    train(theirs, torch.optim.NAdam(theirs.parameters()), data)
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-5)


def test_nadams_product_of_momenta_goes_on_from_any_step():
    options = double([fused.step_options_of("nadam", {"beta1": b}) for b in (0.0, 0.9, 0.99)])
    rates = torch.full((3, 1500), 0.1, dtype=torch.float64)
    whole = fused.step_coefficients(options, rates, torch.zeros(3), kind="nadam")
    late = fused.step_coefficients(
        options, rates[:, :3], torch.tensor([0, 1497, 900]), kind="nadam"
    )
    for lane, begun in enumerate((0, 1497, 900)):
        assert torch.allclose(late[:, lane], whole[begun : begun + 3, lane], rtol=1e-13)


def test_lion_equals_the_papers_update():
    """Algorithm 2 of Chen et al. 2023, number by number."""
    optimizer_options = {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95}
    weight = nn.Parameter(double([0.5, -0.2, 0.1]))
    optimizer = plain.build("lion", optimizer_options, [weight])
    theta, m, rate = weight.tolist(), [0.0] * 3, 0.03
    for gradients in ([0.3, -0.1, 0.0], [-0.9, 0.2, 0.4], [0.1, 0.1, -0.2], [0.0, -0.3, 0.1]):
        weight.grad = double(gradients)
        plain.set_rate(optimizer, rate)
        optimizer.step()
        for i, g in enumerate(gradients):
            c = 0.8 * m[i] + 0.2 * g
            theta[i] -= rate * ((c > 0) - (c < 0) + 0.1 * theta[i])
            m[i] = 0.95 * m[i] + 0.05 * g
        assert weight.tolist() == pytest.approx(theta, rel=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_option_changes_the_plain_and_the_fused_step_alike(kind):
    """What an entry leaves out of either of its updates, or gets wrong, shows here.

    Each option is moved away from the reference's value: a bound may have no effect at its default.
    """
    own = None if registry.OPTIMIZERS[kind].mixes else kind
    base = next((numbers(given) for name, given in TORCHS if name == kind), {})
    cases = [(kind, base)]
    for option in OPTIMIZERS[kind].options:
        if option.name != "learning_rate":
            value = base.get(option.name, option.default)
            cases.append((kind, {**base, option.name: value * 0.9 or 0.1}))
    lanes = stacked_train(cases, *problem(), own=own)
    for index, (_, options) in enumerate(cases):
        module, data = problem()
        module.bias.data.zero_()
        module.bias.requires_grad_(False)
        train(module, plain.build(kind, options, [module.weight]), data)
        assert torch.allclose(lanes[index], module.weight, rtol=1e-12, atol=1e-12), options
        same = index > 0 and torch.equal(lanes[index], lanes[0])
        assert not same, f"{options} does as {base}: give TORCHS values at which each has an effect"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_slot_is_a_tensor_of_torchs_state(kind):
    module, data = problem()
    entry = registry.OPTIMIZERS[kind]
    optimizer = plain.build(kind, {}, module.parameters())
    train(module, optimizer, data[:2])
    for slot in entry.slots(registry.complete(kind, {})).values():
        assert optimizer.state[module.weight][slot.torch_name].shape == module.weight.shape


def test_an_unknown_optimizer_is_none():
    for ask in (plain.build, fused.lane_coefficients, fused.step_options_of, fused.slots_of):
        with pytest.raises(ValueError, match="no optimizer 'adamm'; did you mean"):
            ask("adamm", {}, *([[]] if ask is plain.build else []))
    with pytest.raises(ValueError, match="takes the shared update"):
        fused.update_of("adam")
    with pytest.raises(ValueError, match="sgd has no option beta1"):
        fused.lane_coefficients("sgd", {"beta1": 0.9})


def test_native_codes_are_the_enums():
    source = library.SOURCE.read_text()
    (names,) = re.findall(r"enum Kind \{([^}]*)\}", source)
    order = [name.strip().removeprefix("k").lower() for name in names.split(",")]
    for kind, entry in registry.OPTIMIZERS.items():
        assert entry.update.native is None or order[entry.update.native] == kind.removesuffix("w")
