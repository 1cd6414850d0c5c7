"""Classes of unequal size: weights, the positive class, a threshold, and the bundle with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from tests.unit.training.builders import dataset, mlp, of, only, run_all, spec, start
from tests.unit.training.bundle.test_raw_files import test_part, trained
from tests.unit.training.data.test_datasets import load
from tuner_service.definition.trial_spec import TrialSpec
from tuner_service.errors import DataError
from workers.training.bundle import predict
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.nets import networks
from workers.training.nets.randomness import epoch_order
from workers.training.steps.groups import group_of, without_dropout

ROWS = 400
X = np.random.default_rng(2).normal(size=(ROWS, 3)).round(4)
KIND = np.where(X[:, 0] + 0.3 * X[:, 1] > 1.2, "churned", "stays")  # about one in eight
METRICS = ("accuracy", "precision", "recall", "f1", "average_precision", "auroc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = (",".join([*map(str, row), kind]) for row, kind in zip(X.tolist(), KIND, strict=True))
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,kind", *lines]))
    return tmp_path


def trial(positive: str | None = "churned", **changes: Any) -> TrialSpec:
    data = dataset("csv", path="t.csv", target="kind", positive=positive)
    fields = {"dataset": data, "metrics": METRICS, "epochs": 4, "batch_size": 32}
    return spec(**{**fields, **changes})


def usual_loop(one: TrialSpec, folder: Path) -> list[float]:
    """Return the training losses of torch's own weighted cross-entropy, rows counted alike."""
    data = load(one.dataset.model_dump(), folder, dtype=torch.float64)
    network = without_dropout(one.network)
    model = networks.build(network, inputs=data.shape, outputs=data.outputs)
    networks.initialise(model, one.seed)
    model.double()
    y = data.train.targets
    weights = torch.tensor(compute_class_weight("balanced", classes=np.array([0, 1]), y=y.numpy()))
    criterion = nn.CrossEntropyLoss(weight=weights, reduction="none")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    curve = []
    for epoch in range(one.epochs):
        total = 0.0
        for rows in epoch_order(one.seed, epoch, len(y)).split(int(one.batch_size)):
            loss = criterion(model(data.train.inputs[rows]), y[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        curve.append(total / len(y))
    return curve


def test_balanced_weights_are_scikit_learns_in_a_usual_loop(folder: Path) -> None:
    one = trial(class_weight="balanced", precision="float64")
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))
    events = run_all(engine, [start(1, one, folder=folder)])
    ours = [event.record["train_loss"] for event in of(events, 1, "reported")]
    assert ours == pytest.approx(usual_loop(one, folder), rel=1e-9)


def weights_of(one: TrialSpec, folder: Path) -> Any:
    binary = one.loss == "binary_cross_entropy"
    data = load(
        one.dataset.model_dump(),
        folder,
        dtype=torch.float32,
        targets="binary" if binary else "classes",
    )
    group = group_of(one, data, device=torch.device("cpu"), group_network=dict)
    assert group.train_loss == f"weighted:{one.loss}"
    targets = data.train.targets.flatten()
    return {int(c): set(group.train_targets[targets == c, -1].tolist()) for c in (0, 1)}


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "binary_cross_entropy"])
def test_weights_by_class_and_of_the_positive_one(folder: Path, loss: str) -> None:
    named = trial(loss=loss, class_weight={"churned": 5.0})
    assert weights_of(named, folder) == {0: {1.0}, 1: {5.0}}  # the positive class is the second
    assert weights_of(trial(loss=loss, pos_weight=5.0), folder) == weights_of(named, folder)
    # Without `positive`, the classes are in alphabetical order.
    assert weights_of(trial(None, loss=loss, pos_weight=5.0), folder) == {0: {1.0}, 1: {5.0}}


def test_a_class_that_is_not_there_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(DataError, match="the class 'Churned', which the data has not"):
        weights_of(trial(class_weight={"Churned": 5.0}), folder)
    with pytest.raises(DataError, match="it is 'yes' and csv has the classes 'churned', 'stays'"):
        load(trial("yes").dataset.model_dump(), folder)


def weighed(folder: Path, *, twice: bool, **changes: Any) -> list[float]:
    """Return training losses where every third row counts double, by its weight or as two rows.

    Other rows fill the validation and the test part.
    """
    lines = ["a,b,c,kind,part,w"]
    for n, (row, kind) in enumerate(zip(X.tolist(), KIND, strict=True)):
        double = n % 3 == 0
        cells = ",".join([*map(str, row), kind])
        lines += [f"{cells},train,{1 + double}"] * (2 if twice and double else 1)
        if n < 9:
            lines += [f"{cells},validation,1", f"{cells},test,1"]
    (folder / "w.csv").write_text("\n".join(lines))
    data = dataset(
        "csv", {"by": "part", "column": "part", "stratify": False}, path="w.csv", target="kind",
        columns=["a", "b", "c"], standardize=False, weight=None if twice else "w",
    )  # fmt: skip
    optimizer = {"type": "sgd", "learning_rate": 0.5}
    one = trial(dataset=data, batch_size="full", precision="float64", optimizer=optimizer,
                **changes)  # fmt: skip
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))
    events = run_all(engine, [start(1, one, folder=folder)])
    return [event.record["train_loss"] for event in of(events, 1, "reported")]


