"""Networks that do what they should not: their own trial fails, and no other notices."""

import functools
import gc
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.registries import registries
from tests.unit.training.builders import of, only, run_all, spec, start
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.engine.process_state import LIMITED, LIMITED_SAYS, ProcessStateGuard
from workers.training.engine.torch_names import TorchNames

__all__ = ["registries"]
pytestmark = pytest.mark.usefixtures("registries")

MODULE = """
import os, resource, sys, threading, time
import torch
from torch import nn
{top}

HARD_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
HARD_STACK = resource.getrlimit(resource.RLIMIT_STACK)[1]

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.line = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training:
            {forward}
        return self.line(x)

def build(inputs, outputs):
    {build}
    return Net(inputs[0], outputs)
"""

BESIDE = {1: spec(), 3: spec(batch_size=8)}


def run_beside(folder: Path, *, place: str, deed: str) -> list[Any]:
    """Run a trial of the module between two of a built-in network, whose results must not move."""
    source = MODULE.format(**{"top": "", "build": "pass", "forward": "pass", place: deed})
    (folder / "odd.py").write_text(source)
    odd = spec(network={"type": "odd"}, batch_size=32)
    starts = [
        start(1, BESIDE[1], folder=folder),
        start(2, odd, folder=folder, log=str(folder / "2.log")),
        start(3, BESIDE[3], folder=folder),
    ]
    events = run_all(Engine("cpu", settings=EngineSettings(modules_dir=folder)), starts)
    for trial in BESIDE:
        assert only(events, trial, "finished").values == values_alone(trial)
    return of(events, 2)


@functools.cache
def values_alone(trial: int) -> Any:
    events = run_all(Engine("cpu"), [start(trial, BESIDE[trial], folder=Path("unused"))])
    return only(events, trial, "finished").values


RAISES = {
    "raises": "raise RuntimeError('odd')",
    "exits": "sys.exit(3)",
    "interrupts": "raise KeyboardInterrupt('odd')",
    "base": "raise GeneratorExit('odd')",
}


@pytest.mark.parametrize("place", ["build", "forward"])
@pytest.mark.parametrize("deed", RAISES.values(), ids=RAISES)
def test_what_it_raises_is_its_own_failure(tmp_path: Path, place: str, deed: str) -> None:
    failed = run_beside(tmp_path, place=place, deed=deed)[-1]
    assert failed.type == "failed"
    assert failed.failure.kind == "user_code"
    assert "odd.py" in failed.failure.traceback
    assert "odd.py" in (tmp_path / "2.log").read_text()


STATE = {
    "dtype": "torch.set_default_dtype(torch.float64)",
    "grad": "torch.set_grad_enabled(False)",
    "threads": "torch.set_num_threads(3)",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "device": "torch.set_default_device('meta')",
    "products": "torch.set_float32_matmul_precision('medium')",
    "convolutions": "torch.backends.cudnn.benchmark = True",
    "exact": "torch.backends.cudnn.deterministic = True",
    "cwd": "os.chdir('/')",
    "gone": "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    "stdout": "sys.stdout.close()",
    "descriptor": "os.close(1)",
    "replaced": "sys.stdout = None",
    "seed": "torch.manual_seed(1)",
    "files": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, HARD_FILES))",
    "stack": "resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, HARD_STACK))",
    "umask": "os.umask(0o777)",
    "depth": "sys.setrecursionlimit(200)",
    "thread": "threading.Thread(target=lambda: time.sleep(0.1), daemon=True).start()",
}


@pytest.mark.parametrize("place", ["build", "forward"])
@pytest.mark.parametrize("deed", STATE.values(), ids=STATE)
def test_what_it_does_to_the_process_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, deed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state()
    run_beside(tmp_path, place=place, deed=deed)
    assert state() == before


PATCHES = {
    "relu": ("torch.relu = torch.tanh", "torch.relu"),
    "functional": ("nn.functional.linear = lambda x, w, b=None: x @ w.T", "nn.functional.linear"),
    "class": ("nn.Linear.forward = lambda self, x: self.weight.sum() * x", "Linear.forward"),
    "tensor": ("torch.Tensor.mean = torch.Tensor.sum", "torch.Tensor.mean"),
    "step": ("torch.optim.SGD.step = lambda self, closure=None: None", "SGD.step"),
    "name": ("torch.optim.Adam = torch.optim.SGD", "torch.optim.Adam"),
    "wrapped": (
        "import functools; f = torch.tanh; torch.tanh = functools.wraps(f)(lambda x: x)",
        "torch.tanh",
    ),
}


@pytest.mark.parametrize("place", ["top", "build", "forward"])
@pytest.mark.parametrize(("deed", "name"), PATCHES.values(), ids=PATCHES)
def test_what_it_replaces_in_torch_fails_its_trial_and_no_other_notices(
    tmp_path: Path, place: str, deed: str, name: str
) -> None:
    last = run_beside(tmp_path, place=place, deed=deed)[-1]
    assert (last.type, last.failure.kind) == ("failed", "user_code")
    assert f"{name}, which other trials use too" in last.failure.message
    assert "training loop" in last.failure.message
    assert not TorchNames().put_back()


def test_a_patch_of_what_it_imports_fails_every_trial_of_it(tmp_path: Path) -> None:
    (tmp_path / "patching_library.py").write_text("import torch\ntorch.relu = torch.tanh\n")
    (tmp_path / "odd.py").write_text(
        MODULE.format(top="import patching_library", build="pass", forward="pass")
    )
    starts = [start(i, spec(network={"type": "odd"}), folder=tmp_path) for i in (1, 2)]
    events = run_all(Engine("cpu", settings=EngineSettings(modules_dir=tmp_path)), starts)
    assert all("torch.relu" in only(events, i, "failed").failure.message for i in (1, 2))


def test_what_torch_wraps_of_its_own_is_no_patch() -> None:
    names = TorchNames()
    line = torch.nn.Linear(2, 2)
    torch.optim.Adadelta(line.parameters())
    torch.compile(line, backend="eager")(torch.ones(1, 2))
    assert names.put_back() == []


LIMIT = """
import os, resource
from workers.training.engine.process_state import ProcessStateGuard
from workers.training.engine.torch_names import TorchNames

def refuse(*_):
    raise ValueError("not allowed to raise maximum limit")

with ProcessStateGuard(TorchNames()).restored():
    os.close(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (5000, hard))
    resource.setrlimit = refuse  # as the system does, to those without privileges
"""


def test_a_limit_that_is_lowered_for_good_ends_the_process_also_without_its_log() -> None:
    done = subprocess.run([sys.executable, "-c", LIMIT], capture_output=True, timeout=60.0)
    assert (done.returncode, done.stderr) == (LIMITED, LIMITED_SAYS)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_a_process_that_it_forks_is_no_second_trainer(tmp_path: Path) -> None:
    assert run_beside(tmp_path, place="build", deed="os.fork()")[-1].type == "finished"


def state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), Path.cwd(), sys.stdout, sys.stdout.closed,
        os.fstat(1).st_ino, torch.get_default_device(), sys.getrecursionlimit(), umask(),
        resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_STACK),
        torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )  # fmt: skip


def umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_an_engine_that_is_gone_holds_no_descriptors() -> None:
    descriptors = Path("/proc/self/fd")
    gc.collect()
    before = len(list(descriptors.iterdir()))
    guard = ProcessStateGuard(TorchNames())
    assert len(list(descriptors.iterdir())) == before + 3
    del guard
    assert len(list(descriptors.iterdir())) == before
