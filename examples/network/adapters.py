"""Low-rank adapters on a frozen transformer (docs/bring-a-network.md), all in one group.

LoRA (Hu et al. 2021): W x becomes W x + (alpha / rank) · up(down(x)), with W frozen. Adapters of
every rank have the same shapes here, up to MOST_RANK: a mask leaves out what is beyond. So rank,
alpha and dropout are values of a trial, the base is held once, and trials train side by side.

The base has random weights, the same in every trial; yours would come from a file (transfer.py).
"""

import torch
from torch import nn
from torch.nn import functional

from workers.nets import Dropout

per_trial = ("rank", "lora_alpha", "dropout")

MOST_RANK = 16
HEADS = 4


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a low-rank adapter."""

    def __init__(
        self, base: nn.Linear, *, rank: int, alpha: float, dropout: float, salt: int
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, MOST_RANK, bias=False)
        self.up = nn.Linear(MOST_RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)  # the network begins as the base
        self.dropout = Dropout(dropout, salt=salt)
        # Buffers, not numbers: in a group every trial has values of its own.
        self.register_buffer("mask", (torch.arange(MOST_RANK) < rank).float())  # [MOST_RANK]
        self.register_buffer("scale", torch.tensor(alpha / rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        low = self.down(self.dropout(x)) * self.mask  # [..., MOST_RANK]
        return self.base(x) + self.up(low) * self.scale


class Block(nn.Module):
    """Attention and a feed-forward layer, each on what is normalised before."""

    def __init__(self, width: int, first_salt: int, **adapter: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.requires_grad_(False)
        # As in the paper: queries and values.
        self.queries = AdaptedLinear(self.queries, salt=first_salt, **adapter)
        self.values = AdaptedLinear(self.values, salt=first_salt + 1, **adapter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, steps, width] -> the same."""
        y = self.norms[0](x)
        heads = [
            part(y)
            .unflatten(-1, (HEADS, -1))
            .transpose(1, 2)  # [rows, heads, steps, width / heads]
            for part in (self.queries, self.keys, self.values)
        ]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        x = x + self.output(mixed)
        return x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))


class Adapted(nn.Module):
    """A frozen encoder with adapters, and a head that is trained."""

    def __init__(
        self, features: int, outputs: int, *, width: int, layers: int, **adapter: float
    ) -> None:
        super().__init__()
        # Under a seed of their own, the base's weights are those of every trial.
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        self.embedding = nn.Linear(features, width).requires_grad_(False)
        self.blocks = nn.ModuleList(
            [Block(width, 2 * number, **adapter) for number in range(layers)]
        )
        torch.random.set_rng_state(state)
        for part in self.modules():
            if isinstance(part, AdaptedLinear):
                part.down.reset_parameters()  # the adapters begin under the trial's seed
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, steps, features], or an image [rows, 1, steps, features] -> [rows, outputs]."""
        x = self.embedding(x.flatten(1, -2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def build(
    inputs,
    outputs,
    rank: int = 4,
    lora_alpha: float = 8.0,
    dropout: float = 0.0,
    width: int = 64,
    layers: int = 2,
) -> nn.Module:
    """Build the network.

    Args:
        rank: Of the adapters, 1 to 16.
        lora_alpha: An adapter's output is added times lora_alpha / rank.
        dropout: Share of an adapter's inputs that a step leaves out.
        width: Of the base.
        layers: Of the base.
    """
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(f"rank must be 1 to {MOST_RANK}, but got {rank}")
    return Adapted(
        inputs[-1],
        outputs,
        width=width,
        layers=layers,
        rank=rank,
        alpha=lora_alpha,
        dropout=dropout,
    )
