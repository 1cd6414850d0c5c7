"""Predict with this model. It needs torch, NumPy and safetensors, nothing else.

    python predict.py rows.csv              one prediction per line
    python predict.py rows.npy --scores     what stands behind it: probabilities of the classes

    from predict import Model
    model = Model.load("best")
    model.predict(rows)

Rows are raw inputs, as they stand in the data: scaling is done here, with the constants that were
fitted on the training part. A CSV file with a header may have its columns in any order, and others
beside them.
"""

# This file is copied beside the weights of every model that is kept, so it must stand alone: it
# imports nothing of this project, and builds the networks of `workers.training.networks` anew, for
# prediction only. A test holds the two against each other.

import argparse
import csv
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[Any]

CHUNK = 4096  # rows of one forward pass

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all axes but 1, by the running statistics."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes from 2 is fine."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over axis 1."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, …] -> [B, C, …]."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def norm(network: Mapping[str, Any], features: int) -> nn.Module:
    """Return the normalisation that the network has after each layer."""
    kinds = {"batch": BatchNorm, "layer": ChannelNorm}
    kind = kinds.get(str(network.get("norm", "none")))
    return nn.Identity() if kind is None else kind(features)


class Mlp(nn.Module):
    """Hidden layers of one width, each Linear → norm → activation, then Linear."""

    def __init__(self, network: Mapping[str, Any], inputs: Sequence[int], outputs: int) -> None:
        super().__init__()
        width = int(network.get("hidden_units", 64))
        sizes = [int(np.prod(inputs))] + [width] * int(network.get("hidden_layers", 2))
        pairs = list(itertools.pairwise(sizes))
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairs)
        self.norms = nn.ModuleList(norm(network, after) for _, after in pairs)
        self.output = nn.Linear(sizes[-1], outputs)
        self.activation = ACTIVATIONS[network.get("activation", "relu")]

    def forward(self, x: Tensor) -> Tensor:
        """[B, …inputs] -> [B, outputs]."""
        x = x.flatten(1)
        for linear, normal in zip(self.hidden, self.norms, strict=True):
            x = self.activation(normal(linear(x)))
        return self.output(x)  # type: ignore[no-any-return]


