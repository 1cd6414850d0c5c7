"""Tests that ask the fake device what it saw, or break it; elsewhere they are left out."""

import sys

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(__file__.rpartition("/")[0])]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if "tests.fake_gpu.device" not in sys.modules:
            item.add_marker(pytest.mark.skip(reason="needs `python -m tests.fake_gpu`"))
