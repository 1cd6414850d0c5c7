"""Prepared data of a warm trainer, kept on the device, least recently used out first."""

from collections import OrderedDict
from pathlib import Path

import torch

from tuner_service.definition.spec import DatasetSpec
from workers.training.datasets.prepare import SOURCES, PreparedData, prepare
from workers.training.datasets.sources import Request
from workers.training.losses import TargetKind

DEFAULT_MAX_BYTES = 2 << 30


class DatasetCache:
    """Data sets by specification, target kind and dtype.

    A file that changes on disk is read again: size and time of change are part of the key.

    Args:
        directories: Where files may lie, the first that has one wins.
        max_bytes: Bound on what is kept; the data asked for last is always kept.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        directories: tuple[Path, ...],
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._device = device
        self._directories = directories
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[object, ...], PreparedData] = OrderedDict()

    def get(self, spec: DatasetSpec, *, targets: TargetKind, dtype: torch.dtype) -> PreparedData:
        """Return the prepared data of `spec`.

        Raises:
            DataError: the data cannot be read or does not fit.
        """
        request = Request(spec.name, spec.options, targets, self._directories)
        key = (spec.model_dump_json(), targets, dtype, self._stamps(request))
        data = self._kept.get(key)
        if data is None:
            data = prepare(spec, request, dtype=dtype, device=self._device)
            self._kept[key] = data
        self._kept.move_to_end(key)
        self._evict()
        return data

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
