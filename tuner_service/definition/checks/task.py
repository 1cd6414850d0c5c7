"""Loss, metrics and objectives must fit the task: classes or numbers."""

from collections.abc import Iterable

from tuner_service.definition.catalogue import LOSSES, METRICS, Metric, Task
from tuner_service.definition.checks.context import CheckContext
from tuner_service.definition.faults import Path, suggestion
from tuner_service.definition.options import show
from tuner_service.definition.sections import (
    OBJECTIVES,
    EarlyStopping,
    Objective,
    Training,
    objective_metric,
)
from tuner_service.definition.space import CategoricalParameter
from tuner_service.definition.tasks import task_of

_WHAT: dict[Task, str] = {"classification": "classes", "regression": "numbers"}


def check_task(context: CheckContext) -> None:
    """Loss, metrics and objectives are known, and fit the task as far as that is known."""
    draft = context.draft
    objectives = [one for one in draft.objectives if one is not None]
    task = None
    if draft.dataset is not None and draft.training is not None and context.dataset is not None:
        names = (*(one.metric for one in objectives), *draft.training.metrics)
        task = task_of(draft.dataset, context.dataset.task, draft.training, names)
        if task is None:
            _add_unknown_task(context)
    if draft.training is not None:
        _check_loss(context, draft.training, task)
        for position, name in enumerate(draft.training.metrics):
            _check_metric(context, name, ("training", "metrics", position), task)
        _check_class_weight(context, draft.training, task)
        _check_early_stopping(context, draft.training, task)
        _check_plateau(context, draft.training)
        _check_augmentation(context, draft.training)
    _check_objectives(context, task)
    _check_unvalidated(context)
    if draft.dataset is not None and task == "regression" and draft.dataset.split.stratify:
        detail = "only classes can be stratified; leave stratify out"
        context.faults.add(("dataset", "split", "stratify"), detail, code="does_not_fit")


def _add_unknown_task(context: CheckContext) -> None:
    detail = (
        "task must say whether the target is a class (classification) or a number (regression), "
        "as neither the loss nor a metric tells"
    )
    context.faults.add(("dataset", "task"), detail, code="missing")


def _check_loss(context: CheckContext, training: Training, task: Task | None) -> None:
    name = training.loss
    path: Path = ("training", "loss")
    if name is None:
        _check_smoothing(context, "numbers" if task == "regression" else None)
        return
    if name not in LOSSES:
        context.faults.unknown(path, "loss", name, LOSSES)
        return
    loss = LOSSES[name]
    if task is not None and loss.task != task:
        detail = f"{name} is for {_WHAT[loss.task]}, but the target here is {_WHAT[task]}"
        context.faults.add(path, detail, code="does_not_fit")
    classes = context.dataset.classes if context.dataset else None
    if loss.classes and classes and classes != loss.classes:
        detail = f"{name} takes {loss.classes} classes, but the data has {classes}"
        context.faults.add(path, detail, code="does_not_fit")
    _check_smoothing(context, "numbers" if loss.task == "regression" else name)


def _check_smoothing(context: CheckContext, smoothed: str | None) -> None:
    training = context.draft.training
    fixed = training.label_smoothing if training else None
    if smoothed not in ("numbers", "focal") or not (
        fixed or "label_smoothing" in context.draft.parameters
    ):
        return
    path: Path = ("training", "label_smoothing") if fixed else ("parameters", "label_smoothing")
    said = "numbers have no" if smoothed == "numbers" else "the focal loss has no"
    context.faults.add(path, f"{said} labels to smooth; leave it out", code="does_not_fit")


def _check_metric(context: CheckContext, name: str, path: Path, task: Task | None) -> None:
    metric = METRICS.get(name)
    if name in context.metrics:
        return
    if metric is None:
        known = _near(name, (*context.metrics, *METRICS))
        context.faults.unknown(path, "metric", name, known)
        return
    _check_fit(context, name, metric, path, task=task)


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, narrowed to the bare one when it was given with a part's prefix."""
    names = list(known)
    for prefix in ("val_", "test_", "train_"):
        bare = name.removeprefix(prefix)
        if bare != name and bare in names:
            return [bare]
    return names


