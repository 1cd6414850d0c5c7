"""What workers bring: networks, data and training loops; samplers and pruners of packages."""

import re
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from tuner_service.definition.catalogue import (
    BROUGHT_PRUNER,
    BROUGHT_SAMPLER,
    Network,
    PrunerEntry,
    SamplerEntry,
)
from tuner_service.definition.catalogue.entries import EntryT
from tuner_service.definition.options import Option

NOT_OFFERED: Final = "is not offered: "
"""Stands in the line that a worker logs of a file it refuses; `tuner up` shows such lines."""


class RefusedModule(BaseModel):
    """A file of `--modules` that workers do not offer.

    Attributes:
        reason: What to change in it, in a sentence.
        workers: Who says so.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    reason: str
    workers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a study calls it."""
        return self.file.removesuffix(".py")

    @property
    def sentence(self) -> str:
        """Which file is not offered, by whom, and why."""
        plural = "s" if len(self.workers) > 1 else ""
        where = f" (worker{plural} {', '.join(self.workers)})" if self.workers else ""
        return f"the module {self.file} {NOT_OFFERED}{self.reason}{where}"


class ModuleDescription(BaseModel):
    """A module of `--modules`, or of an installed package, as the worker found it.

    Attributes:
        parameters: From the signature of `build` (or of `train`'s declared parameters).
        defines: What the module has; with `train` it is a loop.
        metrics: Names of metrics of its own.
        data: Parameters of its `load_data`.
        open: Of a loop that names no parameters: a study may give it any.
        source_hash: SHA-256 of its source; part of a fused group's key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    parameters: tuple[Option, ...] = ()
    defines: tuple[
        Literal["build", "loss", "metrics", "load_data", "train", "sampler", "pruner"], ...
    ] = ()
    source_hash: str
    open: bool = False
    metrics: tuple[str, ...] = ()
    data: tuple[Option, ...] = ()

    @property
    def is_user_loop(self) -> bool:
        """Whether it trains by itself, as it likes, instead of bringing a network."""
        return "train" in self.defines

    @property
    def is_network(self) -> bool:
        """Whether `network: {type: …}` may name it: a network, or a loop in its place."""
        return bool({"build", "train"} & set(self.defines)) or not (
            {"load_data", "sampler", "pruner"} & set(self.defines)
        )

    @property
    def is_data(self) -> bool:
        """Whether `dataset: {name: …}` may name it."""
        return "load_data" in self.defines

    @property
    def sampler(self) -> SamplerEntry | None:
        """The sampler that it is; None: it is none."""
        return self._named(BROUGHT_SAMPLER) if "sampler" in self.defines else None

    @property
    def pruner(self) -> PrunerEntry | None:
        """The pruner that it is; None: it is none."""
        return self._named(BROUGHT_PRUNER) if "pruner" in self.defines else None

    def _named(self, entry: EntryT) -> EntryT:
        own = {"name": self.name, "description": self.description, "options": self.parameters}
        return entry.model_copy(update=own)

    @property
    def network(self) -> Network:
        """The module as an entry like the built-in networks'."""
        return Network(
            name=self.name,
            description=self.description,
            options=self.parameters,
            inputs=("table", "image", "sequence"),
        )


def described_parameters(docstring: str) -> dict[str, str]:
    """Return what a docstring's `Args:` says of each parameter, in its first line."""
    _, _, part = docstring.partition("Args:\n")
    return dict(re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.+)$", part, flags=re.MULTILINE))
