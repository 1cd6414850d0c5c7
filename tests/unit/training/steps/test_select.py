"""Which backend a group gets, and why."""

import dataclasses
import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from tests.unit.training import lanes
from workers.training.nets import networks
from workers.training.steps import lane_budget, patience, probe, select
from workers.training.steps.fused import background, executors
from workers.training.steps.fused.executors import Traced
from workers.training.steps.fused.step import FusedStep
from workers.training.steps.native import library
from workers.training.steps.plain import PlainStep
from workers.training.steps.select import BackendSelector

CPU, PYTHON = torch.device("cpu"), sys.executable
LOCKS = "TORCHINDUCTOR_FILE_LOCK_TIMEOUT"
SMALL = {"type": "mlp", "hidden_units": 8}


@pytest.fixture
def family():
    """Registers a network for one test."""
    names = []

    def register(build, **options):
        networks.register("test_family", networks.Family(build, **options))
        names.append("test_family")
        return {"type": "test_family"}

    yield register
    for name in names:
        del networks.NETWORKS[name]


class Branching(nn.Module):
    """An `if` on a tensor, which vmap cannot take."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.output = nn.Linear(inputs[0], outputs)

    def forward(self, x):
        return self.output(x) if x.sum() > 0 else self.output(-x)


class Untruthful(nn.Module):
    """Gives other gradients under vmap than alone."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.output = nn.Linear(inputs[0], outputs)

    def forward(self, x):
        batched = torch._C._functorch.is_functorch_wrapped_tensor(x)
        return self.output(x) * (2.0 if batched else 1.0)


def test_group_that_does_not_want_fusing_runs_plain():
    spec = dataclasses.replace(lanes.group(SMALL), fuse=False, fuse_reason="training.fuse is false")
    selector = BackendSelector(CPU)
    assert selector.lanes_for(spec, 50) == 1
    step = selector.make_step(spec, 1)
    assert (step.backend, step.backend_reason) == ("plain", "training.fuse is false")


@pytest.mark.parametrize("probed", [False, True])
def test_group_of_one_optimizer_with_its_own_update_is_fused(monkeypatch, probed):
    monkeypatch.setattr(probe, "_timed", lambda step, rows, steps: 1.0 / step.lanes)
    spec = dataclasses.replace(lanes.group(SMALL), optimizer="lion")
    selector = BackendSelector(CPU, compile=False, probe=probed)
    step = selector.make_step(spec, selector.lanes_for(spec, 50))
    assert isinstance(step, FusedStep)
    hypers = [lanes.hyper("lion", seed=seed) for seed in range(step.lanes)]
    expected, _ = lanes.plain_curve(spec, hypers[3], 1)
    assert torch.allclose(lanes.curve(step, spec, hypers, 1)[:, 3], expected, rtol=1e-9)


def test_long_recurrence_runs_plain_and_says_why():
    spec = lanes.group({"type": "lstm", "hidden_units": 2}, shape=(129, 1), rows=4)
    selector = BackendSelector(CPU)
    step = selector.make_step(spec, selector.lanes_for(spec, 50))
    assert step.backend == "plain"
    assert "over 129 steps is not fused" in step.backend_reason


def test_large_activations_make_groups_small():
    network = {"type": "transformer", "width": 8, "heads": 2, "layers": 1}
    short, long = (
        lane_budget.group_sizes(lanes.group(network, shape=(steps, 1), rows=2000, batch_size=2000))[
            1
        ]
        for steps in (4, 60)
    )
    assert (short, long) == (32, 2)


def test_an_evaluation_holds_what_a_layer_puts_out_in_the_caches():
    rows = torch.zeros(3, 10)
    wide = nn.Sequential(nn.Linear(10, 12_288), nn.ReLU(), nn.Linear(12_288, 2))
    assert lane_budget.evaluation_rows(wide, rows, 4096) == 128
    assert lane_budget.evaluation_rows(wide, rows, 4096, lanes=4) == 32
    assert lane_budget.evaluation_rows(wide, rows, 4096, lanes=64) == lane_budget.FEWEST_ROWS
    assert lane_budget.evaluation_rows(nn.Linear(10, 2), rows, 4096) == 4096


def test_kept_numbers_are_those_of_the_backward_pass():
    linear = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    assert lane_budget.kept_numbers(linear, (5,)) == 5 + 7


