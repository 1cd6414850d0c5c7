"""What the selector asks of native code: is there any here, which networks mix, does it pay."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuner_service.definition.catalogue import NETWORKS
from workers.training.nets.networks import complete
from workers.training.steps.groups import GroupSpec
from workers.training.steps.native import library
from workers.training.steps.native import step as native_step
from workers.training.steps.native.step import NativeStep
from workers.training.steps.probe import probe

logger = logging.getLogger(__name__)

PROBE_LANES = 2


class NativeBackend:
    """The native library of this machine; None where it cannot be built or loaded.

    Args:
        path: Of the library, as `library.build` made it.
        probe: Whether to compare with the plain step first.
    """

    def __init__(self, path: Path, *, probe: bool) -> None:
        self._path = path
        self._probe = probe

    def mixes(self, network: Mapping[str, Any]) -> bool:
        """Whether lanes of any networks of this type may share a group.

        Not of one so large that native code might not pay for it: that is probed by itself.
        """
        if not native_step.suits(network):
            return False
        limits = NETWORKS[str(network["type"])].native_limits or {}
        whole = complete(network)
        return all(whole[name] <= most for name, most in limits.items())

    def takes(self, group: GroupSpec) -> bool:
        """Whether there is native code for the group, whether it pays or not."""
        return native_step.unsuitable(group) is None

    def refusal(self, group: GroupSpec) -> str | None:
        """Return why the group does not run natively; None if it does."""
        unsuitable = native_step.unsuitable(group)
        if unsuitable is None and self._probe:
            return probe(group, self.make_step(group, PROBE_LANES))
        return unsuitable

    def make_step(self, group: GroupSpec, lanes: int) -> NativeStep:
        """Return a step of this many lanes."""
        return NativeStep(group, lanes, self._path)


def mixed_network(network: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is left in common of a group's networks where native code mixes them."""
    return {"type": network["type"]}


def load(cache: Path, *, probe: bool) -> NativeBackend | None:
    """Return the backend whose library is kept in `cache`; None where there can be none."""
    try:
        path = library.build(cache)
        library.Library(path, torch.float32)  # a directory may forbid to run what is in it
    except (library.NativeError, OSError) as error:
        logger.warning("networks run without native code: %s", error)
        return None
    return NativeBackend(path, probe=probe)
