"""A device that answers nothing any more is blamed on whose turn it was, and on nobody else."""

import pytest
import torch

from tests.fake_gpu import device, runs
from tests.unit.training import builders
from workers.protocol.messages import Failed, Stopped
from workers.trainer.main import pick_device
from workers.training.nets import networks
from workers.training.trials.failures import DeviceLostError, is_out_of_memory

GUILTY_UNITS, INNOCENT_UNITS = 17, 8


@pytest.fixture
def assertion(monkeypatch):
    """A device-side assert in the third forward pass of the guilty trial's network."""
    forward, calls = networks.Mlp.forward, []

    def asserting(module, rows):
        if rows.is_cuda and module.hidden[0].out_features == GUILTY_UNITS:
            calls.append(1)
            device.native.set_broken(len(calls) == 3)
        return forward(module, rows)

    monkeypatch.setattr(networks.Mlp, "forward", asserting)


def _call_often(function):
    for _ in range(100):
        function()


@pytest.mark.parametrize("cache_empties", [True, False])
def test_only_the_trial_whose_turn_it_was_is_named(cache_empties, assertion, monkeypatch, tmp_path):
    if not cache_empties:
        monkeypatch.setattr(torch.cuda, "empty_cache", device.native.check)
    engine, told = runs.engine(), []
    for trial, units in enumerate((INNOCENT_UNITS, GUILTY_UNITS, INNOCENT_UNITS)):
        network = builders.mlp(hidden_units=units)
        spec = builders.spec(network=network, epochs=2, seed=trial)
        engine.submit(builders.start(trial, spec, folder=tmp_path, study=units))

    def advance():
        told.extend(engine.advance())

    with pytest.raises(DeviceLostError, match="device-side assert"):
        _call_often(advance)
    told += engine.last_words()
    assert engine.turn == [1]
    assert not [event for event in told if isinstance(event, Failed | Stopped)]


def chained(error, cause):
    error.__context__ = cause
    return error


INVALIDATED = "CUDA error: operation failed due to a previous error during capture"
REFUSED = "CUDA error: operation not permitted when stream is capturing"


@pytest.mark.parametrize(
    ("cause", "memory"),
    [(None, True), (torch.OutOfMemoryError("full"), True), (RuntimeError(REFUSED), False)],
)
def test_a_capture_that_an_allocation_ended_is_out_of_memory(cause, memory):
    assert is_out_of_memory(chained(torch.AcceleratorError(INVALIDATED), cause)) is memory


def test_a_gpu_that_torch_cannot_use_is_told_and_the_cpu_taken(caplog):
    assert pick_device("auto").type == "cuda"
    device.native.set_broken(True)
    assert pick_device("auto").type == "cpu"
    assert "torch cannot use the GPU: CUDA error" in caplog.text
