"""Hyperparameter tuning service for PyTorch: definitions, search, storage, lifecycle, REST."""

__version__ = "0.1.0"
