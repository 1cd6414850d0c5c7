"""Tests that ask the fake device what it saw, or break it; elsewhere they are left out.

Their modules import the fake GPU, which must come before torch: only `python -m tests.fake_gpu`
does so, and nobody else collects them.
"""

import sys

import pytest

collect_ignore_glob = [] if "tests.fake_gpu.device" in sys.modules else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.gpu)
