"""Data: reading, splitting, standardising, and keeping it on the device or in files."""

from workers.training.data.cache import DatasetCache
from workers.training.data.prepare import SOURCES, Part, PreparedData, prepare
from workers.training.data.room import STREAMED, Room
from workers.training.data.sources import Request

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
