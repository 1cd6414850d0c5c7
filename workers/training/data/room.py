"""Where the arrays of a data set lie: in memory as long as they fit there, else in mapped files.

A file is without a name from the start: it goes with the array that lies in it, and a trainer that
is killed leaves nothing behind. The system keeps in memory what is used of it, and lets go of that
when memory is wanted elsewhere.
"""

import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner_service.errors import DataError
from tuner_service.files import private_folder

STREAMED = "streamed"  # the files' directory under the data directory
GPU_SHARE = 0.5  # of the free memory, for one data set; networks need the rest
CPU_SHARE = 0.125  # which several workers share, and a data set is copied once as it is scaled
DISK_SHARE = 0.8  # of what is free, for one file: the database may lie on the same disk

_LESS = "free some of the disk, or bring less data (images: image_size, text: encode: ordinal)"


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that one data set may take.

    Attributes:
        device: Where the trials train.
        directory: Of the files.
        limit_bytes: Of memory; None: the shares above of what is free when it is asked for.
        process_bytes: What the whole process may hold of main memory; None: no bound.
    """

    device: torch.device
    directory: Path
    limit_bytes: int | None = None
    process_bytes: int | None = None

    def fits_device(self, size: int) -> bool:
        """Whether data of so many bytes may be held on the device."""
        if self.device.type == "cpu" or self.limit_bytes is not None:
            return self.fits_memory(size)
        return size <= int(free_on_gpu(self.device) * GPU_SHARE)

    def fits_memory(self, size: int) -> bool:
        """Whether data of so many bytes may be held in main memory."""
        if self.limit_bytes is not None:
            return size <= self.limit_bytes
        free: int = psutil.virtual_memory().available
        if self.process_bytes is not None:
            held = psutil.Process().memory_info()
            free = min(free, self.process_bytes - (held.rss - held.shared))
        return size <= int(free * CPU_SHARE)

    def array(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
        """Return an array to be filled, in main memory or in a file.

        Raises:
            DataError: The disk has no room for it.
        """
        if self.fits_memory(prod(shape) * dtype.itemsize):
            return np.empty(shape, dtype)
        return _mapped(self.directory, shape, dtype)

    def tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, streamed: bool, scattered: bool = False
    ) -> Tensor:
        """Return a tensor to be filled, on the device or, if it is to be streamed, in a file.

        Args:
            scattered: Its rows will be read in a random order.

        Raises:
            DataError: The disk has no room for it.
        """
        if not streamed:
            return torch.empty(shape, dtype=dtype, device=self.device)
        kind = np.dtype(str(dtype).removeprefix("torch."))
        return torch.from_numpy(_mapped(self.directory, shape, kind, scattered=scattered))


def free_on_gpu(device: torch.device) -> int:
    """Return how many bytes of a GPU's memory can be had."""
    # What torch keeps for later use is not free to CUDA. It is handed back rather than added: what
    # the pools of CUDA graphs keep is counted alike, and can be had by nobody else.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


def _mapped(
    directory: Path, shape: tuple[int, ...], dtype: "np.dtype[Any]", *, scattered: bool = False
) -> NDArray[Any]:
    size = max(1, prod(shape) * dtype.itemsize)
    try:
        private_folder(directory)
        free = shutil.disk_usage(directory).free
        if size > int(free * DISK_SHARE):
            raise DataError(
                f"the data needs a file of {size:,} bytes, more than {DISK_SHARE:.0%} of the "
                f"{free:,} that are free on its disk; {_LESS}"
            )
        with tempfile.TemporaryFile(dir=directory) as file:
            # Not a hole: a write to a page that the full disk cannot hold would kill the process.
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise DataError(
            f"the data needs a file of {size:,} bytes, which cannot be had: {error.strerror}; "
            f"{_LESS}"
        ) from error
    if scattered:
        mapped.madvise(mmap.MADV_RANDOM)  # or each row would bring its neighbours along
    return np.frombuffer(mapped, dtype, count=prod(shape)).reshape(shape)
