"""Room for a data set in tests."""

from pathlib import Path

import torch

from workers.training.data.room import Room


def room(folder: Path) -> Room:
    return Room(torch.device("cpu"), folder / "streamed")
