"""Networks that read their input step by step: recurrent ones and the transformer's encoder.

    B   rows of a batch
    T   steps
    F   features of a step
    H   hidden units
    G   gates: 1 for rnn, 3 for gru, 4 for lstm
    W   width of the transformer

A sequence is a row of shape (T, F). An image (channels, height, width) is read as its `height`
lines, each of channels x width numbers; a row of a table as one number per step.

The recurrent cells and attention are written out, since vmap cannot take torch's own; weights have
torch's names, layout and initial distribution. One trial at a time takes torch's kernels
(`use_torch_kernels`), which compute the same.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.training.nets.layers import (
    Activation,
    InputShape,
    ShapeError,
    activation_of,
    dropout_of,
)

MOST_FUSED_STEPS = 128  # of a recurrent network, unrolled: compiling 28 steps takes 40 s

State = tuple[Tensor, ...]


class Cells(nn.Module):
    """One recurrent layer in one direction."""

    gates: ClassVar[int] = 1
    states: ClassVar[int] = 1
    written_out: bool = True

    def __init__(self, features: int, units: int, activation: Activation = torch.tanh) -> None:
        super().__init__()
        self.units = units
        self.activation = activation
        self.weight_ih = nn.Parameter(torch.empty(self.gates * units, features))  # [G·H, F]
        self.weight_hh = nn.Parameter(torch.empty(self.gates * units, units))  # [G·H, H]
        # Two biases, although their sum would do: torch has two, and gru's are not the same.
        self.bias_ih = nn.Parameter(torch.empty(self.gates * units))  # [G·H]
        self.bias_hh = nn.Parameter(torch.empty(self.gates * units))  # [G·H]

    def reset_parameters(self) -> None:
        """Draw every weight from U(-1/√H, 1/√H), as torch does."""
        bound = 1.0 / math.sqrt(self.units)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, F] -> [B, T, H]."""
        kernel = None if self.written_out else self.kernel()
        if kernel is not None:
            zeros = x.new_zeros(1, x.shape[0], self.units)
            weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            state = zeros if self.states == 1 else (zeros,) * self.states
            # with biases, one layer, no dropout, training, one direction, batch first
            outputs: Tensor = kernel(x, state, weights, True, 1, 0.0, self.training, False, True)[0]
            return outputs
        return self._steps(x)

    def kernel(self) -> Callable[..., Any] | None:
        """Return torch's function for this cell; None where it has none."""
        name = {torch.tanh: "rnn_tanh", F.relu: "rnn_relu"}.get(self.activation)
        return None if name is None else getattr(torch, name)

    def _steps(self, x: Tensor) -> Tensor:
        inputs = F.linear(x, self.weight_ih, self.bias_ih)  # [B, T, G·H], all steps at once
        # shape[0], not len: torch.export would fix the number of rows.
        state: State = (inputs.new_zeros(x.shape[0], self.units),) * self.states  # each [B, H]
        outputs = []
        for step in inputs.unbind(1):
            state = self.step(step, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)  # [B, T, H]

    def step(self, inputs: Tensor, state: State) -> State:
        """Return the next state from a step's input part [B, G·H]; h is the state's first."""
        return (self.activation(inputs + self._recurrent(state)),)

    def _recurrent(self, state: State) -> Tensor:
        return F.linear(state[0], self.weight_hh, self.bias_hh)


class GruCells(Cells):
    """Gated recurrent units. Source: Cho et al. 2014, with torch's reset after the product."""

    gates = 3

    def kernel(self) -> Callable[..., Any] | None:
        """Return torch's function for this cell."""
        return torch.gru

    def step(self, inputs: Tensor, state: State) -> State:
        """Return h' = (1 - z)·n + z·h."""
        reset_x, keep_x, new_x = inputs.chunk(3, -1)
        reset_h, keep_h, new_h = self._recurrent(state).chunk(3, -1)
        keep = torch.sigmoid(keep_x + keep_h)  # z, [B, H]
        # The reset gate after the product, as in cuDNN: r·(W·h + b), where Cho has W·(r·h) + b.
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)  # n, [B, H]
        return (new + keep * (state[0] - new),)  # (1 - z)·n + z·h with one product less


class LstmCells(Cells):
    """Long short-term memory. Source: Hochreiter and Schmidhuber 1997, with forget gates."""

    gates = 4
    states = 2

    def kernel(self) -> Callable[..., Any] | None:
        """Return torch's function for this cell."""
        return torch.lstm

    def step(self, inputs: Tensor, state: State) -> State:
        """Return h' = o·tanh(c'), c' = f·c + i·g."""
        # torch's order of the gates: i, f, g, o, each [B, H].
        enter, forget, new, leave = (inputs + self._recurrent(state)).chunk(4, -1)
        cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(leave) * torch.tanh(cell), cell


CELLS: dict[str, type[Cells]] = {"rnn": Cells, "gru": GruCells, "lstm": LstmCells}


