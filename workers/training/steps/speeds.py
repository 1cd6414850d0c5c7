"""What a step of each group was measured to take, by backend and lanes; kept over restarts.

A group is fused as long as its trials take less time than one after another in the plain step. Idle
lanes cost a fused step as much as those that train, so it is the trials that count.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

import torch

from tuner_service import __version__
from workers.training.nets.networks import NETWORKS
from workers.training.steps.groups import GroupSpec
from workers.training.steps.native.library import processor

logger = logging.getLogger(__name__)

COMPILED_GAIN = 2.0  # estimate: how much faster than the traced graph inductor's code will be
CHANGED = 0.1  # relative; less is not written again
PLAIN, TRACED, COMPILED = "plain", "traced", "compiled"


class Speeds:
    """Seconds per step, by group.

    Args:
        directory: Where they are kept, one small file per group; None keeps them in memory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._known: dict[str, dict[str, float]] = {}

    def note(self, group: GroupSpec, backend: str, lanes: int, seconds: float) -> None:
        """Keep what a step of the group takes now."""
        known, name = self._of(group), f"{backend} {lanes}"
        before = known.get(name)
        known[name] = seconds
        if before is None or abs(seconds - before) > CHANGED * before:
            self._write(group, known)

    def seconds(self, group: GroupSpec, backend: str, lanes: int) -> float | None:
        """Return what was measured; None if nothing was."""
        return self._of(group).get(f"{backend} {lanes}")

    def refusal(self, group: GroupSpec, lanes: int, trials: int, *, compiles: bool) -> str | None:
        """Return why so many trials are faster plain than in a step of these lanes; or None.

        Args:
            group: Of the trials.
            lanes: Of the fused step.
            trials: That there are.
            compiles: Whether a traced graph will be replaced by compiled code.
        """
        plain = self.seconds(group, PLAIN, 1)
        fused = self._bound(group, COMPILED, lanes)
        if fused is None:
            fused = self._bound(group, TRACED, lanes)
            fused = fused / COMPILED_GAIN if fused is not None and compiles else fused
        if plain is None or fused is None or min(trials, lanes) * plain >= fused:
            return None
        gain = min(trials, lanes) * plain / fused
        return f"fusing does not pay: {gain:.2f} times the plain step's speed for {trials} trials"

    def _bound(self, group: GroupSpec, backend: str, lanes: int) -> float | None:
        """Return what a step takes at least: as measured, or by what one of other lanes took."""
        measured = {
            int(name.split()[1]): seconds
            for name, seconds in self._of(group).items()
            if name.split()[0] == backend
        }
        below = [other for other in measured if other <= lanes]
        if below:
            return measured[max(below)]  # more lanes take no less
        above = min(measured, default=None)
        return None if above is None else measured[above] * lanes / above

    def _of(self, group: GroupSpec) -> dict[str, float]:
        if group.key not in self._known:
            self._known[group.key] = self._read(group)
        return self._known[group.key]

    def _file(self, group: GroupSpec) -> Path | None:
        if self._directory is None or NETWORKS[str(group.network["type"])].user_module:
            return None  # a user's network may be another one tomorrow under the same name
        return self._directory / f"speeds-{_fingerprint(group)}.json"

    def _read(self, group: GroupSpec) -> dict[str, float]:
        path = self._file(group)
        try:
            known = json.loads(path.read_text()) if path is not None else {}
            return {str(name): float(seconds) for name, seconds in known.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # none yet, or cut short: it is measured again

    def _write(self, group: GroupSpec, known: dict[str, float]) -> None:
        path = self._file(group)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = path.with_suffix(f".{os.getpid()}")
            made.write_text(json.dumps(known))
            made.replace(path)  # whole, whoever else writes it
        except OSError as error:
            logger.warning("measured speeds are not kept: %s", error)


def _fingerprint(group: GroupSpec) -> str:
    """Hash what a step's time depends on: network, shapes, precision, versions, processor."""
    parts = {
        "network": dict(group.network),
        "optimizer": group.optimizer,
        "shapes": [group.inputs, group.outputs, group.batch_size],
        "loss": group.train_loss,
        "precision": group.precision,
        "traits": [group.device.type, group.augments, group.streamed, torch.get_num_threads()],
        "versions": [torch.__version__, __version__],
        "processor": processor(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