def _check_fit(
    context: CheckContext, name: str, metric: Metric, path: Path, *, task: Task | None
) -> None:
    if task is not None and task not in metric.tasks:
        detail = f"{name} is for {_WHAT[metric.tasks[0]]}, but the target here is {_WHAT[task]}"
        context.faults.add(path, detail, code="does_not_fit")
    classes = context.dataset.classes if context.dataset else None
    if classes is not None and metric.classes is not None and classes != metric.classes:
        detail = f"{name} is of two classes, but the data has {classes}; take {name}_macro"
        if name == "average_precision":
            detail = f"{name} is of two classes, but the data has {classes}; take auroc"
        context.faults.add(path, detail, code="does_not_fit")
    if classes is not None and classes <= metric.more_classes_than:
        detail = f"{name} means something with more than {metric.more_classes_than} classes only, "
        context.faults.add(path, f"{detail}but the data has {classes}", code="does_not_fit")


def _check_objectives(context: CheckContext, task: Task | None) -> None:
    objectives = context.draft.objectives
    seen: set[str] = set()
    for position, objective in enumerate(objectives):
        if objective is None:
            continue
        path: Path = (
            ("objective", position, "metric")
            if len(objectives) > 1
            else (
                "objective",
                "metric",
            )
        )
        if objective.metric in seen:
            detail = f"{objective.metric} is an objective already"
            context.faults.add(path, detail, code="conflict")
        seen.add(objective.metric)
        _check_objective(context, objective, path, task)
    _check_pruner(context)


def _check_objective(
    context: CheckContext, objective: Objective, path: Path, task: Task | None
) -> None:
    name = objective.metric
    metric = objective_metric(name)
    if metric is not None:
        _check_fit(context, name, metric, path, task=task)
    elif name.startswith("val_") and name[4:] in context.metrics:
        if "direction" not in objective.model_fields_set:
            detail = f"say whether to maximize or minimize {name}, which only its module knows"
            context.faults.add((*path[:-1], "direction"), detail, code="missing")
    elif name.startswith("test_"):
        detail = f"the test part must not steer the search; use {show('val_' + name[5:])}"
        context.faults.add(path, detail, code="unknown_name")
    else:
        bare = suggestion(name, METRICS)
        known = [f"val_{bare}"] if bare and not name.startswith("val_") else OBJECTIVES
        own = [f"val_{one}" for one in context.metrics]
        context.faults.unknown(path, "objective", name, [*own, *known])


def _check_pruner(context: CheckContext) -> None:
    pruner, objectives = context.draft.pruner, context.draft.objectives
    if pruner is None or not pruner.entry.prunes:
        return
    if len(objectives) > 1:
        detail = "a pruner needs a single objective; remove the pruner or all objectives but one"
        context.faults.add(("pruner", "type"), detail, code="conflict")
    elif objectives and objectives[0] is not None and not _is_per_epoch(objectives[0].metric):
        detail = f"a pruner needs an objective that epochs improve, not {objectives[0].metric}"
        context.faults.add(("pruner", "type"), detail, code="conflict")


def _check_class_weight(context: CheckContext, training: Training, task: Task | None) -> None:
    classes = context.dataset.classes if context.dataset else None
    searched = context.draft.parameters
    given = {
        name: ("training" if getattr(training, name) is not None else "parameters", name)
        for name in ("class_weight", "pos_weight")
        if getattr(training, name) is not None or name in searched
    }
    for name, path in given.items():
        if task == "regression":
            detail = f"{name} is for classes, but the target here is numbers; leave it out"
            context.faults.add(path, detail, code="does_not_fit")
    if training.threshold is not None and (task == "regression" or classes not in (None, 2)):
        target = f"{classes} classes" if classes else "numbers"
        detail = f"threshold is for two classes, but the target here is {target}; leave it out"
        context.faults.add(("training", "threshold"), detail, code="does_not_fit")
    if len(given) == 2:
        detail = "class_weight and pos_weight say the same twice; leave one of them out"
        context.faults.add(given["pos_weight"], detail, code="conflict")
    if "pos_weight" in given and classes not in (None, 2):
        detail = f"pos_weight is for two classes, but the data has {classes}; take class_weight"
        context.faults.add(given["pos_weight"], detail, code="does_not_fit")