def test_network_that_vmap_cannot_take_runs_plain_and_says_why(family):
    spec = lanes.group(family(lambda _, inputs, outputs: Branching(inputs, outputs)))
    selector = BackendSelector(CPU)
    assert selector.lanes_for(spec, 50) == 1
    step = selector.make_step(spec, 1)
    assert step.backend == "plain"
    assert "cannot be fused" in step.backend_reason
    assert lanes.epoch(step_with_trial(step), spec, [1], 0).isfinite().all()


def test_a_users_network_without_options_is_not_taken_for_native_code(family):
    build = family(lambda _, inputs, outputs: nn.Linear(inputs[0], outputs))
    selector = BackendSelector(CPU, cache=library.cache_directory(), compile=False, probe=False)
    spec = lanes.group(selector.group_network(build))
    assert selector.lanes_for(spec, 50) > 1


def test_network_declared_unfusible_is_not_tried(family):
    def build(network, inputs, outputs):
        raise AssertionError("built")

    spec, selector = lanes.group(family(build, fusible=False)), BackendSelector(CPU)
    assert selector.lanes_for(spec, 9) == 1
    assert selector.make_step(spec, 1).backend_reason == "network test_family cannot be fused"


def test_wrong_gradients_are_found_by_the_probe(family):
    spec = lanes.group(family(lambda _, inputs, outputs: Untruthful(inputs, outputs)))
    assert "weights differ by" in probe.probe(spec, FusedStep(spec, 2, Traced()))


@pytest.mark.parametrize("is_right", [True, False])
def test_what_differs_in_float32_is_decided_in_float64(family, monkeypatch, is_right):
    made = {True: nn.Linear, False: Untruthful}[is_right]
    build = family(lambda _, inputs, outputs: made(inputs[0] if is_right else inputs, outputs))
    spec = lanes.group(build, precision="float32")
    monkeypatch.setattr(probe, "TOLERANCE", probe.TOLERANCE | {torch.float32: -1.0})
    monkeypatch.setattr(probe, "ROUNDING", 1.0)
    unfaithful = probe.compare(spec, FusedStep(spec, 2, Traced())).unfaithful
    assert (unfaithful is None) == is_right


def test_a_network_with_batch_norm_is_faithful_in_float32(monkeypatch):
    network = {"type": "resnet", "stages": 2, "channels": 4, "norm": "batch"}
    spec = lanes.group(network, shape=(1, 8, 8), precision="float32")
    monkeypatch.setattr(probe, "TOLERANCE", probe.TOLERANCE | {torch.float32: 1e-9})
    assert probe.compare(spec, FusedStep(spec, 2, Traced())).unfaithful is None


def test_fused_step_that_does_not_pay_is_refused(monkeypatch):
    spec = lanes.group(SMALL)
    seconds = iter([1.0, 2.5])  # the plain step's lane, then both fused lanes
    monkeypatch.setattr(probe, "_timed", lambda *_: next(seconds))
    monkeypatch.setattr(probe, "_difference", lambda *_: 0.0)
    reason = probe.probe(spec, FusedStep(spec, 2, Traced()))
    assert reason == "fusing does not pay: 0.80 times the plain step's speed"


def test_probe_passes_where_results_agree(monkeypatch):
    spec = lanes.group(SMALL)
    monkeypatch.setattr(probe, "_timed", untimed(probe._timed))
    assert probe.probe(spec, FusedStep(spec, 2, Traced())) is None


def test_group_has_two_sizes_and_does_not_shrink():
    spec, selector = lanes.group(SMALL), BackendSelector(CPU, probe=False)
    small, full = lane_budget.group_sizes(spec)
    assert 1 <= small < full
    assert selector.lanes_for(spec, 1) == small
    assert selector.lanes_for(spec, small + 1) == full
    assert selector.lanes_for(spec, 1) == full


def test_wider_networks_get_fewer_lanes():
    narrow, wide = (lanes.group({"type": "mlp", "hidden_units": w}) for w in (32, 1024))
    assert lane_budget.group_sizes(wide)[1] < lane_budget.group_sizes(narrow)[1]


def test_group_network_is_without_dropout_and_bucketed():
    network = {"type": "mlp", "hidden_units": 33, "dropout": 0.5}
    assert BackendSelector(CPU).group_network(network) == {"type": "mlp", "hidden_units": 48}


