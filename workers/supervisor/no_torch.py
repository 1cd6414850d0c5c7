"""The supervisor imports no torch, whatever an installed package asks for.

With torch a supervisor takes half a gigabyte and seconds to start, and what crashes a trainer could
crash it. An import contract holds our own modules to that; a sampler of a package (Optuna's GP is
one) is held to it here, while the process runs.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoTorch:
    """A finder that comes before all others, and finds torch nowhere."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not imported in a supervisor: use numpy or scipy")
        return None


def refuse_torch() -> None:
    """Refuse every later import of torch in this process."""
    if not any(isinstance(finder, _NoTorch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoTorch())
