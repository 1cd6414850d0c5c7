"""Collecting everything that is wrong, each with its JSON pointer and a sentence.

A name that is not known is answered with the one it was most likely meant to be.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tuner_service.definition.options import show
from tuner_service.errors import DefinitionError, Fault

Path = tuple[str | int, ...]

MAX_FAULTS = 100

_RELATIONS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping of names to values",
    "mapping_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
    "tuple_type": "a list",
    "list_type": "a list",
}


def pointer(path: Path) -> str:
    """Return the JSON pointer (RFC 6901) of a path."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return "".join(f"/{part}" for part in parts)


class Faults:
    """The faults found so far, in the order of finding, without repetitions."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], Fault] = {}
        self._struck: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, path: Path, detail: str, *, code: str) -> None:
        """Record one fault."""
        fault = Fault(pointer(path), detail, code)
        if len(self._faults) < MAX_FAULTS and fault.pointer not in self._struck:
            self._faults.setdefault((fault.pointer, fault.detail), fault)

    def below(self, start: str) -> bool:
        """Return whether a fault was found at this pointer or below it."""
        return any(found == start or found.startswith(f"{start}/") for found, _ in self._faults)

    def reject(self, path: Path, detail: str, *, code: str) -> None:
        """Record a fault of a value that was taken out; what its absence leads to is no fault."""
        self.add(path, detail, code=code)
        self._struck.add(pointer(path))

    def unknown(self, path: Path, what: str, name: str, known: Iterable[str]) -> None:
        """Record a name that is not known, with the one it was likely meant to be."""
        detail = f"there is no {what} {show(name)}{did_you_mean(name, known)}"
        self.add(path, detail, code="unknown_name")

    def add_validation(
        self, error: ValidationError, path: Path, model: type[BaseModel] | None
    ) -> None:
        """Record what pydantic found below `path`, in what was to be a `model`."""
        found = error.errors(include_url=False)
        for details in found:
            # Pydantic finds a list too short when it could read none of its items.
            hollow = details["type"] == "too_short" and any(
                other["loc"][: len(details["loc"])] == details["loc"]
                for other in found
                if other is not details
            )
            if not hollow:
                self._add_pydantic(details, path, _keys_at(model, details["loc"]))

    def _add_pydantic(self, details: ErrorDetails, path: Path, known: tuple[str, ...]) -> None:
        # Pydantic marks a fault of a key, rather than of its value, by a last part "[key]".
        inner = tuple(part for part in details["loc"] if part != "[key]")
        code, detail = _sentence(details, (*path, *inner), known)
        self.add((*path, *inner), detail, code=code)

    def raise_if_any(self) -> None:
        """Raise DefinitionError with everything found, if anything was."""
        if self._faults:
            raise DefinitionError(list(self._faults.values()))


def _keys_at(model: type[BaseModel] | None, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the keys of the mapping in which the last part of a place stands."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part)) if model is not None else None
        inner = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        models = [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]
        model = models[0] if models else None
    return tuple(model.model_fields) if model is not None else ()


def _sentence(details: ErrorDetails, path: Path, known: tuple[str, ...]) -> tuple[str, str]:
    """Return (code, sentence) for one of pydantic's errors."""
    kind, value = details["type"], details["input"]
    context: Mapping[str, Any] = details.get("ctx", {})
    last = str(path[-1])
    if kind == "missing":
        return "missing", f"{last} is required"
    if kind == "extra_forbidden":
        return "unknown_key", f"there is no key {show(last)} here{did_you_mean(last, known)}"
    if kind == "value_error":
        return "invalid_value", str(context["error"])
    if kind in _RELATIONS:
        bound, sign = _RELATIONS[kind]
        relation = f"{last} {sign} {context[bound]:g}"
        return "out_of_range", f"`{relation}` must hold, but got {show(value)}"
    if kind in _EXPECTED:
        return "wrong_type", f"{last} must be {_EXPECTED[kind]}, but got {show(value)}"
    return _other_sentence(kind, last, value, context, details["msg"])


def _other_sentence(
    kind: str, last: str, value: object, context: Mapping[str, Any], message: str
) -> tuple[str, str]:
    if kind == "literal_error":
        hint = did_you_mean(value, _quoted(context["expected"])) if isinstance(value, str) else ""
        return (
            "unknown_name",
            f"{last} must be {context['expected']}, but got {show(value)}{hint}",
        )
    if kind == "string_pattern_mismatch":
        return "bad_name", f"{show(value)} does not fit the pattern {context['pattern']}"
    if kind in ("too_short", "too_long"):
        bound = "min_length" if kind == "too_short" else "max_length"
        if context[bound] == 1 and kind == "too_short":
            return "wrong_size", f"{last} must not be empty"
        word = "at least" if kind == "too_short" else "at most"
        return "wrong_size", f"{last} must have {word} {context[bound]} entries"
    if kind in ("string_too_short", "string_too_long"):
        bound = "min_length" if kind == "string_too_short" else "max_length"
        word = "at least" if kind == "string_too_short" else "at most"
        return "wrong_size", f"{last} must have {word} {context[bound]} characters"
    return "invalid_value", f"{message}, but got {show(value)}"


def _quoted(expected: str) -> list[str]:
    """Return the names in pydantic's `'a', 'b' or 'c'`."""
    return expected.split("'")[1::2]


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
