"""Prepared data of a warm trainer, kept where it lies, least recently used out first."""

import tempfile
from collections import OrderedDict
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from tuner_service.definition.trial_spec import DatasetSpec
from workers.training.data.prepare import SOURCES, PreparedData, prepare
from workers.training.data.room import Room
from workers.training.data.sources import Request
from workers.training.nets.losses import TargetKind

DEFAULT_MAX_BYTES = 2 << 30

_Key = tuple[object, ...]


class DatasetCache:
    """Data sets by specification, target kind and dtype.

    A file that changes on disk is read again: size and time of change are part of the key.

    Args:
        directories: Where files may lie, the first that has one wins.
        room: Where it may lie; by default on the device, or in files for temporary ones.
        max_bytes: Bound on what is kept; the data asked for last is always kept.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        directories: tuple[Path, ...],
        room: Room | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._room = room or Room(device, Path(tempfile.gettempdir()))
        self._directories = directories
        self._max_bytes = max_bytes
        self._kept: OrderedDict[_Key, PreparedData] = OrderedDict()
        # Also what went out but is still trained on: it is in memory, and would be there twice.
        self._alive: WeakValueDictionary[_Key, PreparedData] = WeakValueDictionary()

    def get(self, spec: DatasetSpec, *, targets: TargetKind, dtype: torch.dtype) -> PreparedData:
        """Return the prepared data of `spec`.

        Raises:
            DataError: the data cannot be read or does not fit.
        """
        request = Request(
            spec.name, spec.options, targets, self._directories, self._room, spec.split.column
        )
        key = (spec.model_dump_json(), targets, dtype, self._stamps(request))
        data = self._alive.get(key)
        if data is None:
            data = self._alive[key] = prepare(spec, request, dtype=dtype)
        self._kept[key] = data
        self._kept.move_to_end(key)
        self._evict()
        return data

    def let_go(self) -> bool:
        """Forget data that nobody trains on, but for that asked for last.

        Returns:
            Whether there was any.
        """
        before = len(self._alive)
        while len(self._kept) > 1:
            self._kept.popitem(last=False)
        return len(self._alive) < before

    def _stamps(self, request: Request) -> tuple[tuple[str, int, int], ...]:
        source = SOURCES.get(request.name)
        files = source.files(request) if source else ()
        stats = [(str(file), file.stat()) for file in files]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    def _evict(self) -> None:
        total = sum(data.nbytes for data in self._kept.values())
        while total > self._max_bytes and len(self._kept) > 1:
            _, data = self._kept.popitem(last=False)
            total -= data.nbytes
