"""The catalogue is sound by itself, and is what the trainer and the search build."""

import pytest
import torch

from tuner_service.definition.binding import KINDS, bind
from tuner_service.definition.catalogue import (
    ACTIVATIONS,
    CATALOGUE,
    DATASETS,
    LOSSES,
    METRICS,
    NETWORKS,
    OPTIMIZERS,
    SCHEDULES,
    TRAINING,
    Entry,
    catalogue_view,
)
from tuner_service.definition.faults import did_you_mean, suggestion
from tuner_service.definition.options import Option, option_fault
from tuner_service.errors import NotFoundError
from workers.training.data import SOURCES
from workers.training.nets import layers, losses, metrics, networks
from workers.training.optim import registry, schedules
from workers.training.steps.native import step as native_step

ENTRIES = [
    pytest.param(entry, id=f"{kind}-{name}")
    for kind, entries in CATALOGUE.items()
    for name, entry in entries.items()
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_default_fits_its_option(entry: Entry) -> None:
    for option in entry.options:
        assert option.description.endswith("."), option.name
        if not option.required:
            assert option_fault(option, option.default) is None


def test_a_name_means_one_thing() -> None:
    """No option of the data, network, loop, optimizer or schedule has the name of another."""
    groups = [
        ({o.name for e in NETWORKS.values() for o in e.options}, "network"),
        ({o.name for e in DATASETS.values() for o in e.options if o.searchable}, "dataset"),
        ({o.name for o in TRAINING["training"].options}, "training"),
        ({o.name for e in OPTIMIZERS.values() for o in e.options}, "optimizer"),
        ({o.name for e in SCHEDULES.values() for o in e.options}, "schedule"),
        ({"optimizer", "schedule", "type", "name", "split", "loss", "metrics"}, "fields"),
    ]
    owners: dict[str, list[str]] = {}
    for names, group in groups:
        for name in names:
            owners.setdefault(name, []).append(group)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}


def test_kinds_that_share_an_option_share_its_range() -> None:
    for kinds in KINDS.values():
        names = {option.name for entry in kinds.values() for option in entry.options}
        for name in names:
            binding = bind(name, network=None, dataset=None)
            assert binding is not None
            assert len({_domain(option) for option in binding.options.values()}) == 1, name


def _domain(option: Option) -> tuple[object, ...]:
    return (option.type, option.low, option.low_open, option.high, option.high_open, option.fusible)


def test_it_names_what_the_trainer_builds() -> None:
    assert set(NETWORKS) <= set(networks.NETWORKS)
    assert set(ACTIVATIONS) <= set(layers.ACTIVATIONS)
    assert set(OPTIMIZERS) == set(registry.OPTIMIZERS)
    assert set(SCHEDULES) <= set(schedules.SCHEDULES)
    assert set(LOSSES) <= set(losses.LOSSES)
    assert set(DATASETS) <= set(SOURCES)
    assert set(METRICS) - {"loss"} <= set(metrics.CLASS_METRICS | metrics.NUMBER_METRICS)


def test_tasks_of_losses_and_metrics_are_the_trainers() -> None:
    for name, loss in LOSSES.items():
        numbers = losses.LOSSES[name].targets == "numbers"
        assert (loss.task == "regression") is numbers
    for name, metric in METRICS.items():
        if name != "loss":
            assert ("classification" in metric.tasks) is (name in metrics.CLASS_METRICS)
            assert ("regression" in metric.tasks) is (name in metrics.NUMBER_METRICS)


def test_fusible_optimizers_and_zero_preserving_activations_are_the_trainers() -> None:
    for name, optimizer in OPTIMIZERS.items():
        assert optimizer.fusible is registry.OPTIMIZERS[name].mixes
        assert optimizer.native is (registry.OPTIMIZERS[name].update.native is not None)
    for name, activation in ACTIVATIONS.items():
        assert activation.zero_at_zero is (name in layers.ZERO_PRESERVING)


def test_networks_with_native_code_are_the_trainers() -> None:
    limited = {name: n.native_limits for name, n in NETWORKS.items() if n.native_limits is not None}
    assert set(limited) == {name for name in NETWORKS if native_step.suits({"type": name})}
    for name, limits in limited.items():
        assert set(limits) <= {option.name for option in NETWORKS[name].options}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_builds_with_every_choice(name: str) -> None:
    entry = NETWORKS[name]
    defaults = {option.name: option.default for option in entry.options}
    shape = (1, 8, 8) if "image" in entry.inputs else (5,)
    for option in entry.options:
        for choice in option.choices or (option.low or 0, option.default):
            network = {"type": name, **defaults, option.name: choice}
            assert networks.build(network, inputs=shape, outputs=3) is not None


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, e in NETWORKS.items() for k in e.inputs])
def test_every_networks_options_and_defaults_are_the_trainers(name: str, kind: str) -> None:
    """What is left out takes the catalogue's default, and no option is without effect."""
    shape = {"table": (5,), "image": (1, 8, 8), "sequence": (6, 3)}[kind]
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))

    def outputs(**options: object) -> torch.Tensor:
        module = networks.build({"type": name, **options}, inputs=shape, outputs=3)
        result: torch.Tensor = networks.initialise(module, 0)(x)
        return result

    defaults = {option.name: option.default for option in NETWORKS[name].options}
    assert torch.equal(outputs(), outputs(**defaults))
    for option in NETWORKS[name].options:
        changed = outputs(**{**defaults, option.name: _another(option)})
        assert not torch.equal(outputs(), changed), option.name


def _another(option: Option) -> object:
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.type == "boolean":
        return not option.default
    return 0.5 if option.type == "float" else option.default + 1


@pytest.mark.parametrize("kind", CATALOGUE)
def test_views_are_json(kind: str) -> None:
    for entry in catalogue_view(kind):
        assert entry["name"] in CATALOGUE[kind]
        assert entry["description"]


def test_an_unknown_kind_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'networks'"):
        catalogue_view("network")


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("lr", ["learning_rate", "l1"], "learning_rate"),
        ("learning-rate", ["learning_rate"], "learning_rate"),
        ("Learning Rate", ["learning_rate"], "learning_rate"),
        ("momentun", ["momentum", "gamma"], "momentum"),
        ("min", ["maximize", "minimize"], "minimize"),
        ("units", ["hidden_layers", "hidden_units"], "hidden_units"),
        ("f1", ["f1_macro", "f1_micro"], None),
        ("val_acc", ["val_auroc", "val_accuracy"], "val_accuracy"),
        ("zzz", ["momentum"], None),
        ("", ["momentum"], None),
        ("x" * 100_000, ["momentum"], None),
    ],
)
def test_suggestions(name: str, known: list[str], expected: str | None) -> None:
    assert suggestion(name, known) == expected


def test_several_likely_names_are_all_named() -> None:
    assert did_you_mean("f1", ["f1_macro", "f1_micro", "mse"]) == (
        "; did you mean one of f1_macro, f1_micro?"
    )
