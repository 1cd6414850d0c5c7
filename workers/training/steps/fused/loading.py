"""Trials on their way into lanes: gathered on the host, and copied to the device together.

A copy from ordinary memory to a GPU is waited for. One per tensor and trial, 27 for two hidden
layers, took longer than a small network trains; these are one per dtype, whatever the number of
trials.

    n   trials that come in together
    N   numbers of one lane, of one dtype
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.steps.fused.padding import embed

GATHERED_BYTES = 64 << 20  # after which they are copied, however many more may come

Named = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor's part of a lane's numbers: `start` to `stop` of those of its dtype."""

    wide: Tensor  # [K, …]
    start: int
    stop: int


class LaneLoader:
    """Writes rows of stacked tensors.

    Args:
        tensors: Name -> [K, …], each written as a whole row.
        zeroed: Those of which a row may be left out, which is zero then.
    """

    def __init__(self, tensors: Named, zeroed: Iterable[str] = ()) -> None:
        self._device = next(iter(tensors.values())).device
        self._zeroed = frozenset(zeroed)
        self._places: dict[str, _Place] = {}
        self._sizes: dict[torch.dtype, int] = {}  # N
        for name, wide in tensors.items():
            start = self._sizes.get(wide.dtype, 0)
            stop = self._sizes[wide.dtype] = start + wide[0].numel()
            self._places[name] = _Place(wide, start, stop)
        self._rows: dict[int, dict[torch.dtype, Tensor]] = {}  # lane -> dtype -> [N]

    def put(self, lane: int, rows: Named) -> None:
        """Take a lane's rows, in its own shapes; nothing is kept of them.

        Raises:
            KeyError: One is missing.
        """
        gathered = {dtype: torch.zeros(size, dtype=dtype) for dtype, size in self._sizes.items()}
        for name, place in self._places.items():
            if name in rows or name not in self._zeroed:
                part = gathered[place.wide.dtype][place.start : place.stop]
                embed(part.view(place.wide.shape[1:]), rows[name])
        self._rows[lane] = gathered
        if len(self._rows) * self._bytes > GATHERED_BYTES:
            self.flush()

    @property
    def _bytes(self) -> int:
        return sum(dtype.itemsize * size for dtype, size in self._sizes.items())

    def flush(self) -> None:
        """Copy what was put to the device."""
        if not self._rows:
            return
        lanes = torch.tensor(list(self._rows)).to(self._device)  # [n]
        stacked = {
            dtype: torch.stack([row[dtype] for row in self._rows.values()]).to(self._device)
            for dtype in self._sizes
        }  # [n, N]
        for place in self._places.values():
            part = stacked[place.wide.dtype][:, place.start : place.stop]
            place.wide.index_copy_(0, lanes, part.reshape(-1, *place.wide.shape[1:]))
        self._rows.clear()
