"""Writing the weights of trials that are among their study's best.

A model file is safetensors; its header holds what is needed to build the network and to prepare
inputs: network, input shape, outputs, scaling, class labels, and the texts of `network.py` (its
source), `predict.py` and `export.py`, so that a model is read by the code it was written with,
whichever worker and service hand it out later.
"""

import functools
import logging
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.protocol.messages import TrialStart
from workers.training import user_modules
from workers.training.bundle.network_source import built_in
from workers.training.steps.step import LaneState
from workers.training.trials.checkpoints import write_tensors
from workers.training.trials.runs import Direction, TrialRun

logger = logging.getLogger(__name__)


EVERY = -1
"""As `keep_models`: keep the model whatever its rank."""

Rank = tuple[bool, float, int]
"""What decides which trial is better: that it ran through, the value (less), then its number."""


class ModelKeeper:
    """Knows the best values per study that this trainer has seen.

    With several objectives the first decides. Trials of equal values rank by number: every worker
    orders them so at any time, hence a study's best trial ranks first wherever it ends.
    """

    def __init__(self) -> None:
        self._best: dict[int, list[Rank]] = defaultdict(list)

    def forget(self, study: int) -> None:
        """A value of this study was not counted: what comes next is not held against it."""
        self._best.pop(study, None)

    def keep(self, run: TrialRun, weights: Callable[[], LaneState | None]) -> str | None:
        """Write the model if the run is among the best; return its path, or None."""
        path, values = run.start.model, run.values
        direction, most = run.spec.objective[0][1], run.start.keep_models
        if path is None or values is None:
            return None
        rank = _rank(run.start, values[0], direction, stopped=run.stop is not None)
        if most != EVERY and not self._takes(run.start, rank):
            return None
        tensors = {
            k: v for k, v in (weights() or {}).items() if k.startswith(("parameters/", "buffers/"))
        }
        plain = {name.split("/", 1)[1]: tensor for name, tensor in tensors.items()}
        try:
            write_tensors(Path(path), plain, describe(run))
        except OSError as error:  # a full disk costs the model, not the result
            logger.warning("no model of run %s: %s", run.id, error)
            if most != EVERY:
                self._best[run.start.study].remove(rank)
            return None
        return path

    def ranks(self, start: TrialStart, value: float, direction: Direction) -> bool:
        """Return whether the trial is among the best `keep_models` of its study, and count it."""
        return self._takes(start, _rank(start, value, direction))

    def _takes(self, start: TrialStart, rank: Rank) -> bool:
        if math.isnan(rank[1]):
            return False
        best = self._best[start.study]
        # Counted whether its file can be written or not: `withdraw` takes it back if not.
        best.append(rank)
        best.sort()
        del best[start.keep_models :]
        return rank in best

    def withdraw(self, start: TrialStart, value: float, direction: Direction) -> None:
        """Count a trial that ranked no more: its model could not be written."""
        self._best[start.study].remove(_rank(start, value, direction))


def _rank(start: TrialStart, value: float, direction: Direction, *, stopped: bool = False) -> Rank:
    # Less is better; then the lower number, which any worker finds alike. One that ran out of time
    # is a study's best only where none ran through.
    return stopped, (-value if direction == "maximize" else value), start.number


def describe(run: TrialRun) -> dict[str, Any]:
    """Return what a model file says of itself."""
    network = run.spec.network
    described = user_modules.described if user_modules.is_user_module(network) else built_in
    rebuilt = described(network, run.data)
    files = {**scripts(), "network.py": rebuilt.pop("source")}
    return {
        **rebuilt,
        "input_shape": list(run.data.shape),
        "outputs": run.data.outputs,
        "loss": run.spec.loss.rpartition(":")[2],
        "preprocessing": run.data.preprocessing,
        "dataset": run.spec.dataset.model_dump(),
        "data_hash": run.data.data_hash,
        "step": run.result_step,
        "values": run.values,
        "threshold": run.threshold,
        "files": files,
    }


def scripts() -> dict[str, str]:
    """Return the files that predict with a model and export it, by name."""
    return {f"{each}.py": _text(each) for each in ("predict", "export")}


@functools.cache
def _text(script: str) -> str:
    return Path(__file__).parents[1].joinpath("bundle", f"{script}.py").read_text(encoding="utf-8")
