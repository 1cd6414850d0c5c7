"""The study that trains one model on all rows, with what another study has found."""

from collections.abc import Mapping
from typing import Any

from tuner_service.definition.options import Scalar
from tuner_service.definition.study import StudyDefinition
from tuner_service.definition.trial_spec import DEFAULT_LOSS, study_task
from tuner_service.errors import ConflictError

LONGEST_NAME = 128
SUFFIX = "-refit"


def refit_of(
    definition: StudyDefinition, parameters: Mapping[str, Scalar], record: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the definition of a study of one trial: these parameters, on all rows.

    It has no validation part, so nothing is left that looks at one: no early stopping, no pruner,
    no threshold that is chosen anew. A test part that is a file of its own stays what it is.

    Args:
        definition: Of the study that searched.
        parameters: Of the trial whose model is wanted.
        record: Of that trial: the epochs that it took, and its threshold.

    Raises:
        ConflictError: The study is a training loop, or the trial has no epoch.
    """
    if definition.dataset is None:
        raise ConflictError(
            f"study {definition.name!r} is a training loop, which divides its data itself; train "
            "its best parameters on all of it there"
        )
    stopping = definition.training.early_stopping is not None
    epochs = record.get("best_step" if stopping else "epochs_run")
    if not isinstance(epochs, int) or epochs < 1:
        raise ConflictError("the trial has not trained an epoch, so there is nothing to refit")
    plain = definition.model_dump(mode="json")
    split = {key: value for key, value in plain["dataset"].get("split", {}).items() if key in KEPT}
    point, space = dict(parameters), dict(plain["parameters"])
    training = {k: v for k, v in plain["training"].items() if k != "early_stopping"}
    if "epochs" in space:
        space["epochs"], point["epochs"] = {"type": "categorical", "choices": [epochs]}, epochs
    else:
        training["epochs"] = epochs
    # The objective said whether targets are classes or numbers, and it is another one now.
    training.setdefault("loss", DEFAULT_LOSS[study_task(definition)])
    if training.get("threshold") is not None:
        training["threshold"] = record.get("threshold")
    return {
        "name": f"{definition.name[: LONGEST_NAME - len(SUFFIX)]}{SUFFIX}",
        "dataset": {**plain["dataset"], "split": {**split, "validation": 0, "test": 0}},
        "network": plain["network"],
        "objective": {"metric": "train_loss"},
        "parameters": space,
        "sampler": {"type": "random", "seed": 0},
        "training": {**training, "keep_models": 1},
        "budget": {"trials": 1},
        "resources": plain.get("resources", {}),
        "enqueue": [point],
        "tags": plain.get("tags", {}),
        "priority": definition.priority,
    }


KEPT = ("order", "group", "part")
"""Of the split: the column stays none of the inputs."""
