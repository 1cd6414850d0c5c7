"""Writing the weights of trials that are among their study's best.

A model file is safetensors; its header holds what is needed to build the network and to prepare
inputs: network, input shape, outputs, scaling, class labels, and the text of `predict.py`, so that
a model is read by the code it was written with, whichever worker and service hand it out later.
"""

import functools
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.training import modules, predict
from workers.training.checkpoints import write_tensors
from workers.training.runs import Direction, Run, gain
from workers.training.step import LaneState

logger = logging.getLogger(__name__)


EVERY = -1
"""As `keep_models`: keep the model whatever its rank."""


class ModelKeeper:
    """Knows the best values per study that this trainer has seen.

    With several objectives the first decides. Of equal values the earliest stands.
    """

    def __init__(self) -> None:
        self._best: dict[int, list[float]] = defaultdict(list)

    def forget(self, study: int) -> None:
        """A value of this study was not counted: what comes next is not held against it."""
        self._best.pop(study, None)

    def keep(self, run: Run, weights: Callable[[], LaneState | None]) -> str | None:
        """Write the model if the run is among the best; return its path, or None."""
        path, values = run.start["model"], run.values
        direction, most = run.spec.objective[0][1], run.start["keep_models"]
        if path is None or values is None:
            return None
        if most != EVERY and not self.ranks(run.study, values[0], direction, most):
            return None
        tensors = {
            k: v for k, v in (weights() or {}).items() if k.startswith(("parameters/", "buffers/"))
        }
        plain = {name.split("/", 1)[1]: tensor for name, tensor in tensors.items()}
        try:
            write_tensors(Path(path), plain, describe(run))
        except OSError as error:  # a full disk costs the model, not the result
            logger.warning("no model of trial %s: %s", run.trial, error)
            if run.start["keep_models"] != EVERY:
                self._best[run.study].remove(values[0])
            return None
        return path

    def ranks(self, study: int, value: float, direction: Direction, keep: int) -> bool:
        """Return whether the value is among the best `keep` of its study, and count it."""
        best = self._best[study]
        if keep < 1:
            return False
        if len(best) >= keep and gain(value, best[-1], direction) <= 0:
            return False
        best.append(value)
        best.sort(reverse=direction == "maximize")
        del best[keep:]
        return True


def describe(run: Run) -> dict[str, Any]:
    """Return what a model file says of itself."""
    network, files = run.spec.network, {"predict.py": predictor()}
    own: dict[str, Any] = {"network": network}
    if modules.is_brought(network):
        own = modules.described(network, run.data)
        files["network.py"] = own.pop("source")
    return {
        **own,
        "input_shape": list(run.data.shape),
        "outputs": run.data.outputs,
        "loss": run.spec.loss.rpartition(":")[2],
        "preprocessing": run.data.preprocessing,
        "dataset": run.spec.dataset.model_dump(),
        "data_hash": run.data.data_hash,
        "step": run.result_step,
        "values": run.values,
        "files": files,
    }


@functools.cache
def predictor() -> str:
    """Return the text of the file that predicts with a model."""
    return Path(predict.__file__).read_text(encoding="utf-8")
