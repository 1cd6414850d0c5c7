"""Transfer learning (docs/bring-a-network.md): a frozen backbone, and a head that is searched.

The backbone has random weights here, the same in every trial. Yours would come from a file:

    weights = torch.load(Path(__file__).with_name("backbone.pt"), weights_only=True)
    self.backbone.load_state_dict(weights)
"""

import torch
from torch import nn

from workers.nets import Dropout

cache_features = True  # the backbone sees each row once, not in every epoch of every trial
per_trial = ("dropout",)  # trials that differ in it alone train together


class Transfer(nn.Module):
    """Two convolutions that are not trained, and a linear head."""

    def __init__(self, channels: int, outputs: int, dropout: float) -> None:
        super().__init__()
        # Drawn from a generator of its own: under the trial's seed each trial would have another.
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        torch.random.set_rng_state(state)
        self.backbone.requires_grad_(False)
        self.dropout = Dropout(dropout, salt=0)
        self.head = nn.Linear(64 * 4 * 4, outputs)

    def train(self, mode: bool = True) -> "Transfer":
        """Keep the backbone in evaluation mode: its batch norm has what it was trained with."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] -> [rows, 1024]."""
        return self.backbone(x)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """[rows, 1024] -> [rows, outputs]."""
        return self.head(self.dropout(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] -> [rows, outputs]."""
        return self.forward_head(self.forward_features(x))


def build(inputs, outputs, dropout: float = 0.0) -> nn.Module:
    """Build the network.

    Args:
        dropout: Share of the features that a step leaves out.
    """
    return Transfer(inputs[0], outputs, dropout)
