"""Metrics against scikit-learn's, three lanes at once."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from tuner_service.definition.catalogue import TOP
from tuner_service.errors import DataError
from workers.training.data import Part
from workers.training.nets.metrics import (
    CLASS_METRICS,
    NUMBER_METRICS,
    Scores,
    metric_set,
)
from workers.training.nets.thresholds import THRESHOLD_SCORES, best_threshold
from workers.training.trials.evaluation import confusion

LANES, ROWS = 3, 61
Labels = Any

Reference = Callable[[Any, Any, Any, int], float]


def averaged(function: Callable[..., float], average: str) -> Reference:
    return lambda true, predicted, p, classes: function(
        true, predicted, average=average, zero_division=0
    )


def top(k: int) -> Reference:
    def score(true: Any, predicted: Any, p: Any, classes: int) -> float:
        return float(
            np.mean(
                [t in np.argsort(-row, kind="stable")[:k] for t, row in zip(true, p, strict=True)]
            )
        )

    return score


def auroc(true: Any, predicted: Any, p: Any, classes: int) -> float:
    if classes == 2:
        return float(sk.roc_auc_score(true, p[:, 1]))
    return float(sk.roc_auc_score(true, p, multi_class="ovr"))


def of_positive(function: Callable[..., float]) -> Reference:
    return lambda true, predicted, p, classes: function(
        true, predicted, labels=[1], average="macro", zero_division=0
    )


REFERENCES: dict[str, Reference] = {
    "accuracy": lambda true, predicted, p, classes: sk.accuracy_score(true, predicted),
    "balanced_accuracy": lambda true, predicted, p, c: sk.balanced_accuracy_score(true, predicted),
    **{
        f"{name}_{average}": averaged(function, average)
        for name, function in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        )
        for average in ("macro", "micro", "weighted")
    },
    **{f"top_{k}_accuracy": top(k) for k in TOP},
    "precision": of_positive(sk.precision_score),
    "recall": of_positive(sk.recall_score),
    "f1": of_positive(sk.f1_score),
    "average_precision": lambda true, predicted, p, classes: sk.average_precision_score(
        true == 1, p[:, 1]
    ),
    "auroc": auroc,
    "log_loss": lambda true, predicted, p, classes: sk.log_loss(true, p, labels=range(classes)),
}


def logits(classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return [K, R, C] outputs that are better than chance, and [R] targets with every class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (ROWS,), generator=generator)
    targets[:classes] = torch.arange(classes)
    outputs = torch.randn(LANES, ROWS, classes, generator=generator)
    return outputs + 1.5 * torch.nn.functional.one_hot(targets, classes), targets


def test_every_class_metric_has_a_reference() -> None:
    assert set(REFERENCES) == set(CLASS_METRICS)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("name", CLASS_METRICS)
def test_class_metric_equals_scikit_learns(name: str, classes: int) -> None:
    outputs, targets = logits(classes, seed=classes)
    ours = metric_set([name], numbers=False).compute(Scores(outputs, targets))[name]
    for lane in range(LANES):
        p = outputs[lane].double().softmax(-1).numpy()
        predicted = outputs[lane].argmax(-1).numpy()
        expected = REFERENCES[name](targets.numpy(), predicted, p, classes)
        assert ours[lane] == pytest.approx(expected, abs=1e-12), lane


@pytest.mark.parametrize("name", [n for n in CLASS_METRICS if n not in ("auroc", "log_loss")])
def test_classes_that_are_never_true_or_never_predicted(name: str) -> None:
    outputs, targets = logits(6, seed=1)
    targets = targets.clamp(max=3)  # 4 and 5 are never true
    outputs[:, :, 5] = -100.0  # 5 is never predicted, so it has no part in an average
    outputs[0, :, :3] = -100.0  # one lane predicts 3 and 4 only
    ours = metric_set([name], numbers=False).compute(Scores(outputs, targets))[name]
    for lane in range(LANES):
        predicted = outputs[lane].argmax(-1).numpy()
        p = outputs[lane].double().softmax(-1).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, on classes that are not in y_true
            expected = REFERENCES[name](targets.numpy(), predicted, p, 6)
        assert ours[lane] == pytest.approx(expected, abs=1e-12), lane


def test_auroc_with_ties_and_missing_classes() -> None:
    outputs, targets = logits(4, seed=5)
    outputs = outputs.round()
    targets = targets.clamp(max=2)
    ours = metric_set(["auroc"], numbers=False).compute(Scores(outputs, targets))["auroc"]
    for lane in range(LANES):
        p = outputs[lane].double().log_softmax(-1).numpy()
        areas = [sk.roc_auc_score(targets.numpy() == c, p[:, c]) for c in range(3)]
        assert ours[lane] == pytest.approx(np.mean(areas), abs=1e-12)


def test_average_precision_with_ties_equals_scikit_learns() -> None:
    outputs, targets = logits(2, seed=5)
    outputs = outputs.round()
    name = "average_precision"
    ours = metric_set([name], numbers=False).compute(Scores(outputs, targets))[name]
    for lane in range(LANES):
        p = outputs[lane].double().softmax(-1).numpy()[:, 1].round(12)
        assert ours[lane] == pytest.approx(sk.average_precision_score(targets.numpy(), p))
    none = Scores(outputs, torch.zeros(ROWS, dtype=torch.int64))
    assert np.isnan(metric_set([name], numbers=False).compute(none)[name]).all()


@pytest.mark.parametrize("name", ["precision", "recall", "f1", "average_precision"])
def test_a_metric_of_the_positive_class_is_refused_for_more_than_two(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' is of the positive one of two classes"):
        metric_set([name], numbers=False, classes=3)


@pytest.mark.parametrize("metric", THRESHOLD_SCORES)
@pytest.mark.parametrize("columns", [1, 2])
def test_the_threshold_is_the_best_that_scikit_learn_finds(metric: str, columns: int) -> None:
    outputs, targets = logits(2, seed=3)
    one = outputs[0] + torch.tensor([1.5, 0.0])  # the positive class is rarely the likelier
    p = one.double().softmax(-1)[:, 1].numpy()
    given = one if columns == 2 else (one[:, 1:] - one[:, :1])
    cut = best_threshold(given, targets if columns == 2 else targets[:, None].float(), metric)
    function = getattr(sk, f"{metric}_score")
    reached = function(targets.numpy(), p >= cut)
    tried = [function(targets.numpy(), p >= t) for t in [0.5, *np.unique(p)]]
    assert reached == pytest.approx(max(tried))
    assert reached > tried[0]
    lanes = Scores(torch.stack([one, one]), targets, thresholds=[cut, None])
    both = metric_set([metric], numbers=False).compute(lanes)[metric]
    assert both == [pytest.approx(reached), pytest.approx(tried[0])]


def test_auroc_of_one_class_only_is_no_number() -> None:
    outputs = torch.randn(LANES, ROWS, 2, generator=torch.Generator().manual_seed(0))
    scores = Scores(outputs, torch.zeros(ROWS, dtype=torch.int64))
    assert np.isnan(metric_set(["auroc"], numbers=False).compute(scores)["auroc"]).all()


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_one_binary_logit_scores_like_two(name: str) -> None:
    outputs, targets = logits(2, seed=9)
    logit = outputs[..., 1:] - outputs[..., :1]
    single = Scores(logit, targets[:, None].float(), binary=True)
    metrics = metric_set([name], numbers=False)
    expected = metrics.compute(Scores(outputs, targets))[name]
    assert metrics.compute(single)[name] == pytest.approx(expected, abs=1e-6)


NUMBER_REFERENCES: dict[str, Callable[[Any, Any], float]] = {
    "mse": sk.mean_squared_error,
    "rmse": lambda true, p: np.sqrt(sk.mean_squared_error(true, p)),
    "mae": sk.mean_absolute_error,
    "r2": sk.r2_score,
}


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("name", NUMBER_REFERENCES)
def test_number_metric_equals_scikit_learns(name: str, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    targets = torch.randn(ROWS, columns, generator=generator) * 10 + 100
    outputs = targets + torch.randn(LANES, ROWS, columns, generator=generator)
    ours = metric_set([name], numbers=True).compute(Scores(outputs, targets))[name]
    for lane in range(LANES):
        expected = NUMBER_REFERENCES[name](targets.double().numpy(), outputs[lane].double().numpy())
        assert ours[lane] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("error", [0.0, 1.0])
@pytest.mark.parametrize("constant", [4.0, 0.1])  # a sum of 0.1s is rounded
def test_r2_of_a_constant_target_is_one_or_zero(constant: float, error: float) -> None:
    targets = torch.full((7, 1), constant, dtype=torch.float64)
    ours = metric_set(["r2"], numbers=True).compute(Scores(targets[None] + error, targets))["r2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours == [sk.r2_score(np.full(7, 4.0), np.full(7, 4.0) + error)]


def test_every_number_metric_has_a_reference() -> None:
    assert set(NUMBER_REFERENCES) == set(NUMBER_METRICS)


@pytest.mark.parametrize(("name", "numbers"), [("accuracy", True), ("mse", False)])
def test_a_metric_of_the_other_kind_is_refused_by_name(name: str, numbers: bool) -> None:
    with pytest.raises(DataError, match=name):
        metric_set([name], numbers=numbers)


def test_confusion_of_the_test_part_equals_scikit_learns() -> None:
    outputs, targets = logits(6, seed=2)
    counts = confusion(outputs, Part(outputs[0], targets), loss="cross_entropy")
    assert counts is not None
    for lane in range(LANES):
        expected = sk.confusion_matrix(targets.numpy(), outputs[lane].argmax(-1).numpy())
        assert counts[lane] == expected.tolist()
    wide = torch.zeros(1, 5, 51)
    part = Part(wide[0], torch.zeros(5, dtype=torch.int64))
    assert confusion(wide, part, loss="cross_entropy") is None


def test_what_metrics_cost_grows_with_the_classes_not_with_their_pairs() -> None:
    outputs = torch.zeros(1, 4, 200_000)  # pairs would take 320 GB
    outputs[0, :, 7] = 1.0
    targets = torch.tensor([7, 7, 199_999, 0])
    names = ["accuracy", "balanced_accuracy", "f1_macro", "precision_weighted"]
    ours = metric_set(names, numbers=False).compute(Scores(outputs, targets))
    assert [ours[name][0] for name in names] == pytest.approx([0.5, 1 / 3, 2 / 9, 1 / 4])
