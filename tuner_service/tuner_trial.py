"""What a program may say to its trial; without effect where there is none. Copy it freely.

    import tuner_trial

    lr = tuner_trial.parameters().get("lr", 1e-3)
    tuner_trial.report(epoch, val_acc=accuracy)

In a trial this module can be imported by every Python program. The standard library only.
"""

import importlib
import json
import os
import signal
from typing import Any

_REPORTS = os.environ.get("TUNER_REPORTS")


def in_trial() -> bool:
    """Return whether this process belongs to a trial."""
    return _REPORTS is not None


def parameters() -> dict[str, Any]:
    """Return the trial's parameters; none where there is no trial."""
    found = json.loads(os.environ.get("TUNER_PARAMETERS", "{}"))
    return dict(found)


def checkpoint_dir() -> str | None:
    """Return the folder that the next attempt finds again; None where there is no trial."""
    return os.environ.get("TUNER_CHECKPOINT_DIR")


def report(step: int, **metrics: float) -> None:
    """Report numbers of a step, such as an epoch; what is no number is refused.

    Raises:
        TypeError: A metric is no number.
    """
    if _REPORTS is None or os.environ.get("RANK", "0") != "0":  # of several processes, the first
        return
    said: dict[str, float] = {"step": int(step)}
    for name, value in metrics.items():
        try:
            said[name] = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be a number, but got {value!r}") from error
    # One write of one line: several processes may share the file.
    with open(_REPORTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")


def exit_on_stop() -> None:
    """Have this process end by `SystemExit` where the trial is stopped, so that it can save."""

    def leave(*_: object) -> None:
        raise SystemExit(0)

    if in_trial():
        signal.signal(signal.SIGTERM, leave)


def lightning_callback() -> Any:
    """Return a callback for Lightning's Trainer, which reports after each validation."""
    base = importlib.import_module("lightning.pytorch.callbacks").Callback

    def on_validation_end(_: Any, trainer: Any, module: Any) -> None:
        del module
        if not trainer.sanity_checking:
            report(trainer.current_epoch, **_numbers(trainer.callback_metrics))

    return type("Report", (base,), {"on_validation_end": on_validation_end})()


def transformers_callback() -> Any:
    """Return a callback for Hugging Face's Trainer, which reports after each evaluation."""
    base = importlib.import_module("transformers").TrainerCallback

    def on_evaluate(
        _: Any, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any
    ) -> None:
        del args, control, more
        report(state.global_step, **_numbers(metrics or {}))

    return type("Report", (base,), {"on_evaluate": on_evaluate})()


def _numbers(metrics: Any) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            continue
    return found
