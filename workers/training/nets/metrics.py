"""Metrics of K lanes at once, most of them from three counts by class.

    K   lanes
    R   rows
    C   classes
    T   target columns

Every metric maps a `Scores` to [K] float64. Where a denominator is zero the value is 0, as in
scikit-learn with `zero_division=0`; a class that is neither true nor predicted in any row has no
part in a macro average. A metric that is not defined on the rows is NaN: of one class only there is
no ROC curve, of one row no spread.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tuner_service.definition.catalogue import METRICS, TOP
from tuner_service.errors import DataError

POSITIVE = 1
"""Of two classes; the data puts the one that the study names there."""


class Scores:
    """Outputs of K lanes on the same rows, and what metrics share of them, computed once.

    Args:
        outputs: [K, R, C] logits, [K, R, 1] binary logits, or [K, R, T] predictions.
        targets: [R] int64 classes, [R, 1] zeros and ones, or [R, T] numbers.
        binary: Whether outputs are single logits.
        thresholds: [K] From which probability on the positive of two classes is predicted; None:
            where it is the likelier. Empty: none has one.
    """

    def __init__(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        binary: bool = False,
        thresholds: Sequence[float | None] = (),
    ) -> None:
        if binary:
            # softmax of (0, z) is sigmoid(z): from here on a two-class problem
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=-1)
            targets = targets.squeeze(-1).long()
        self.outputs = outputs
        self.targets = targets
        self._thresholds = thresholds

    @cached_property
    def guesses(self) -> Tensor:
        """[K, R] the class predicted for each row."""
        likelier = self.outputs.argmax(dim=-1)
        if not any(one is not None for one in self._thresholds):
            return likelier
        given = [math.nan if one is None else one for one in self._thresholds]
        cut = torch.tensor(given, dtype=torch.float64, device=likelier.device).unsqueeze(-1)
        at_least = self.outputs.double().softmax(dim=-1)[..., POSITIVE] >= cut
        return torch.where(cut.isnan(), likelier, at_least.long())

    def confusion(self) -> Tensor:
        """Return [K, C, C] counts, by true class, then by predicted class."""
        classes = self.outputs.shape[-1]
        # A pair of classes as one number, true·C + guess, in [K, R].
        counts = _counts(self.targets * classes + self.guesses, classes * classes)
        return counts.view(-1, classes, classes)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """[K, R, C] float64."""
        return self.outputs.double().log_softmax(dim=-1)

    @cached_property
    def hits(self) -> Tensor:
        """[K, C] rows of each class that were predicted as it."""
        right = self.guesses == self.targets
        classes = self.outputs.shape[-1]
        # Wrong rows are counted as of one class more, which is cut off.
        return _counts(self.targets.where(right, classes), classes + 1)[:, :-1].double()

    @cached_property
    def support(self) -> Tensor:
        """[1, C] rows of each class."""
        return _counts(self.targets[None], self.outputs.shape[-1]).double()

    @cached_property
    def predicted(self) -> Tensor:
        """[K, C] rows predicted as each class."""
        return _counts(self.guesses, self.outputs.shape[-1]).double()

    @cached_property
    def errors(self) -> Tensor:
        """[K, R, T] float64 residuals."""
        return self.outputs.double() - self.targets.double()


def _counts(numbers: Tensor, most: int) -> Tensor:
    """Return how often each number below `most` stands in each lane: [K, R] -> [K, most]."""
    lanes = len(numbers)
    # One bincount for all lanes: each lane's numbers are moved to a range of their own.
    first = torch.arange(lanes, device=numbers.device).unsqueeze(-1) * most  # [K, 1]
    return torch.bincount((first + numbers).flatten(), minlength=lanes * most).view(lanes, most)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # `where` computes both sides: the clamp keeps 0/0 out of the one that is not taken.
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1e-300), 0.0)


def accuracy(scores: Scores) -> Tensor:
    """Return the share of rows predicted right."""
    return _ratio(scores.hits.sum(-1), scores.support.sum(-1))


def balanced_accuracy(scores: Scores) -> Tensor:
    """Return the mean recall over the classes that occur."""
    present = (scores.support > 0).double()
    return _ratio((_recalls(scores) * present).sum(-1), present.sum(-1))


def _precisions(scores: Scores) -> Tensor:
    return _ratio(scores.hits, scores.predicted)


def _recalls(scores: Scores) -> Tensor:
    return _ratio(scores.hits, scores.support)


def _f1s(scores: Scores) -> Tensor:
    # 2·p·r / (p + r) with p = hits/predicted and r = hits/support, without their own zeros.
    return _ratio(2 * scores.hits, scores.support + scores.predicted)


PerClass = Callable[[Scores], Tensor]


def _macro(per_class: PerClass) -> "Metric":
    def metric(scores: Scores) -> Tensor:
        present = ((scores.support + scores.predicted) > 0).double()
        return _ratio((per_class(scores) * present).sum(-1), present.sum(-1))

    return metric


def _weighted(per_class: PerClass) -> "Metric":
    def metric(scores: Scores) -> Tensor:
        return _ratio((per_class(scores) * scores.support).sum(-1), scores.support.sum(-1))

    return metric


def _top(k: int) -> "Metric":
    def metric(scores: Scores) -> Tensor:
        outputs, targets = scores.outputs, scores.targets.unsqueeze(-1)  # [K, R, C], [R, 1]
        true = outputs.gather(-1, targets.expand(outputs.shape[0], -1, 1))  # [K, R, 1]
        # By counting rather than `topk`, so that ties go to the lower class on every device.
        lower = torch.arange(outputs.shape[-1], device=outputs.device) < targets
        ahead = (outputs > true) | ((outputs == true) & lower)
        return (ahead.sum(-1) < k).double().mean(-1)

    return metric


def auroc(scores: Scores) -> Tensor:
    """Return the area under the ROC curve: of class 1 for two classes, else the mean one-vs-rest.

    Computed by ranks (Mann–Whitney), ties at their middle rank. Classes without rows, or with all
    rows, have no curve and no part in the mean; NaN where no class has one.
    """
    classes = scores.outputs.shape[-1]
    chosen = [1] if classes == 2 else range(classes)
    areas = [_area(scores, c) for c in chosen if _has_curve(scores.targets == c)]
    if not areas:
        return scores.outputs.new_full(scores.outputs.shape[:1], math.nan, dtype=torch.float64)
    return torch.stack(areas).mean(0)


def _has_curve(positive: Tensor) -> bool:
    return bool(positive.any()) and not bool(positive.all())


def _area(scores: Scores, cls: int) -> Tensor:
    values = scores.log_probabilities[..., cls].contiguous()  # [K, R]
    positive = scores.targets == cls  # [R]
    ordered = values.sort(dim=-1).values  # [K, R]
    # Rows below, and rows up to, each value: equal values share the middle of their ranks.
    low = torch.searchsorted(ordered, values)
    high = torch.searchsorted(ordered, values, right=True)
    ranks = (low + high + 1).double() / 2  # [K, R], from 1
    n = int(positive.sum())
    # Mann–Whitney's U: pairs of a positive and a negative row in the right order, [K].
    total = ranks[:, positive].sum(-1) - n * (n + 1) / 2
    return total / (n * (positive.numel() - n))


def _of_positive(per_class: PerClass) -> "Metric":
    def metric(scores: Scores) -> Tensor:
        return per_class(scores)[..., POSITIVE]

    return metric


def average_precision(scores: Scores) -> Tensor:
    """Return Σ (Rᵢ - Rᵢ₋₁)·Pᵢ over the thresholds i, without interpolation; NaN without positives.

    Every positive row adds the precision at its own score as the threshold: equal scores share one.
    """
    values = scores.log_probabilities[..., POSITIVE].contiguous()  # [K, R]
    positive = scores.targets == POSITIVE  # [R]
    if not bool(positive.any()):
        return values.new_full(values.shape[:1], math.nan)
    own = values[:, positive].contiguous()  # [K, P]
    at_least = values.shape[-1] - torch.searchsorted(values.sort(dim=-1).values, own)
    hits = own.shape[-1] - torch.searchsorted(own.sort(dim=-1).values, own)
    return (hits.double() / at_least).mean(-1)


def log_loss(scores: Scores) -> Tensor:
    """Return the mean of -log p(true class)."""
    index = scores.targets.view(1, -1, 1).expand(scores.outputs.shape[0], -1, 1)
    return -scores.log_probabilities.gather(-1, index).squeeze(-1).mean(-1)


def mean_squared_error(scores: Scores) -> Tensor:
    """Return the mean squared error."""
    return scores.errors.square().mean((-2, -1))


def root_mean_squared_error(scores: Scores) -> Tensor:
    """Return the square root of the mean squared error."""
    return mean_squared_error(scores).sqrt()


def mean_absolute_error(scores: Scores) -> Tensor:
    """Return the mean absolute error."""
    return scores.errors.abs().mean((-2, -1))


def r2(scores: Scores) -> Tensor:
    """Return 1 - SS_res/SS_tot, averaged over target columns; a constant target scores 1 or 0.

    NaN for a single row.
    """
    if len(scores.targets) < 2:
        return scores.outputs.new_full(scores.outputs.shape[:1], math.nan, dtype=torch.float64)
    # As distances from one of them: the rounded mean of a constant column may lie beside it.
    targets = scores.targets.double() - scores.targets[:1].double()
    residual = scores.errors.square().sum(-2)  # [K, T]
    total = (targets - targets.mean(0)).square().sum(0)  # [T]
    constant = torch.where(residual == 0, 1.0, 0.0).to(residual)
    return torch.where(total > 0, 1 - residual / total.clamp(min=1e-300), constant).mean(-1)


def check_defined(names: Iterable[str], targets: Tensor, *, classes: Sequence[str] | None) -> None:
    """Refuse objectives that are not defined on the validation part.

    Args:
        names: Of metrics, without prefix.
        targets: [R] classes, [R, 1] zeros and ones, or [R, T] numbers.
        classes: Labels by class number; None for numbers.

    Raises:
        DataError: One is not defined on these rows.
    """
    wanted = set(names)
    if "average_precision" in wanted and classes is not None and not bool((targets == 1).any()):
        raise DataError(
            f"the validation part has no row of the positive class ({classes[POSITIVE]!r}); "
            "val_average_precision is not defined: take a larger validation part, fewer folds, or "
            "another objective"
        )
    if "auroc" in wanted and classes is not None:
        present = sorted(set(targets.flatten().long().tolist()))
        if len(present) < 2:
            raise DataError(
                f"the validation part has rows of one class only ({classes[present[0]]!r}); "
                "val_auroc is not defined: take a larger validation part, fewer folds, or another "
                "objective"
            )
    if "r2" in wanted and len(targets) < 2:
        raise DataError(
            "the validation part has one row only; val_r2 is not defined: take a larger validation "
            "part, fewer folds, or another objective"
        )


Metric = Callable[[Scores], Tensor]
UserMetric = Callable[[Tensor, Tensor], object]

CLASS_METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "precision_macro": _macro(_precisions),
    "precision_micro": accuracy,
    "precision_weighted": _weighted(_precisions),
    "recall_macro": _macro(_recalls),
    "recall_micro": accuracy,
    "recall_weighted": _weighted(_recalls),
    "f1_macro": _macro(_f1s),
    "f1_micro": accuracy,
    "f1_weighted": _weighted(_f1s),
    **{f"top_{k}_accuracy": _top(k) for k in TOP},
    "precision": _of_positive(_precisions),
    "recall": _of_positive(_recalls),
    "f1": _of_positive(_f1s),
    "average_precision": average_precision,
    "auroc": auroc,
    "log_loss": log_loss,
}

NUMBER_METRICS: dict[str, Metric] = {
    "mse": mean_squared_error,
    "rmse": root_mean_squared_error,
    "mae": mean_absolute_error,
    "r2": r2,
}


@dataclass(frozen=True, slots=True)
class MetricSet:
    """The metrics of one trial, by name, checked against its kind of target.

    Attributes:
        user: Those of the network's module, which know no lanes.
    """

    names: tuple[str, ...]
    numbers: bool
    user: tuple[tuple[str, UserMetric], ...] = ()

    def compute_user(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics that a module brings, of one lane's outputs [R, …].

        Raises:
            TypeError: One of them returned no number.
        """
        return {name: _number(name, metric(outputs, targets)) for name, metric in self.user}

    def compute(self, scores: Scores) -> dict[str, list[float]]:
        """Return each metric as K floats; one transfer from the device for all of them."""
        if not self.names:
            return {}
        table = NUMBER_METRICS if self.numbers else CLASS_METRICS
        rows = torch.stack([table[name](scores) for name in self.names]).tolist()
        return dict(zip(self.names, rows, strict=True))


