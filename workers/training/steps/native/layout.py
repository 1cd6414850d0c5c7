"""Where the tensors of a network stand in the flat memory of kernels.cpp.

    k     side of a kernel       C, O   a layer's channels in and out
    H, W  of a layer's image     P      numbers of a trial's weights

Each layer has a weight [k, k, C, stride(O)] and a bias [stride(O)], and with a norm a scale and a
shift [stride(O)]. A linear layer has k = 1; after images its C is the whole image, channels last.
Views of the flat tensor give every parameter its canonical order of axes, so that copying into a
view is all there is to loading.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workers.training.nets.layers import SMALLEST_POOLED, InputShape
from workers.training.nets.networks import complete
from workers.training.steps.native.library import CellsStruct, LayerStruct
from workers.training.steps.native.recurrent import KINDS, CellPlace, cell_places

NORMS = {"none": 0, "batch": 1, "layer": 2}
NOT_DROPPED = -1
LINE = 16  # numbers: rows of the first layer of a table start on cache lines


@dataclass(frozen=True, slots=True)
class _Place:
    """One layer as the network describes it.

    Attributes:
        name: Of the linear or convolution module; `norm_name` of its norm's, None without.
        image: (H, W) it works on; (1, 1) for a linear layer.
        before: (H, W, C, pitch) of what a linear layer after images flattens; None elsewhere.
    """

    name: str
    norm_name: str | None
    channels: int
    pitch: int
    outputs: int
    kernel: int
    image: tuple[int, int]
    pooled: bool
    dropped: int
    before: tuple[int, int, int, int] | None


class Layout:
    """Offsets and views of one network.

    Attributes:
        layers: As the library reads them.
        cells: The recurrent ones before them, likewise.
        size: P.
        statistics: Numbers of running statistics.
        shapes: Name -> canonical shape of every parameter.
        counters: Names of the batch norms' counts of batches.
        positions: Name of such a count -> H·W of its layer.
    """

    def __init__(
        self,
        places: Sequence[_Place],
        norm: str,
        stride: Callable[[int], int],
        recurrent: Sequence[CellPlace] = (),
    ) -> None:
        self.layers = (LayerStruct * len(places))()
        self.cells = (CellsStruct * len(recurrent))()
        self.size = self.statistics = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.counters: list[str] = []
        self.positions: dict[str, int] = {}
        self._places = places
        self._recurrent = recurrent
        for cells, cell_place in zip(self.cells, recurrent, strict=True):
            self.size = cell_place.fill(cells, self.size, stride)
            self.shapes |= cell_place.shapes
        for layer, place in zip(self.layers, places, strict=True):
            self._add(layer, place, NORMS[norm] if place.norm_name else 0, stride(place.outputs))

    def parameters(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each parameter's place in `flat` [P]."""
        views: dict[str, Tensor] = {}
        for cells, cell_place in zip(self.cells, self._recurrent, strict=True):
            views |= cell_place.views(flat, cells)
        for layer, place in zip(self.layers, self._places, strict=True):
            views[f"{place.name}.weight"] = _weight(flat, layer, place)
            views[f"{place.name}.bias"] = flat[layer.bias :][: place.outputs]
            if layer.norm:
                scale = flat[layer.scale :]  # a scale and, a stride further, a shift
                views[f"{place.norm_name}.weight"] = scale[: place.outputs]
                views[f"{place.norm_name}.bias"] = scale[layer.stride :][: place.outputs]
        return views

    def buffers(self, statistics: Tensor) -> dict[str, Tensor]:
        """Return each running statistic's place in `statistics`."""
        views: dict[str, Tensor] = {}
        for layer, place in zip(self.layers, self._places, strict=True):
            if layer.norm == NORMS["batch"]:
                mean = statistics[layer.stats :]
                views[f"{place.norm_name}.running_mean"] = mean[: place.outputs]
                views[f"{place.norm_name}.running_var"] = mean[layer.stride :][: place.outputs]
        return views

    def _add(self, layer: Any, place: _Place, norm: int, stride: int) -> None:
        # A kernel runs over whole pixels, padding channels included; their weights stay zero.
        depth = place.channels if place.kernel == 1 else place.pitch
        weight = self.size  # [k, k, C, stride(O)] numbers from here
        bias = weight + place.kernel**2 * depth * stride
        scale = bias + stride
        for name, value in {
            "channels": place.channels, "pitch": place.pitch, "outputs": place.outputs,
            "stride": stride, "kernel": place.kernel, "height": place.image[0],
            "width": place.image[1], "norm": norm, "pooled": int(place.pooled),
            "dropped": place.dropped, "weight": weight, "bias": bias, "scale": scale,
            "stats": self.statistics,
        }.items():  # fmt: skip
            setattr(layer, name, value)
        self.size = scale + (2 * stride if norm else 0)
        self._add_shapes(place, norm)
        if norm == NORMS["batch"]:
            self.statistics += 2 * stride  # a mean and a variance: [2, stride(O)]
            self.counters.append(f"{place.norm_name}.num_batches_tracked")
            self.positions[self.counters[-1]] = place.image[0] * place.image[1]

    def _add_shapes(self, place: _Place, norm: int) -> None:
        inner: tuple[int, ...] = (place.outputs, place.channels)
        if place.name.startswith("convolutions"):
            inner = (*inner, place.kernel, place.kernel)
        elif place.before is not None:
            height, width, channels, _ = place.before
            inner = (place.outputs, height * width * channels)
        self.shapes[f"{place.name}.weight"] = inner
        self.shapes[f"{place.name}.bias"] = (place.outputs,)
        if norm:
            self.shapes[f"{place.norm_name}.weight"] = (place.outputs,)
            self.shapes[f"{place.norm_name}.bias"] = (place.outputs,)


