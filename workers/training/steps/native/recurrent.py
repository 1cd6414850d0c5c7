"""Where the weights of recurrent layers stand in the flat memory of kernels.cpp (recurrent.h).

    T   steps        F   numbers of a step's input      G   gates: 1 for rnn, 3 for gru, 4 for lstm
    H   units        D   directions

A direction of a layer has weights [F, stride(G·H)] and [H, stride(G·H)] and two biases
[stride(G·H)], torch's transposed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workers.training.nets.layers import InputShape
from workers.training.nets.networks import complete
from workers.training.nets.sequences import CELLS, sequence_shape

KINDS = {"rnn": 0, "gru": 1, "lstm": 2}
MOST_BYTES = 256 << 20  # of a batch's arrays: longer sequences leave every cache anyway


@dataclass(frozen=True, slots=True)
class CellPlace:
    """One direction of one layer as the network describes it.

    Attributes:
        name: Of its module.
        image: (C, W) of the image whose lines are the steps; None for other inputs. Rows come
            channels last, so that a step's numbers stand in another order than its weights.
        dropped: Number of the dropout after the layer.
        first: Whether the layer reads the rows themselves.
    """

    name: str
    kind: str
    steps: int
    features: int
    units: int
    backward: bool
    directions: int
    dropped: int
    image: tuple[int, int] | None
    first: bool

    @property
    def gates(self) -> int:
        """G·H."""
        return CELLS[self.kind].gates * self.units

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> canonical shape of every parameter."""
        return {
            f"{self.name}.weight_ih": (self.gates, self.features),
            f"{self.name}.weight_hh": (self.gates, self.units),
            f"{self.name}.bias_ih": (self.gates,),
            f"{self.name}.bias_hh": (self.gates,),
        }

    def fill(self, cells: Any, start: int, stride: Callable[[int], int]) -> int:
        """Say in `cells` where everything stands from `start` on; return where it ends."""
        wide = stride(self.gates)
        weight_hh = start + self.features * wide
        bias_ih = weight_hh + self.units * wide
        for name, value in {
            "kind": KINDS[self.kind], "features": self.features,
            # The first layer's rows stand one behind the other; the next ones' meet registers.
            "pitch": self.features if self.first else stride(self.features),
            "units": self.units, "stride": stride(self.units), "gates": wide,
            "steps": self.steps, "backward": int(self.backward), "directions": self.directions,
            "dropped": self.dropped, "weight_ih": start, "weight_hh": weight_hh,
            "bias_ih": bias_ih, "bias_hh": bias_ih + wide,
        }.items():  # fmt: skip
            setattr(cells, name, value)
        return bias_ih + 2 * wide

    def views(self, flat: Tensor, cells: Any) -> dict[str, Tensor]:
        """Return each parameter's place in `flat` [P], axes in canonical order."""
        weight_ih = flat[cells.weight_ih : cells.weight_hh].view(self.features, cells.gates)
        weight_hh = flat[cells.weight_hh : cells.bias_ih].view(self.units, cells.gates)
        inputs = weight_ih[:, : self.gates].t()  # [G·H, F]
        if self.image is not None:
            channels, width = self.image
            inputs = inputs.view(self.gates, width, channels).transpose(1, 2)  # [G·H, C, W]
        return {
            f"{self.name}.weight_ih": inputs,
            f"{self.name}.weight_hh": weight_hh[:, : self.gates].t(),
            f"{self.name}.bias_ih": flat[cells.bias_ih :][: self.gates],
            f"{self.name}.bias_hh": flat[cells.bias_hh :][: self.gates],
        }


def cell_places(network: Mapping[str, Any], inputs: InputShape) -> list[CellPlace]:
    """Return every direction of every layer of a recurrent network, in order."""
    network = complete(network)
    steps, features = sequence_shape(inputs)
    kind, units = str(network["type"]), int(network["hidden_units"])
    directions = 2 if network["bidirectional"] else 1
    image = (inputs[0], inputs[2]) if len(inputs) == 3 else None
    places = []
    for layer in range(int(network["hidden_layers"])):
        first = layer == 0
        places += [
            CellPlace(
                name=f"layers.{layer}.{direction}",
                kind=kind,
                steps=steps,
                features=features if first else directions * units,
                units=units,
                backward=bool(direction),
                directions=directions,
                dropped=layer,
                image=image if first else None,
                first=first,
            )
            for direction in range(directions)
        ]
    return places


def too_large(network: Mapping[str, Any], inputs: InputShape, batch_size: int) -> bool:
    """Whether a batch's arrays would take more memory than native code is meant for."""
    numbers = sum(2 * place.gates + 5 * place.units for place in cell_places(network, inputs))
    return 4 * batch_size * sequence_shape(inputs)[0] * numbers > MOST_BYTES
