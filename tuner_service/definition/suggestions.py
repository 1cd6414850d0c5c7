"""Suggestions for names that are not known: "did you mean"."""

import difflib
from collections.abc import Iterable, Mapping

_ALIASES = {
    "acc": "accuracy",
    "batch": "batch_size",
    "bs": "batch_size",
    "betas": "beta1",
    "bayesian": "tpe",
    "ce": "cross_entropy",
    "clip": "gradient_clip",
    "crossentropy": "cross_entropy",
    "decay": "weight_decay",
    "dropout_rate": "dropout",
    "fashion": "fashion_mnist",
    "grad_clip": "gradient_clip",
    "l2": "weight_decay",
    "layers": "hidden_layers",
    "lr": "learning_rate",
    "lr_schedule": "schedule",
    "lr_scheduler": "schedule",
    "max_epochs": "epochs",
    "mean_squared_error": "mse",
    "n_epochs": "epochs",
    "n_trials": "trials",
    "num_epochs": "epochs",
    "num_layers": "hidden_layers",
    "optim": "optimizer",
    "perceptron": "mlp",
    "scheduler": "schedule",
    "search": "sampler",
    "units": "hidden_units",
    "wd": "weight_decay",
    "width": "hidden_units",
}
_LONGEST = 80  # comparing is quadratic in the length, and a name is never this long
_FEW = 16


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` was most likely meant to be, or None."""
    names = {_plain(other): other for other in known}
    plain = _plain(name[:_LONGEST])
    alias = _ALIASES.get(plain)
    if alias in names.values():
        return alias
    starting = _starting(plain, names)
    if len(starting) == 1:
        return starting[0]
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.65)
    if close:
        return names[close[0]]
    longer = _longer(plain, names)
    return longer[0] if len(longer) == 1 else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the known names when they are few, or nothing."""
    names = list(known)
    best = suggestion(name, names)
    if best is not None:
        return f"; did you mean {best!r}?"
    longer = _longer(_plain(name[:_LONGEST]), {_plain(other): other for other in names})
    if 1 < len(longer) <= _FEW:
        return f"; did you mean one of {', '.join(longer)}?"
    if not names or len(names) > _FEW:
        return ""
    return f"; known: {', '.join(names)}"


def _longer(plain: str, names: Mapping[str, str]) -> list[str]:
    """Return the names that begin with this, or have it inside when it is not short."""
    inside = [other for key, other in names.items() if len(plain) > 3 and plain in key]
    return _starting(plain, names) or inside


def _starting(plain: str, names: Mapping[str, str]) -> list[str]:
    return [other for key, other in names.items() if len(plain) > 1 and key.startswith(plain)]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