def metric_set(
    names: Iterable[str],
    *,
    numbers: bool,
    user: Mapping[str, UserMetric] | None = None,
    classes: int | None = None,
) -> MetricSet:
    """Return the metrics of these names.

    Args:
        classes: How many the data has; None: unknown, or numbers.
        user: Those that the network's module brings.

    Raises:
        DataError: a metric does not fit the targets.
    """
    table, other = (NUMBER_METRICS, "class") if numbers else (CLASS_METRICS, "number")
    user = user or {}
    measured = [name for name in names if name != "loss"]  # always there, by the loss itself
    wanted = tuple(name for name in measured if name not in user)
    for name in wanted:
        if name not in table:
            raise DataError(
                f"metric {name!r} is for {other} targets, which this data has not; "
                f"choose among {', '.join(table)}"
            )
        if classes is not None and METRICS[name].classes not in (None, classes):
            raise DataError(
                f"metric {name!r} is of the positive one of two classes, but the data has "
                f"{classes}; take a metric of all classes, such as f1_macro or auroc"
            )
    theirs = tuple((name, user[name]) for name in measured if name in user)
    return MetricSet(wanted, numbers, theirs)


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of the shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise TypeError(
            f"the metric {name} must return one number, but got {type(value).__name__}{shape}"
        ) from error
