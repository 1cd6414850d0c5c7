"""One trial's instructions: the trial's parameters, else what is fixed, else the default."""

from typing import Any

import pytest

from tests.unit.definition.builders import MOMENTUM, OPTIMIZER, choice, definition, floats, ints
from tuner_service.definition import (
    ModuleDescription,
    StudyDefinition,
    bindings,
    fusing,
    most_epochs,
    parallel_trials,
    parse_definition,
    resolve,
    study_task,
    total_slots,
)
from tuner_service.definition.catalogue import NETWORKS, OPTIMIZERS
from tuner_service.definition.options import Option


def parsed(**changes: Any) -> StudyDefinition:
    return parse_definition(definition(**changes))


def test_defaults_fill_everything() -> None:
    spec = resolve(parsed(), {"learning_rate": 0.01})
    assert spec.optimizer == {
        "type": "adam",
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
    }
    assert spec.network == {"type": "mlp"} | {
        option.name: option.default for option in NETWORKS["mlp"].options
    }
    assert spec.schedule == {"type": "constant", "warmup_epochs": 0}
    assert (spec.epochs, spec.batch_size, spec.seed) == (20, 32, 0)
    assert (spec.loss, spec.metrics) == ("cross_entropy", ("accuracy",))
    assert spec.objective == (("val_accuracy", "maximize"),)
    assert spec.early_stopping is None
    assert spec.dataset.split.model_dump() == {
        "validation": 0.2,
        "test": 0.2,
        "seed": 0,
        "stratify": True,
        "folds": None,
        "fold": None,
        "repeats": 1,
        "by": None,
        "column": None,
    }


def test_parameters_win_over_what_is_fixed_over_defaults() -> None:
    study = parsed(
        network={"type": "mlp", "hidden_units": 8},
        training={"beta1": 0.5, "epochs": 3, "schedule": "cosine", "min_factor": 0.1},
        parameters={"hidden_layers": ints(1, 4), "batch_size": choice(8, "full")},
    )
    spec = resolve(study, {"hidden_layers": 4, "batch_size": "full"})
    assert (spec.network["hidden_layers"], spec.network["hidden_units"]) == (4, 8)
    assert (spec.optimizer["beta1"], spec.optimizer["beta2"]) == (0.5, 0.999)
    assert spec.schedule == {"type": "cosine", "min_factor": 0.1, "warmup_epochs": 0}
    assert (spec.batch_size, spec.epochs) == ("full", 3)


def test_an_optimizer_gets_its_own_options_only() -> None:
    study = parsed(
        parameters={"optimizer": OPTIMIZER, "momentum": MOMENTUM}, training={"beta1": 0.5}
    )
    adam = resolve(study, {"optimizer": "adam"}).optimizer
    assert set(adam) == {"type", *(option.name for option in OPTIMIZERS["adam"].options)}
    assert (adam["beta1"], adam["learning_rate"]) == (0.5, 0.001)
    sgd = resolve(study, {"optimizer": "sgd", "momentum": 0.25}).optimizer
    assert sgd == {"type": "sgd", "learning_rate": 0.01, "momentum": 0.25, "weight_decay": 0.0}


def test_numbers_come_in_the_options_type() -> None:
    study = parsed(parameters={"learning_rate": choice(1, 0.1), "gradient_clip": choice(None, 2)})
    spec = resolve(study, {"learning_rate": 1, "gradient_clip": 2})
    assert isinstance(spec.optimizer["learning_rate"], float)
    assert isinstance(spec.gradient_clip, float)
    assert resolve(study, {"learning_rate": 1, "gradient_clip": None}).gradient_clip is None


def test_options_of_one_section_are_none_of_anothers() -> None:
    channels = Option(name="channels", type="int", description="Of the images.", default=1)
    loader = ModuleDescription(
        name="shots", data=(channels,), defines=("load_data",), source_hash="0"
    )
    data = {"name": "shots", "channels": 3, "task": "classification"}
    study = parse_definition(
        definition(dataset=data, network={"type": "cnn"}), modules={"shots": loader}
    )
    spec = resolve(study, {"learning_rate": 0.01})
    assert spec.dataset.options["channels"] == 3
    assert spec.network["channels"] == 16  # its own default

    encode = Option(name="encode", type="string", description="Of the network.", default="a")
    tower = ModuleDescription(
        name="tower", parameters=(encode,), defines=("build",), source_hash="0"
    )
    table = {"name": "csv", "path": "a.csv", "target": -1}
    study = parse_definition(
        definition(dataset=table, network={"type": "tower", "encode": "b"}),
        modules={"tower": tower},
    )
    spec = resolve(study, {"learning_rate": 0.01})
    assert spec.network["encode"] == "b"
    assert spec.dataset.options["encode"] == "one_hot"


@pytest.mark.parametrize(
    ("changes", "loss", "metrics"),
    [
        ({"dataset": {"name": "diabetes"}, "objective": {"metric": "val_r2"}}, "mse",
         ("mse", "mae", "r2")),
        ({"dataset": {"name": "diabetes"}, "objective": {"metric": "val_rmse"},
          "training": {"loss": "huber", "metrics": ["mae"]}}, "huber", ("mae", "rmse")),
        ({"objective": {"metric": "val_loss"}, "training": {"metrics": ["loss", "f1_macro"]}},
         "cross_entropy", ("f1_macro",)),
        ({"objective": [{"metric": "parameter_count"}, {"metric": "val_auroc"}]},
         "cross_entropy", ("accuracy", "auroc")),
        ({"objective": {"metric": "train_loss"}}, "cross_entropy", ("accuracy",)),
    ],
)  # fmt: skip
def test_loss_and_metrics(changes: dict[str, Any], loss: str, metrics: tuple[str, ...]) -> None:
    spec = resolve(parsed(**changes), {"learning_rate": 0.01})
    assert (spec.loss, spec.metrics) == (loss, metrics)