@pytest.mark.parametrize("changes", [{}, {"class_weight": {"churned": 3.0}}])
def test_a_weight_of_two_is_a_row_that_stands_there_twice(
    folder: Path, changes: dict[str, Any]
) -> None:
    by_weight = weighed(folder, twice=False, **changes)
    assert by_weight == pytest.approx(weighed(folder, twice=True, **changes), rel=1e-9)


@pytest.mark.parametrize(
    ("cell", "said"),
    [("-1", "is -1.0, but the rows' weights"), ("much", "text 'much'|holds texts"), ("", "is nan")],
)
def test_a_weight_that_is_none_is_refused(tmp_path: Path, cell: str, said: str) -> None:
    rows = "".join(f"{n},{cell if n == 3 else 1},{'ab'[n % 2]}\n" for n in range(20))
    (tmp_path / "t.csv").write_text(f"x,w,kind\n{rows}")
    with pytest.raises(DataError, match=said):
        load(dataset("csv", path="t.csv", target="kind", weight="w"), tmp_path)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("positive", ["churned", "stays"])
def test_a_bundle_keeps_the_threshold_that_its_record_is_of(
    folder: Path, loss: str, positive: str
) -> None:
    one = trial(positive, threshold="f1", loss=loss, pos_weight=0.2, network=mlp(hidden_units=4))
    record, place = trained(folder, one)
    model = predict.Model.load(place)
    assert model.threshold == record["threshold"] != 0.5
    predicted = model.predict(model.read(folder / "t.csv"))
    rows = test_part(one.dataset.model_dump(), KIND)
    true, ours = KIND[rows] == positive, predicted[rows] == positive
    for name in ("accuracy", "precision", "recall", "f1"):
        expected = getattr(sk, f"{name}_score")(true, ours)
        assert record[f"test_{name}"] == pytest.approx(expected), name
    assert record["test_confusion"] == sk.confusion_matrix(true, ours).tolist()
    scores = model.scores(model.read(folder / "t.csv"))[rows, 1]
    assert record["test_average_precision"] == pytest.approx(
        sk.average_precision_score(true, scores)
    )
    assert np.sum(record["val_confusion"]) == ROWS // 5


def test_folds_add_their_confusion_up(folder: Path) -> None:
    data = dataset("csv", {"folds": 4}, path="t.csv", target="kind", positive="churned")
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))
    events = run_all(engine, [start(1, trial(dataset=data), folder=folder)])
    record = only(events, 1, "finished").record
    assert np.sum(record["val_confusion"], axis=1).tolist() == [
        int(np.sum(kind == KIND)) - counted // 4
        for kind, counted in zip(
            ("stays", "churned"), np.sum(record["test_confusion"], axis=1), strict=True
        )
    ]


def test_early_stopping_and_best_weights_by_any_metric(folder: Path) -> None:
    """The epoch with the least loss is the trial's, whatever the objective says of others."""
    stopping = {"patience": 50, "min_delta": 0.0, "metric": "val_loss", "direction": "minimize"}
    one = trial(epochs=12, early_stopping=stopping, objective=(("val_recall", "maximize"),),
                optimizer={"type": "adam", "learning_rate": 0.3})  # fmt: skip
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))
    events = run_all(engine, [start(1, one, folder=folder)])
    epochs = [event.record for event in of(events, 1, "reported")]
    losses = [record["val_loss"] for record in epochs]
    best = int(np.argmin(losses))
    end = only(events, 1, "finished")
    assert end.record["best_step"] == best + 1 < len(epochs)
    assert end.values == [epochs[best]["val_recall"]]
    first = int(np.argmax([record["val_recall"] for record in epochs]))
    assert first != best  # what the objective alone would keep


def test_patience_counts_the_metric_that_is_named(folder: Path) -> None:
    stopping = {"patience": 2, "min_delta": 10.0, "metric": "train_loss", "direction": "minimize"}
    one = trial(epochs=9, early_stopping=stopping)
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))
    record = only(run_all(engine, [start(1, one, folder=folder)]), 1, "finished").record
    assert record["epochs_run"] == 3


def test_a_threshold_may_be_a_number(folder: Path) -> None:
    record, place = trained(folder, trial(threshold=0.9))
    assert record["threshold"] == predict.Model.load(place).threshold == 0.9
    rare = np.sum(record["val_confusion"], axis=0)[1]
    record, _ = trained(folder, trial(threshold=0.01), name="other")
    assert np.sum(record["val_confusion"], axis=0)[1] > rare
