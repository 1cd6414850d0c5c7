"""Networks that workers bring: what a worker publishes of a user module."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuner_service.definition.catalogue import Network
from tuner_service.definition.options import Option


class ModuleDescription(BaseModel):
    """A module of `--modules`, as the worker found it.

    Attributes:
        parameters: From the signature of `build` (or of `train`'s declared parameters).
        defines: What the module has beside `build`.
        source_hash: SHA-256 of its source; part of a fused group's key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    parameters: tuple[Option, ...] = ()
    defines: tuple[Literal["loss", "metrics", "load_data", "train"], ...] = ()
    source_hash: str

    @property
    def network(self) -> Network:
        """The module as an entry like the built-in networks'."""
        return Network(
            name=self.name,
            description=self.description,
            options=self.parameters,
            inputs=("table", "image", "sequence"),
        )