def test_data_with_a_test_part_of_its_own_gives_no_more_rows_to_testing() -> None:
    spec = resolve(parsed(dataset={"name": "fashion_mnist"}), {"learning_rate": 0.01})
    assert spec.dataset.split.test == 0.0
    assert spec.dataset.options == {"path": "fashion-mnist", "standardize": True}


def test_tables_are_classified_or_regressed() -> None:
    table = {"name": "csv", "path": "a.csv", "target": -1}
    assert study_task(parsed(dataset=table)) == "classification"
    numbers = parsed(dataset=table, objective={"metric": "val_mae"})
    assert study_task(numbers) == "regression"
    assert resolve(numbers, {"learning_rate": 0.1}).dataset.split.stratify is False
    declared = {**table, "task": "regression"}
    assert study_task(parsed(dataset=declared, objective={"metric": "val_loss"})) == "regression"


def test_bindings_and_what_may_differ_in_a_group() -> None:
    study = parsed(
        parameters={
            "learning_rate": floats(1e-4, 1e-1),
            "hidden_units": ints(8, 64),
            "batch_size": choice(16, 32),
            "schedule": choice("constant", "cosine"),
            "dropout": floats(0, 0.5),
            "standardize": choice(True, False),
            "seed": ints(0, 9),
            "optimizer": choice("sgd", "adam"),
        }
    )
    assert bindings(study) == {
        "learning_rate": "optimizer",
        "hidden_units": "network",
        "batch_size": "training",
        "schedule": "schedule",
        "dropout": "network",
        "standardize": "dataset",
        "seed": "training",
        "optimizer": "optimizer",
    }
    assert fusing(study) == (
        ["learning_rate", "schedule", "dropout", "seed", "optimizer"],
        ["hidden_units"],
        ["batch_size", "standardize"],
    )


@pytest.mark.parametrize(
    ("changes", "free_on_cpu", "splitting"),
    [
        ({}, ["hidden_units", "norm"], []),
        ({"resources": {"device": "cuda"}}, [], ["hidden_units", "norm"]),
        ({"training": {"epochs": 1, "precision": "bfloat16"}}, [], ["hidden_units", "norm"]),
        ({"training": {"epochs": 1, "optimizer": "lion"}}, ["hidden_units", "norm"], []),
        ({"parameters": {"optimizer": choice("adam", "lion")}}, ["optimizer"], []),
        ({"training": {"epochs": 1, "random_flip": 0.5}}, [], ["hidden_units", "norm"]),
        ({"parameters": {"hidden_units": ints(8, 2048)}}, [], ["hidden_units"]),
        ({"network": {"type": "gru"}, "parameters": {"hidden_units": ints(8, 32)}},
         ["hidden_units"], []),
        ({"network": {"type": "transformer"}, "parameters": {"width": ints(8, 32)}}, [],
         ["width"]),
    ],
)  # fmt: skip
def test_only_native_code_mixes_networks(
    changes: dict[str, Any], free_on_cpu: list[str], splitting: list[str]
) -> None:
    searched = {"hidden_units": ints(8, 32), "norm": choice("none", "batch")}
    found = fusing(parsed(**{"parameters": searched, **changes}))
    assert (found.free_on_cpu, found.splitting) == (free_on_cpu, splitting)


def test_on_a_cpu_alone_there_is_no_difference() -> None:
    searched = {"hidden_units": ints(8, 32), "batch_size": ints(8, 32)}
    study = parsed(parameters=searched, resources={"device": "cpu"})
    assert fusing(study) == (["hidden_units"], [], ["batch_size"])


def test_nothing_fuses_where_that_is_switched_off() -> None:
    study = parsed(
        parameters={"learning_rate": floats(0.1, 0.2)}, training={"epochs": 1, "fuse": False}
    )
    assert fusing(study) == ([], [], ["learning_rate"])


@pytest.mark.parametrize(
    ("sampler", "trials", "given", "expected"),
    [
        ("tpe", 8, None, 4),  # at least 4
        ("tpe", 50, None, 6),  # 50 // 8
        ("tpe", 100, None, 12),
        ("tpe", 10_000, None, 32),  # at most 32
        ("random", 100, None, 64),
        ("random", 100, 3, 3),
        ("tpe", 100, 1, 1),
    ],
)
def test_parallel_trials(sampler: str, trials: int, given: int | None, expected: int) -> None:
    study = parsed(
        sampler={"type": sampler},
        budget={"trials": trials},
        resources={"parallel_trials": given},
    )
    assert parallel_trials(study) == expected
    assert total_slots(study) == trials


def test_most_epochs() -> None:
    assert most_epochs(parsed()) == 20
    assert most_epochs(parsed(training={"epochs": 7})) == 7
    assert most_epochs(parsed(parameters={"epochs": ints(2, 9)})) == 9
    assert most_epochs(parsed(parameters={"epochs": choice(5, 30, 2)})) == 30


def test_sampler_and_pruner_settings_have_defaults() -> None:
    study = parsed(
        sampler={"type": "tpe", "seed": 3, "startup_trials": 7},
        pruner={"type": "median", "warmup_steps": 2},
    )
    assert study.sampler.seed == 3
    assert study.sampler.settings == {"startup_trials": 7, "candidates": 24}
    assert study.pruner.settings == {
        "startup_trials": 5,
        "warmup_steps": 2,
        "interval_steps": 1,
        "min_trials": 1,
    }
    assert parsed(sampler={"type": "random"}).sampler.settings == {}
