"""Data: reading, splitting, standardising, and keeping it on the device or in files."""

from workers.training.datasets.cache import DatasetCache
from workers.training.datasets.prepare import SOURCES, Part, PreparedData, prepare
from workers.training.datasets.room import STREAMED, Room
from workers.training.datasets.sources import Request

__all__ = [
    "SOURCES",
    "STREAMED",
    "DatasetCache",
    "Part",
    "PreparedData",
    "Request",
    "Room",
    "prepare",
]
