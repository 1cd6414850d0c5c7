"""A script of the usual kind: arguments, a loop, lines that say how it goes. It knows no tuner.

    tuner run --trials 20 --metric val_acc:max --param lr=1e-3..1:log --param width=8,32,128 \\
        -- python examples/program/digits.py --lr {lr} --width {width}
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    inputs, targets = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(inputs))
    train, held_out = order[360:], order[:360]
    network = nn.Sequential(nn.Linear(64, given.width), nn.ReLU(), nn.Linear(given.width, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=given.lr, momentum=0.9)
    for epoch in range(1, given.epochs + 1):
        for rows in train.split(64):
            loss = nn.functional.cross_entropy(network(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = (network(inputs[held_out]).argmax(1) == targets[held_out]).float().mean()
        print(f"epoch {epoch}: loss={loss.item():.4f} val_acc={right.item():.4f}")


if __name__ == "__main__":
    main()
