"""The command line of processes that train: where data and modules lie, and the device."""

import argparse
from pathlib import Path

from tuner_service.data_directory import DataDirectory


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add what every such process is told."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--dataset-dir", type=Path, action="append", default=[])
    parser.add_argument("--modules", type=Path)


def data_directories(options: argparse.Namespace) -> tuple[Path, ...]:
    """Return where data files may lie, the first to look in first."""
    return (*options.dataset_dir, DataDirectory(options.data_dir).datasets, options.data_dir)
