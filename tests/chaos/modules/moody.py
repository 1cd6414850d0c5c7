"""A network that misbehaves as its mood says; what a user may bring."""

import ctypes
import os
import signal
import sys
import time

from torch import Tensor, nn

LONG_SECONDS = 3600
DEEDS = {
    "hang": lambda: time.sleep(LONG_SECONDS),
    "gil": lambda: ctypes.PyDLL(None).sleep(LONG_SECONDS),  # and no other thread runs
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segv": lambda: ctypes.string_at(0),
    "close": lambda: os.closerange(3, 1 << 10),
}


class Moody(nn.Module):
    """A linear layer behind a mood."""

    def __init__(self, inputs: int, outputs: int, mood: str) -> None:
        super().__init__()
        self.mood = mood
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.mood in DEEDS:
            DEEDS[self.mood]()
        if self.mood == "greedy":
            bytearray(1 << 50)
        output: Tensor = self.layer(x)
        return output * float("nan") if self.mood == "nan" else output


def build(inputs, outputs, mood: str = "calm") -> nn.Module:  # type: ignore[no-untyped-def]
    if mood == "exit":
        sys.exit(3)
    if mood == "die":
        os._exit(3)
    return Moody(inputs[0], outputs, mood)