def layout_of(
    network: Mapping[str, Any],
    inputs: InputShape,
    outputs: int,
    *,
    stride: Callable[[int], int],
) -> Layout:
    """Return the layout of a network that `native.suits`."""
    network = complete(network)
    if network["type"] in KINDS:
        recurrent = cell_places(network, inputs)
        last = recurrent[-1]
        wide = last.directions * last.units
        head = _linear("output", wide, stride(wide), outputs, None, NOT_DROPPED, None)
        return Layout([head], "none", stride, recurrent)
    norm = str(network["norm"])
    make = _cnn if network["type"] == "cnn" else _mlp
    return Layout(make(network, inputs, outputs, stride), norm, stride)


def _mlp(
    network: Mapping[str, Any], inputs: InputShape, outputs: int, stride: Callable[[int], int]
) -> list[_Place]:
    channels = 1
    for length in inputs:
        channels *= length
    # A picture's rows come channels last, so the first layer reads its weights in that order too.
    before = (inputs[1], inputs[2], inputs[0], inputs[0]) if len(inputs) == 3 else None
    pitch, places = -(-channels // LINE) * LINE, []
    width = int(network["hidden_units"])
    for index in range(int(network["hidden_layers"])):
        places.append(
            _linear(f"hidden.{index}", channels, pitch, width, f"norms.{index}", index, before)
        )
        channels, pitch, before = width, stride(width), None
    return [*places, _linear("output", channels, pitch, outputs, None, NOT_DROPPED, before)]


def _cnn(
    network: Mapping[str, Any], inputs: InputShape, outputs: int, stride: Callable[[int], int]
) -> list[_Place]:
    channels, height, width = inputs
    pitch, places = channels, []
    kernel, first = int(network["kernel_size"]), int(network["channels"])
    for index in range(int(network["conv_layers"])):
        pooled, after = min(height, width) >= SMALLEST_POOLED, first << index
        places.append(
            _Place(
                f"convolutions.{index}", f"norms.{index}", channels, pitch, after, kernel,
                (height, width), pooled, NOT_DROPPED, None,
            )
        )  # fmt: skip
        channels, pitch = after, stride(after)
        if pooled:
            height, width = height // 2, width // 2
    flat, hidden = height * width * pitch, int(network["hidden_units"])
    before = (height, width, channels, pitch)
    return [
        *places,
        _linear("hidden", flat, flat, hidden, None, 0, before),
        _linear("output", hidden, stride(hidden), outputs, None, NOT_DROPPED, None),
    ]


def _linear(
    name: str,
    channels: int,
    pitch: int,
    outputs: int,
    norm_name: str | None,
    dropped: int,
    before: tuple[int, int, int, int] | None,
) -> _Place:
    return _Place(name, norm_name, channels, pitch, outputs, 1, (1, 1), False, dropped, before)


def _weight(flat: Tensor, layer: Any, place: _Place) -> Tensor:
    """Return a weight's place in the flat tensor, axes in canonical order.

    [O, C] of a linear layer, [O, C, k, k] of a convolution, [O, C, H, W] of a linear layer that
    flattens images.
    """
    depth = place.channels if place.kernel == 1 else place.pitch
    numbers = flat[layer.weight : layer.bias]
    if place.before is not None:
        height, width, channels, pitch = place.before
        # torch flattens channels first: canonical is [O, C·H·W], here it lies as [H, W, C, O].
        view = numbers.view(height, width, pitch, layer.stride)[:, :, :channels, : place.outputs]
        return view.permute(3, 2, 0, 1)
    view = numbers.view(place.kernel, place.kernel, depth, layer.stride)  # [k, k, C, O], padded
    view = view[:, :, : place.channels, : place.outputs].permute(3, 2, 0, 1)
    return view if place.name.startswith("convolutions") else view[:, :, 0, 0]
