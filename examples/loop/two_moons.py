"""Two moons, told apart by a small network: a training loop from data to weights."""

import torch
from torch import nn


def moons(rows: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points [rows, 2] on two half circles, and which of the two each is on."""
    angle = torch.rand(rows) * torch.pi
    side = torch.arange(rows) % 2
    across = torch.where(side == 0, torch.cos(angle), 1 - torch.cos(angle))
    up = torch.where(side == 0, torch.sin(angle), 0.5 - torch.sin(angle))
    return torch.stack([across, up], dim=1) + noise * torch.randn(rows, 2), side


def train(trial, learning_rate: float, width: int = 16, epochs: int = 20, noise: float = 0.2):
    """Train one network.

    Args:
        learning_rate: Of Adam.
        width: Units of the hidden layer.
        epochs: Passes over the data.
        noise: How far the points lie from their half circle.
    """
    inputs, targets = moons(800, noise)
    inputs, targets = inputs.to(trial.device), targets.to(trial.device)
    network = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).to(trial.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    checkpoint = trial.checkpoint_dir / "last.pt"
    done = 0
    if checkpoint.exists():
        done, weights, state = torch.load(checkpoint)
        network.load_state_dict(weights)
        optimizer.load_state_dict(state)

    for epoch in range(done + 1, epochs + 1):
        for rows in torch.randperm(600, device=trial.device).split(32):
            loss = nn.functional.cross_entropy(network(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = network(inputs[600:]).argmax(dim=1) == targets[600:]
        trial.log_metrics(train_loss=loss.item())
        trial.report(epoch, right.float().mean().item())
        torch.save((epoch, network.state_dict(), optimizer.state_dict()), checkpoint)
        if trial.should_prune():
            return
    trial.save_model(network)
