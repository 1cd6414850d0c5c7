"""The plain step against the loop that everyone writes, and its canonical state."""

import pytest
import torch
from torch import Tensor, nn

from tests.unit.training.builders import mlp, regression, spec
from tests.unit.training.lanes_of_plain import PlainLanes
from tests.unit.training.steps.contract import Make, ManyLanesContract, TrainStepContract
from tuner_service.definition.trial_spec import TrialSpec
from workers.training.data import DatasetCache, PreparedData
from workers.training.nets import networks
from workers.training.nets.losses import LOSSES
from workers.training.nets.randomness import epoch_order
from workers.training.steps.groups import GroupSpec, dtype_of, group_of, hyper_of, without_dropout
from workers.training.steps.plain import PlainStep, precision
from workers.training.steps.step import LaneHyper

CPU = torch.device("cpu")
EPOCHS = 3


def group(one: TrialSpec) -> tuple[GroupSpec, PreparedData]:
    cache = DatasetCache(CPU, directories=())
    kind = LOSSES[one.loss].targets
    data = cache.get(one.dataset, targets=kind, dtype=dtype_of(one.precision))
    return group_of(one, data, device=CPU, group_network=without_dropout), data


def train(step: PlainStep, one: TrialSpec, spec_of_group: GroupSpec, epochs: range) -> list[Tensor]:
    rates = torch.full(
        (1, spec_of_group.steps), one.optimizer["learning_rate"], dtype=torch.float64
    )
    rows = spec_of_group.rows
    return [step.train_epoch(epoch_order(one.seed, e, rows)[None], rates) for e in epochs]


def usual_loop(one: TrialSpec, data: PreparedData) -> tuple[nn.Module, list[float]]:
    """Train as in a torch tutorial; penalties and clipping by torch's own means."""
    network = without_dropout(one.network)
    model = networks.build(network, inputs=data.shape, outputs=data.outputs)
    networks.initialise(model, one.seed)
    model.to(dtype_of(one.precision))
    criterion: nn.Module = nn.MSELoss()
    if one.loss == "cross_entropy":
        criterion = nn.CrossEntropyLoss(label_smoothing=one.label_smoothing)
    optimizer = torch.optim.SGD(model.parameters(), lr=one.optimizer["learning_rate"], momentum=0.9)
    curve = []
    for epoch in range(EPOCHS):
        order = epoch_order(one.seed, epoch, data.train.rows)
        total = 0.0
        for rows in order.split(int(one.batch_size)):
            loss = criterion(model(data.train.inputs[rows]), data.train.targets[rows])
            optimizer.zero_grad()
            penalty = sum(p.abs().sum() for p in model.parameters())
            (loss + one.l1 * penalty).backward()
            if one.gradient_clip:
                nn.utils.clip_grad_norm_(model.parameters(), one.gradient_clip)
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        curve.append(total)
    return model, curve


SGD = {"type": "sgd", "learning_rate": 0.05, "momentum": 0.9}
VARIANTS = {
    "classes": spec(optimizer=SGD, precision="float64"),
    "float32": spec(optimizer=SGD),
    "smoothing": spec(optimizer=SGD, label_smoothing=0.2, precision="float64"),
    "l1": spec(optimizer=SGD, l1=0.01, precision="float64"),
    "clip": spec(optimizer=SGD, gradient_clip=0.05, precision="float64"),
    "batch norm": spec(optimizer=SGD, network=mlp(norm="batch"), precision="float64"),
    "numbers": regression(
        optimizer={"type": "sgd", "learning_rate": 1e-5, "momentum": 0.9}, precision="float64"
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_step_is_the_usual_loop(name: str) -> None:
    one = VARIANTS[name]
    of_group, data = group(one)
    step = PlainStep(of_group)
    step.put(0, hyper_of(one), None)
    sums = [float(loss) for loss in train(step, one, of_group, range(EPOCHS))]
    model, curve = usual_loop(one, data)
    tolerance = 1e-12 if one.precision == "float64" else 1e-6
    assert sums == pytest.approx(curve, rel=tolerance)
    state = step.take(0)
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(
            state[f"parameters/{parameter}"], value.detach(), rtol=1e-6, atol=tolerance
        )
    assert int(state["optimizer/steps"]) == EPOCHS * of_group.steps


def test_dropout_masks_depend_on_the_seed_only() -> None:
    of_group, _ = group(spec())
    sums = {}
    for seed in (1, 1, 2):
        one = spec(seed=seed, network=mlp(dropout=0.5))
        step = PlainStep(of_group)
        step.put(0, hyper_of(one), None)
        again = float(train(step, one, of_group, range(1))[0])
        assert sums.setdefault(seed, again) == again
    assert sums[1] != sums[2]


@pytest.mark.parametrize(("name", "short"), [("float32", False), ("tf32", True)])
def test_products_and_convolutions_use_the_short_float32_only_where_asked(
    name: str, short: bool
) -> None:
    before = torch.backends.cudnn.allow_tf32
    with precision(name, torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32 is short
        assert torch.get_float32_matmul_precision() == ("high" if short else "highest")
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_low_precision_trains_and_leaves_torch_as_it_was(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    one, reference = spec(precision=precision), spec()
    sums = []
    for each in (one, reference):
        of_group, data = group(each)
        step = PlainStep(of_group)
        step.put(0, hyper_of(each), None)
        sums.append(float(train(step, each, of_group, range(3))[-1]))
        assert step.evaluate(data.validation.inputs).dtype == torch.float32
    assert sums[0] == pytest.approx(sums[1], rel=0.05)
    assert torch.get_float32_matmul_precision() == before


def test_the_hyperparameters_of_a_lane_come_from_its_specification() -> None:
    one = spec(
        optimizer={"type": "adam", "learning_rate": 0.01, "beta1": 0.8, "weight_decay": 0.1},
        network=mlp(dropout=0.25),
        label_smoothing=0.1,
        l1=0.01,
        gradient_clip=2.0,
    )
    assert hyper_of(one) == LaneHyper(
        optimizer="adam",
        options={"beta1": 0.8, "weight_decay": 0.1},
        dropout=0.25,
        label_smoothing=0.1,
        l1=0.01,
        gradient_clip=2.0,
        seed=7,
        network=one.network,
    )


class TestPlainStep(TrainStepContract):
    most_lanes = 1

    @pytest.fixture
    def make(self) -> Make:
        return lambda of_group, _: PlainStep(of_group)


class TestPlainLanes(ManyLanesContract):
    """The stand-in for a fused step, by which the engine is tested."""

    @pytest.fixture
    def make(self) -> Make:
        return PlainLanes