@pytest.mark.parametrize("lost", ["compiler", "header"])
def test_missing_compiler_leaves_the_traced_graph_and_says_so(monkeypatch, tmp_path, lost):
    if lost == "compiler":
        monkeypatch.setattr(executors.shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(executors.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    step = BackendSelector(CPU, probe=False).make_step(lanes.group(SMALL), 2)
    assert step.backend == "traced"
    assert {"compiler": "g++", "header": "Python.h"}[lost] in step.backend_reason


@pytest.mark.parametrize(
    ("found", "cc", "said"),
    [
        ("cc", None, "no C compiler for Triton (gcc, clang)"),
        ("clang", None, None),
        ("gcc", "/opt/other", "no C compiler for Triton (/opt/other)"),
        ("/opt/other", "/opt/other", None),
    ],
)
def test_compiler_for_a_gpu_is_looked_for_as_triton_does(monkeypatch, found, cc, said):
    monkeypatch.delenv("CC", raising=False)
    if cc is not None:
        monkeypatch.setenv("CC", cc)
    monkeypatch.setattr(executors.shutil, "which", lambda name: name if name == found else None)
    assert executors.missing_tool(torch.device("cuda")) == said


def test_triton_needs_the_header_of_python(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(executors.shutil, "which", lambda name: name)
    monkeypatch.setattr(executors.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in executors.missing_tool(torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_step_is_compiled_when_the_background_compilation_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    spec, selector = lanes.group(SMALL, batch_size=35), BackendSelector(CPU, probe=False)
    step = selector.make_step(spec, 2)
    for lane in (0, 1):
        step.put(lane, lanes.hyper(seed=lane), None)
    lanes.epoch(step, spec, [0, 1], 0)
    assert (step.backend, step.backend_reason) == ("traced", "compiling in the background")
    (job,) = selector._precompiler._jobs.values()
    job._process.wait()
    lanes.epoch(step, spec, [0, 1], 1)
    assert (step.backend, step.backend_reason) == ("compiled", None)
    reference, _ = lanes.plain_curve(spec, lanes.hyper(seed=1), 3)
    assert torch.allclose(lanes.epoch(step, spec, [0, 1], 2)[1], reference[2], rtol=1e-9)
    selector.close()


def test_failed_background_compilation_leaves_the_traced_graph(monkeypatch):
    spec, selector = lanes.group(SMALL), BackendSelector(CPU, probe=False)
    monkeypatch.setattr(selector._precompiler, "start", lambda recipe: FailedJob())
    step = selector.make_step(spec, 1)
    step.put(0, lanes.hyper(), None)
    lanes.epoch(step, spec, [1], 0)
    lanes.epoch(step, spec, [1], 1)
    assert (step.backend, step.backend_reason) == ("traced", "no luck")


@pytest.mark.parametrize("lost", [TimeoutError("held"), torch.OutOfMemoryError("full")])
def test_compiled_code_that_cannot_be_loaded_leaves_the_traced_graph(monkeypatch, lost):
    def locked(graph, stacked):
        raise lost

    spec, selector, job = lanes.group(SMALL), BackendSelector(CPU, probe=False), ChildAtWork()
    job.done = True
    monkeypatch.setattr(selector._precompiler, "start", lambda recipe: job)
    monkeypatch.setattr(executors, "compiled", locked)
    step = selector.make_step(spec, 1)
    step.put(0, lanes.hyper(), None)
    lanes.epoch(step, spec, [1], 0)
    assert lanes.epoch(step, spec, [1], 1).isfinite().all()
    assert step.backend == "traced"
    assert step.backend_reason.endswith(str(lost))


def test_a_compiling_child_waits_for_the_one_that_compiles_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(LOCKS, "1")
    code = "import os, json; print(json.dumps({'failure': os.environ['" + LOCKS + "']}))"
    script = tmp_path / "child.py"
    script.write_text(code)
    popen = background.subprocess.Popen
    monkeypatch.setattr(
        background.subprocess, "Popen", lambda _, **given: popen([PYTHON, str(script)], **given)
    )
    assert background.Job("{}").failure == "-1"


class FailedJob:
    done = True
    failure = "no luck"


def step_with_trial(step):
    step.put(0, lanes.hyper(), None)
    return step


def untimed(timed):
    """Train as the probe does, but say that the fused step was the faster."""

    def run(step, rows, steps):
        timed(step, rows, steps)
        return 1.0 if isinstance(step, PlainStep) else 0.1

    return run


def test_a_group_that_must_be_traced_trains_plain_first():
    now = [100.0]
    selector = BackendSelector(
        CPU, compile=False, probe=False, patience_seconds=3.0, clock=lambda: now[0]
    )
    spec = lanes.group(SMALL)
    assert selector.lanes_for(spec, 50) == 1
    step = selector.make_step(spec, 1)
    assert (step.backend, step.backend_reason) == ("plain", patience.WAITING)
    now[0] += 2.9
    assert selector.lanes_for(spec, 50) == 1
    now[0] += 0.2
    width = selector.lanes_for(spec, 50)
    assert width > 1
    assert isinstance(selector.make_step(spec, width), FusedStep)


def test_a_trial_by_itself_is_never_traced(monkeypatch):
    def trace(*_):
        raise AssertionError("traced")

    monkeypatch.setattr(FusedStep, "__init__", trace)
    now = [100.0]
    selector = BackendSelector(CPU, probe=False, patience_seconds=3.0, clock=lambda: now[0])
    spec = lanes.group(SMALL)
    for _ in range(3):
        assert selector.lanes_for(spec, 1) == 1
        step = selector.make_step(spec, 1)
        assert (step.backend, step.backend_reason) == ("plain", patience.WAITING)
        now[0] += 1e6
    assert selector.lanes_for(spec, 2) > 1  # with another it is


class ChildAtWork:
    done = False
    failure = None


def test_trials_stay_plain_until_compiled_code_is_there_if_the_traced_graph_is_slower(monkeypatch):
    monkeypatch.setattr(probe, "_timed", lambda step, rows, steps: 1.0 * steps)
    spec, selector, job = lanes.group(SMALL), BackendSelector(CPU), ChildAtWork()
    monkeypatch.setattr(selector._precompiler, "start", lambda recipe: job)
    monkeypatch.setattr(executors, "compiled", lambda graph, stacked: executors._spread(graph))
    width = selector.lanes_for(spec, 4)
    step = selector.make_step(spec, width)
    assert isinstance(step_of_trials(step, spec), FusedStep)
    assert selector.measured(spec, step, 4, seconds=4.9)  # no more than the machine's load
    assert not selector.measured(spec, step, 4, seconds=5.1)
    assert selector.lanes_for(spec, 4) == 1
    assert selector.make_step(spec, 1).backend_reason == select.COMPILING
    job.done = True
    assert selector.lanes_for(spec, 4) == width
    step = selector.make_step(spec, width)
    step_of_trials(step, spec)
    assert selector.lanes_for(spec, 4) == width  # and not judged by the traced graph's first slice
    lanes.epoch(step, spec, [1] * width, 1)
    assert step.backend == "compiled"
    assert selector.measured(spec, step, 4, seconds=2.0)
    assert selector.lanes_for(spec, 4) == width
    assert selector.lanes_for(spec, 1) == 1  # idle lanes count
    assert "does not pay: 0.50 times" in selector.make_step(spec, 1).backend_reason
    assert selector.lanes_for(spec, 2) == width


def step_of_trials(step, spec):
    for lane in range(step.lanes):
        step.put(lane, lanes.hyper(seed=lane), None)
    lanes.epoch(step, spec, [1] * step.lanes, 0)
    return step


def test_steps_of_groups_that_never_come_again_are_not_kept():
    selector = BackendSelector(CPU, compile=False, probe=False, patience_seconds=3.0)
    spec = lanes.group(SMALL)
    selector.lanes_for(spec, 50)
    step = weakref.ref(selector.make_step(spec, 1))
    gc.collect()
    assert step() is None


def test_one_that_cannot_be_traced_says_so_once_it_is_known(family):
    now = [100.0]
    selector = BackendSelector(CPU, compile=False, patience_seconds=3.0, clock=lambda: now[0])
    spec = lanes.group(family(lambda _, inputs, outputs: Branching(inputs, outputs)))
    assert selector.lanes_for(spec, 50) == 1
    step = selector.make_step(spec, 1)
    now[0] += 3.1
    assert selector.lanes_for(spec, 50) == 1
    assert step.backend == "plain"
    assert step.backend_reason.startswith("cannot be fused")


def test_native_code_and_declared_refusals_wait_for_nothing(tmp_path):
    selector = BackendSelector(CPU, cache=library.cache_directory(), patience_seconds=3.0)
    assert selector.lanes_for(lanes.group(selector.group_network(SMALL)), 50) > 1
    spec = dataclasses.replace(lanes.group(SMALL), fuse=False, fuse_reason="training.fuse is false")
    assert selector.lanes_for(spec, 50) == 1
    assert selector.make_step(spec, 1).backend_reason == "training.fuse is false"
