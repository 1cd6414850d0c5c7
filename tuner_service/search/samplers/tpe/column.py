"""A one-dimensional NumPy array with room to grow."""

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

ScalarT = TypeVar("ScalarT", bound=np.generic)


class Column(Generic[ScalarT]):
    """Values in order; inserting or removing one moves only what stands after it."""

    def __init__(self, dtype: type[ScalarT]) -> None:
        self._room: NDArray[ScalarT] = np.empty(16, dtype=dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> NDArray[ScalarT]:
        """A view of the values; valid until the next insert."""
        return self._room[: self._length]

    def replace(self, values: NDArray[ScalarT]) -> None:
        """Hold these values instead."""
        self._length = len(values)
        self._reserve(self._length)
        self._room[: self._length] = values

    def insert(self, position: int, value: float) -> None:
        """Put a value before what now stands at `position`."""
        self._reserve(self._length + 1)
        end = self._length
        self._room[position + 1 : end + 1] = self._room[position:end]
        self._room[position] = value
        self._length += 1

    def remove(self, position: int) -> None:
        """Take out the value at `position`."""
        end = self._length
        self._room[position : end - 1] = self._room[position + 1 : end]
        self._length -= 1

    def _reserve(self, length: int) -> None:
        if length > len(self._room):
            room = np.empty(max(length, 2 * len(self._room)), dtype=self._room.dtype)
            kept = min(self._length, len(self._room))
            room[:kept] = self._room[:kept]
            self._room = room
