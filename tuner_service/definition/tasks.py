"""What the target is, classes or numbers: said by the data, the definition, its loss or metrics."""

from collections.abc import Iterable

from tuner_service.definition.catalogue import LOSSES, METRICS, Metric, Task
from tuner_service.definition.sections import Dataset, Training, objective_metric

TASKS: tuple[Task, ...] = ("classification", "regression")


def task_of(
    dataset: Dataset, entry_task: Task | None, training: Training, names: Iterable[str]
) -> Task | None:
    """Return the task: as the data says, else its `task` option, the loss, the metrics."""
    if entry_task is not None:
        return entry_task
    declared = dataset.options.get("task")
    for task in TASKS:
        if declared == task:
            return task
    if training.loss is not None and training.loss in LOSSES:
        return LOSSES[training.loss].task
    tasks = {metric.tasks for name in names if (metric := _metric(name)) is not None}
    certain = {one[0] for one in tasks if len(one) == 1}
    return certain.pop() if len(certain) == 1 else None


def _metric(name: str) -> Metric | None:
    return objective_metric(name) or METRICS.get(name)
