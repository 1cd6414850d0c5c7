"""What a definition says that is allowed and yet likely a mistake."""

from collections.abc import Iterator

from tuner_service.definition.binding import KINDS
from tuner_service.definition.plan import most_epochs
from tuner_service.definition.sections import objective_metric
from tuner_service.definition.space import CategoricalParameter
from tuner_service.definition.study import StudyDefinition


def warnings_of(definition: StudyDefinition) -> list[str]:
    """Return one sentence for each thing that a second look might be worth."""
    return [
        *_directions(definition),
        *_partly_known_options(definition),
        *_epochs(definition),
        *_times(definition),
    ]


def _directions(definition: StudyDefinition) -> Iterator[str]:
    for objective in definition.objective:
        metric = objective_metric(objective.metric)
        if metric is not None and metric.direction != objective.direction:
            yield (
                f"the study will {objective.direction} {objective.metric}, "
                f"which is better the other way"
            )


def _partly_known_options(definition: StudyDefinition) -> Iterator[str]:
    for group, entries in KINDS.items():
        searched = definition.parameters.get(group)
        kinds = searched.choices if isinstance(searched, CategoricalParameter) else ()
        for name in definition.training.options:
            owners = [kind for kind, entry in entries.items() if entry.option(name)]
            without = [str(kind) for kind in kinds if kind not in owners]
            if owners and without:
                yield f"{name} is fixed in training, but has no effect with {', '.join(without)}"


def _epochs(definition: StudyDefinition) -> Iterator[str]:
    epochs, training = most_epochs(definition), definition.training
    stopping = training.early_stopping
    if stopping is not None and stopping.patience >= epochs:
        yield f"early stopping waits {stopping.patience} epochs, but a trial has only {epochs}"
    warmup = training.options.get("warmup_epochs", 0)
    if warmup >= epochs:
        yield f"the warm-up takes {warmup} epochs, but a trial has only {epochs}"


def _times(definition: StudyDefinition) -> Iterator[str]:
    budget = definition.budget
    if budget.timeout and budget.trial_timeout and budget.trial_timeout > budget.timeout:
        yield "trial_timeout is longer than the study's timeout, so it has no effect"
