"""The pytest plugin (`-p tests.fake_gpu.plugin`): the session's torch has the fake GPU.

Engines that tests make train on it, whatever device they ask for, and so do the groups of
`tests.unit.training.lanes`.
"""

import atexit
import dataclasses
import os
import sys

import pytest

from tests.fake_gpu import device

_STATUS = [0]


def pytest_configure(config: pytest.Config) -> None:
    device.install()
    _put_on_gpu()
    atexit.register(_leave)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _STATUS[0] = int(exitstatus)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_STATUS[0])  # autograd's thread of the device does not end by itself


@pytest.fixture(autouse=True)
def _healthy_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr("workers.training.steps.lane_budget.GPU_LANES", (1, 32))
    yield
    device.heal()


def _put_on_gpu() -> None:
    import torch  # noqa: PLC0415  `device` must come before

    from tests.unit.training import lanes  # noqa: PLC0415
    from workers.training.engine import engine  # noqa: PLC0415
    from workers.training.steps import select  # noqa: PLC0415
    from workers.training.steps.fused import executors  # noqa: PLC0415

    gpu, group = torch.device("cuda"), lanes.group

    def on_gpu(*args, **kwargs):
        made = group(*args, **kwargs)
        rows, targets = made.train_inputs.to(gpu), made.train_targets.to(gpu)
        return dataclasses.replace(made, device=gpu, train_inputs=rows, train_targets=targets)

    lanes.group = on_gpu
    engine.device_of = lambda name: gpu
    # No code for this device: the traced graph stands for it, captured and replayed alike.
    executors.compiled = lambda graph, arena: executors._spread(graph)
    select.missing_tool = lambda device: None
    select.Precompiler = CompiledAtOnce


class CompiledAtOnce:
    """In place of the compiling child processes, which would not have the device."""

    done = True
    failure = None

    def start(self, recipe: str) -> "CompiledAtOnce":
        del recipe
        return self

    def close(self) -> None: ...
