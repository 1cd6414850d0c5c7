"""A classifier of texts as one writes it: embeddings, `nn.LSTM`, a linear layer; tokens made up."""

import numpy as np
import torch
from torch import nn

WORDS = 1000


class Classifier(nn.Module):
    """The last state of an LSTM over embedded tokens."""

    def __init__(self, outputs: int, width: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.lstm = nn.LSTM(width, units, batch_first=True)
        self.output = nn.Linear(units, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] or [B, T, 1] numbers of tokens -> [B, outputs]."""
        states, _ = self.lstm(self.embedding(tokens.flatten(1).long()))
        return self.output(states[:, -1])


def build(inputs, outputs, width: int = 32, units: int = 64) -> nn.Module:
    """Build the network.

    Args:
        width: Numbers that stand for a token.
        units: Of the recurrent layer.
    """
    del inputs
    return Classifier(outputs, width, units)


def load_data(rows: int = 6000, length: int = 40, classes: int = 4):
    """Return token numbers [rows, length], a class's own among them, and the classes.

    Args:
        rows: Texts.
        length: Tokens of a text.
        classes: Kinds of texts.
    """
    generator = np.random.default_rng(0)
    targets = np.arange(rows) % classes
    tokens = generator.integers(0, WORDS, (rows, length))
    own = generator.random((rows, length)) < 0.2
    return np.where(own, targets[:, None], tokens).astype(np.float32), targets