def _check_early_stopping(context: CheckContext, training: Training, task: Task | None) -> None:
    stopping = training.early_stopping
    if stopping is not None and stopping.metric is not None:
        _check_watched(context, stopping, stopping.metric, task)
        return
    first = context.draft.objectives[0] if context.draft.objectives else None
    if stopping is not None and stopping.direction is not None:
        detail = "direction is of the metric; name that too, or leave it out"
        context.faults.add(("training", "early_stopping", "direction"), detail, code="conflict")
    if stopping is None or first is None or _is_per_epoch(first.metric):
        return
    detail = f"early stopping needs a first objective that epochs improve, not {first.metric}"
    context.faults.add(("training", "early_stopping"), detail, code="conflict")


def _check_unvalidated(context: CheckContext) -> None:
    """Without a validation part, nothing may ask for it."""
    dataset, training = context.draft.dataset, context.draft.training
    if dataset is None or dataset.split.validation or dataset.split.folds:
        return
    asked: list[tuple[Path, str]] = [
        (("objective",), one.metric)
        for one in context.draft.objectives
        if one is not None and one.metric.startswith("val_")
    ]
    stopping = training.early_stopping if training else None
    if stopping is not None and (stopping.metric or "").startswith("val_"):
        asked.append((("training", "early_stopping", "metric"), str(stopping.metric)))
    if training is not None and isinstance(training.threshold, str):
        asked.append((("training", "threshold"), training.threshold))
    for path, name in asked:
        detail = f"{name} is of the validation part, but `split.validation` is 0; take train_loss"
        if path[-1] == "threshold":
            detail = "a threshold is chosen on the validation part, which is 0; give a number"
        context.faults.add(path, detail, code="conflict")


def _check_watched(
    context: CheckContext, stopping: EarlyStopping, name: str, task: Task | None
) -> None:
    path: Path = ("training", "early_stopping", "metric")
    metric, bare = objective_metric(name), name.removeprefix("val_")
    if metric is not None and _is_per_epoch(name):
        _check_fit(context, name, metric, path, task=task)
    elif bare != name and bare in context.metrics:
        if stopping.direction is None:
            detail = f"say whether to maximize or minimize {name}, which only its module knows"
            context.faults.add((*path[:-1], "direction"), detail, code="missing")
    elif metric is not None:
        detail = f"early stopping needs a metric that epochs improve, not {name}"
        context.faults.add(path, detail, code="conflict")
    else:
        known = [f"val_{one}" for one in (*context.metrics, *METRICS)]
        near = [f"val_{name}"] if f"val_{name}" in known else [*known, "train_loss"]
        context.faults.unknown(path, "metric", name, near)


def _check_plateau(context: CheckContext, training: Training) -> None:
    first = context.draft.objectives[0] if context.draft.objectives else None
    searched = context.draft.parameters.get("schedule")
    choices = searched.choices if isinstance(searched, CategoricalParameter) else ()
    if "plateau" not in (training.schedule, *choices) or first is None:
        return
    if not _is_per_epoch(first.metric):
        path: Path = ("parameters" if choices else "training", "schedule")
        detail = f"plateau needs a first objective that epochs improve, not {first.metric}"
        context.faults.add(path, detail, code="conflict")


def _check_augmentation(context: CheckContext, training: Training) -> None:
    inputs = context.dataset.inputs if context.dataset else None
    if inputs is None or inputs == "image":
        return
    for name in ("random_flip", "random_crop"):
        fixed = getattr(training, name)
        if not fixed and name not in context.draft.parameters:
            continue
        path: Path = ("training", name) if fixed else ("parameters", name)
        detail = f"{name} is for images, but the data is a {inputs}; leave it out"
        context.faults.add(path, detail, code="does_not_fit")


def _is_per_epoch(name: str) -> bool:
    return name not in ("seconds", "parameter_count")
