"""What a user's code replaces in torch itself, found and put back.

Everybody in the process calls the same `relu`, `Linear.forward` and `SGD.step`: one network that
puts its own in their place changes the results of all the others, built-in ones included. The
names are compared by identity, which takes half a millisecond for the thousands there are.
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

_SHOWN: Final = 3
_NO_NAME: Final = object()
_TORCH: Final = Path(torch.__file__).parent


class PatchedTorchError(TypeError):
    """A user's code has replaced functions of torch; they are back in place."""

    def __init__(self, names: list[str]) -> None:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        super().__init__(
            f"the module replaces {', '.join(names[:_SHOWN])}{more}, which other trials use too; "
            "define a function or a class of its own instead, or make it a training loop, which "
            "has a process of its own"
        )


class TorchNames:
    """Remembers what torch's public names stand for."""

    def __init__(self) -> None:
        self._known: dict[Any, dict[str, Any]] = {owner: _code_of(owner) for owner in _owners()}
        self._sizes = {owner: len(vars(owner)) for owner in self._known}
        self._own = {id(value) for known in self._known.values() for value in known.values()}

    def put_back(self) -> list[str]:
        """Undo what was replaced, and return its names."""
        found = []
        for owner, known in self._known.items():
            present: Mapping[str, Any] = vars(owner)
            for name, value in known.items():
                now = present.get(name, _NO_NAME)
                if now is value:
                    continue
                if self._is_wrapper(now):
                    known[name] = now  # no new key: the iteration bears it
                else:
                    found.append(_shown(owner, name))
                    setattr(owner, name, value)
            if isinstance(owner, type) and len(present) != self._sizes[owner]:
                found += self._uncover(owner, known)
        return found

    def _uncover(self, owner: type, known: dict[str, Any]) -> list[str]:
        """Undo what now stands before inherited methods, such as a `Tensor.mean`."""
        found = []
        for name, now in _code_of(owner).items():
            inherited = any(hasattr(base, name) for base in owner.__mro__[1:])
            if name in known or not inherited:
                continue
            if self._is_wrapper(now):
                known[name] = now
            else:
                delattr(owner, name)
                found.append(_shown(owner, name))
        self._sizes[owner] = len(vars(owner))
        return found

    def _is_wrapper(self, now: Any) -> bool:
        """Return whether torch has wrapped a function of its own, as it does at some first uses.

        A user's wrapper may go by the same name and module, but its code stands in another file.
        """
        code = getattr(now, "__code__", None)
        own = code is not None and Path(code.co_filename).is_relative_to(_TORCH)
        return own and id(now) not in self._own

    def check(self) -> None:
        """Undo what was replaced.

        Raises:
            PatchedTorchError: Something was.
        """
        if names := self.put_back():
            raise PatchedTorchError(names)


def _owners() -> Iterator[Any]:
    """Yield the modules and classes whose functions take part in training."""
    modules = (torch, nn, nn.functional, nn.init, torch.optim, torch.optim.lr_scheduler)
    yield from modules
    yield torch.Tensor
    classes = {
        value
        for module in (nn, torch.optim, torch.optim.lr_scheduler)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("torch.")
    }
    yield from sorted(classes, key=lambda one: (one.__module__, one.__qualname__))


def _code_of(owner: Any) -> dict[str, Any]:
    kinds = (property, classmethod, staticmethod)
    return {k: v for k, v in vars(owner).items() if callable(v) or isinstance(v, kinds)}


def _shown(owner: Any, name: str) -> str:
    place = owner.__name__ if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__name__}"
    return f"{place}.{name}"
