"""Data: reading, splitting, standardising, and keeping it on the device."""

from workers.training.datasets.cache import DatasetCache
from workers.training.datasets.prepare import SOURCES, Part, PreparedData, prepare
from workers.training.datasets.sources import Request

__all__ = ["SOURCES", "DatasetCache", "Part", "PreparedData", "Request", "prepare"]