class Recurrent(nn.Module):
    """Recurrent layers, each followed by dropout, then Linear on what the last step leaves.

    With `bidirectional`, each layer also reads backwards, and both ends are joined.
    """

    def __init__(self, network: Mapping[str, Any], inputs: InputShape, outputs: int) -> None:
        super().__init__()
        kind, units = CELLS[str(network["type"])], int(network["hidden_units"])
        self.units, directions = units, 2 if network["bidirectional"] else 1
        # gru and lstm have no choice: their gates want a sigmoid, their states tanh.
        chosen = (activation_of(network),) if "activation" in network else ()
        depth = int(network["hidden_layers"])
        sizes = [sequence_shape(inputs)[1]] + [units * directions] * (depth - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(kind(size, units, *chosen) for _ in range(directions)) for size in sizes
        )
        self.dropouts = nn.ModuleList(dropout_of(network, salt) for salt in range(depth))
        self.output = nn.Linear(units * directions, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …inputs] -> [B, outputs]."""
        x = as_sequences(x)  # [B, T, F]
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = dropout(_both_ways(layer, x))  # [B, T, directions·H]
        # Each direction has read everything at its own end: the last step, and the first.
        last = torch.cat([x[:, -1, : self.units], x[:, 0, self.units :]], -1)
        return self.output(last)  # type: ignore[no-any-return]


def _both_ways(layer: nn.Module, x: Tensor) -> Tensor:
    """[B, T, F] -> [B, T, directions·H]."""
    forward, *backward = layer.children()
    return torch.cat([forward(x), *(cells(x.flip(1)).flip(1) for cells in backward)], -1)


class Positions(nn.Module):
    """A learned vector for each step, added to it."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(steps, width))

    def reset_parameters(self) -> None:
        """Draw from N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        return x + self.weight


class EncoderBlock(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(feed-forward(norm(x))).

    A head has ceil(W / heads) channels, so that every width goes with every number of heads.

    Source: Vaswani et al. 2017, with the norms before, as in Xiong et al. 2020.
    """

    written_out: bool = True

    def __init__(self, network: Mapping[str, Any], block: int) -> None:
        super().__init__()
        width, self.heads = int(network["width"]), int(network["heads"])
        inner = self.heads * -(-width // self.heads)  # all heads' channels, at least W
        wide = width * int(network["feedforward_factor"])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.queries_keys_values = nn.Linear(width, 3 * inner)
        self.joined = nn.Linear(inner, width)
        self.expand, self.contract = nn.Linear(width, wide), nn.Linear(wide, width)
        self.dropouts = nn.ModuleList(dropout_of(network, 2 * block + i) for i in (1, 2))
        self.activation = activation_of(network)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        x = x + self.dropouts[0](self._attention(self.norms[0](x)))
        inner = self.contract(self.activation(self.expand(self.norms[1](x))))
        return x + self.dropouts[1](inner)  # type: ignore[no-any-return]

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, channels]
            for part in self.queries_keys_values(x).chunk(3, -1)
        )
        if self.written_out:
            # softmax(q·kᵀ / √channels): unscaled products grow with the channels, and saturate it.
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [B, heads, T, T]
            mixed = scores.softmax(-1) @ v  # [B, heads, T, channels]
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.joined(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """An encoder over the steps, their mean, then Linear."""

    def __init__(self, network: Mapping[str, Any], inputs: InputShape, outputs: int) -> None:
        super().__init__()
        steps, features = sequence_shape(inputs)
        width = int(network["width"])
        self.embedding = nn.Linear(features, width)
        self.positions = Positions(steps, width)
        self.dropout = dropout_of(network, 0)
        self.blocks = nn.ModuleList(
            EncoderBlock(network, block) for block in range(int(network["layers"]))
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs)
        self.numbers_per_row = int(network["heads"]) * steps**2  # of attention weights

    def forward(self, x: Tensor) -> Tensor:
        """[B, …inputs] -> [B, outputs]."""
        x = self.dropout(self.positions(self.embedding(as_sequences(x))))  # [B, T, W]
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x).mean(1))  # type: ignore[no-any-return]


def use_torch_kernels(module: nn.Module) -> None:
    """Let every part of a network that has one use torch's own kernel: not under vmap."""
    for part in module.modules():
        if isinstance(part, Cells | EncoderBlock):
            part.written_out = False


def sequence_shape(inputs: InputShape) -> tuple[int, int]:
    """Return (T, F) of rows read as sequences."""
    match inputs:
        case (features,):
            return features, 1
        case (steps, features):
            return steps, features
        case (channels, height, width):
            return height, channels * width
    raise ShapeError(
        f"a sequence network needs rows of shape (steps, features), (features,) or "
        f"(channels, height, width), but got {inputs}"
    )


def as_sequences(x: Tensor) -> Tensor:
    """[B, …inputs] -> [B, T, F]."""
    if x.dim() == 2:
        return x.unsqueeze(-1)  # [B, T] -> [B, T, 1]
    # [B, C, H, W] -> [B, H, C·W]: a step is a line with all its channels.
    return x.transpose(1, 2).flatten(2) if x.dim() == 4 else x


def too_long(inputs: InputShape) -> str | None:
    """Return why a recurrent network on such rows does not fuse, or None."""
    steps, _ = sequence_shape(inputs)
    if steps <= MOST_FUSED_STEPS:
        return None
    return f"a recurrent network over {steps} steps is not fused; the most is {MOST_FUSED_STEPS}"
