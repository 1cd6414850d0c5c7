"""The metrics, and what else can be an objective."""

from tuner_service.definition.catalogue.entries import Metric, by_name


def _class_metric(name: str, description: str, more_classes_than: int = 1) -> Metric:
    return Metric(
        name=name,
        description=description,
        tasks=("classification",),
        direction="maximize",
        more_classes_than=more_classes_than,
    )


TOP = (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50, 100)
"""The k of `top_k_accuracy`."""

_AVERAGES = {
    "macro": "mean over classes",
    "micro": "over all rows",
    "weighted": "mean over classes weighted by their rows",
}

METRICS = by_name(
    Metric(
        name="loss",
        description="The training loss without penalties; always recorded.",
        tasks=("classification", "regression"),
        direction="minimize",
    ),
    _class_metric("accuracy", "Share of rows whose class is predicted."),
    _class_metric("balanced_accuracy", "Recall, mean over the classes that occur."),
    *(
        _class_metric(f"top_{k}_accuracy", f"Share of rows whose class is among the best {k}.", k)
        for k in TOP
    ),
    *(
        _class_metric(f"{name}_{average}", f"{title}, {meaning}.")
        for name, title in (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))
        for average, meaning in _AVERAGES.items()
    ),
    *(
        Metric(
            name=name,
            description=f"{title} of the positive class; two classes only.",
            tasks=("classification",),
            direction="maximize",
            classes=2,
        )
        for name, title in (
            ("precision", "Precision"),
            ("recall", "Recall"),
            ("f1", "F1"),
            ("average_precision", "Area under the precision-recall curve, as steps,"),
        )
    ),
    _class_metric("auroc", "Area under the ROC curve; mean of one-vs-rest beyond two classes."),
    Metric(
        name="log_loss",
        description="Mean of -log p(true class).",
        tasks=("classification",),
        direction="minimize",
    ),
    Metric(
        name="mse",
        description="Mean squared error, in the target's own unit.",
        tasks=("regression",),
        direction="minimize",
    ),
    Metric(
        name="rmse",
        description="Root of the mean squared error, in the target's own unit.",
        tasks=("regression",),
        direction="minimize",
    ),
    Metric(
        name="mae",
        description="Mean absolute error, in the target's own unit.",
        tasks=("regression",),
        direction="minimize",
    ),
    Metric(
        name="r2",
        description="Coefficient of determination.",
        tasks=("regression",),
        direction="maximize",
    ),
)

RECORDS = by_name(
    Metric(
        name="train_loss",
        description="Mean loss over the epoch's training rows.",
        tasks=("classification", "regression"),
        direction="minimize",
    ),
    Metric(
        name="seconds",
        description="Wall time of the trial's training.",
        tasks=("classification", "regression"),
        direction="minimize",
    ),
    Metric(
        name="parameter_count",
        description="Number of trained parameters.",
        tasks=("classification", "regression"),
        direction="minimize",
    ),
)
"""Objectives beside the `val_` metrics. Only `train_loss` changes from epoch to epoch."""