class Cnn(nn.Module):
    """Convolutions, each followed by norm, activation and, while the image is large, halving."""

    def __init__(self, network: Mapping[str, Any], inputs: Sequence[int], outputs: int) -> None:
        super().__init__()
        channels, height, width = inputs
        first, kernel = int(network.get("channels", 16)), int(network.get("kernel_size", 3))
        sizes = [channels] + [first << i for i in range(int(network.get("conv_layers", 2)))]
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.pooled: list[bool] = []
        for before, after in itertools.pairwise(sizes):
            self.convolutions.append(nn.Conv2d(before, after, kernel, padding=kernel // 2))
            self.norms.append(norm(network, after))
            height, width = (side + 1 - kernel % 2 for side in (height, width))
            self.pooled.append(min(height, width) >= 4)
            if self.pooled[-1]:
                height, width = height // 2, width // 2
        self.hidden = nn.Linear(sizes[-1] * height * width, int(network.get("hidden_units", 64)))
        self.output = nn.Linear(self.hidden.out_features, outputs)
        self.activation = ACTIVATIONS[network.get("activation", "relu")]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs]."""
        layers = zip(self.convolutions, self.norms, self.pooled, strict=True)
        for convolution, normal, pooled in layers:
            x = self.activation(normal(convolution(x)))
            x = F.max_pool2d(x, 2) if pooled else x
        return self.output(self.activation(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[Mapping[str, Any], Sequence[int], int], nn.Module]] = {
    "mlp": Mlp,
    "cnn": Cnn,
}


def build(directory: Path, described: Mapping[str, Any]) -> nn.Module:
    """Build the network: a built-in one, or that of `network.py` in the model's directory."""
    network = described["network"]
    if network["type"] in NETWORKS:
        make = NETWORKS[network["type"]]
        return make(network, described["input_shape"], described["outputs"])
    source = importlib.util.spec_from_file_location("network", directory / "network.py")
    if source is None or source.loader is None:
        raise FileNotFoundError(f"there is no network.py in {directory}")
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    arguments = dict(described["build"])
    if "inputs" in arguments:
        arguments["inputs"] = tuple(arguments["inputs"])
    built: nn.Module = module.build(**arguments)
    return built


@dataclass(frozen=True)
class Model:
    """A trained network with what prepares its inputs and reads its outputs.

    Attributes:
        shape: Of one row.
        classes: Labels by output; None for numbers.
        columns: Names of a table's input columns, in the network's order.
    """

    network: nn.Module
    loss: str
    shape: tuple[int, ...]
    mean: Array
    deviation: Array
    classes: list[str] | None
    columns: list[str] | None

    @classmethod
    def load(cls, directory: str | Path | None = None) -> "Model":
        """Read a model's directory; by default the one this file lies in."""
        place = Path(directory) if directory else Path(__file__).resolve().parent
        described = json.loads((place / "model.json").read_text(encoding="utf-8"))
        prepared = json.loads((place / "preprocessing.json").read_text(encoding="utf-8"))
        weights = load_file(place / "model.safetensors")
        network = build(place, described)
        double = any(tensor.dtype == torch.float64 for tensor in weights.values())
        network = network.to(torch.float64 if double else torch.float32).eval()
        network.load_state_dict(weights)
        return cls(
            network=network,
            loss=described["loss"],
            shape=tuple(described["input_shape"]),
            mean=np.asarray(prepared["mean"]),
            deviation=np.asarray(prepared["deviation"]),
            classes=prepared["classes"],
            columns=prepared["columns"],
        )

    def scores(self, rows: Array) -> Array:
        """Return [n, classes] probabilities, or [n, targets] predicted numbers."""
        outputs = self._outputs(rows)
        if self.classes is None:
            return np.asarray(outputs.numpy())
        if outputs.shape[1] == 1:  # one logit for two classes
            second = torch.sigmoid(outputs)
            return np.asarray(torch.cat([1 - second, second], dim=1).numpy())
        return np.asarray(torch.softmax(outputs, dim=1).numpy())

    def predict(self, rows: Array) -> Array:
        """Return [n] class labels, or [n, targets] numbers."""
        scores = self.scores(rows)
        if self.classes is None:
            return scores
        labels: Array = np.asarray(self.classes)[scores.argmax(axis=1)]
        return labels

    def _outputs(self, rows: Array) -> Tensor:
        raw = np.asarray(rows)
        if raw.size % int(np.prod(self.shape)):
            raise ValueError(f"rows must be of the shape {self.shape}, but got {raw.shape[1:]}")
        raw = raw.reshape(-1, *self.shape)
        scaled = (raw.astype(np.float64) - self.mean) / self.deviation
        dtype = next(self.network.parameters()).dtype
        inputs = torch.from_numpy(scaled).to(dtype)
        with torch.no_grad():
            parts = [self.network(part) for part in torch.split(inputs, CHUNK)]
        return torch.cat(parts) if parts else torch.zeros(0, 1)

    def read(self, path: Path) -> Array:
        """Read rows from a .npy file, or from a .csv file with or without a header."""
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with path.open(newline="", encoding="utf-8") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
        if not lines:
            raise ValueError(f"{path} is empty")
        header = lines[0]
        if self.columns is not None and set(self.columns) <= set(header):
            places = [header.index(name) for name in self.columns]
            lines = [[line[place] for place in places] for line in lines[1:]]
        return np.array(lines, dtype=np.float64)


def main() -> None:
    """Print a prediction for every row of a file."""
    parser = argparse.ArgumentParser(description="Predict with the model beside this file.")
    parser.add_argument("rows", type=Path, help="a .csv or .npy file of raw inputs")
    parser.add_argument("--scores", action="store_true", help="probabilities instead of labels")
    options = parser.parse_args()
    model = Model.load()
    rows = model.read(options.rows)
    results = model.scores(rows) if options.scores else model.predict(rows)
    for result in results:
        cells = np.atleast_1d(result).tolist()
        sys.stdout.write(",".join(str(cell) for cell in cells) + "\n")


if __name__ == "__main__":
    main()
