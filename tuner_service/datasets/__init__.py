"""Uploaded data sets: the files, what is in them, and which version a name stands for."""

from tuner_service.datasets.store import DatasetStore, Receiver

__all__ = ["DatasetStore", "Receiver"]
