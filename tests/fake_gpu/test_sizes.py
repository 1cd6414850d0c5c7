"""How many lanes a group has on a GPU: as many as there are trials, and as fit."""

import pytest
import torch

from tests.unit.training import lanes
from workers.training.steps import select
from workers.training.steps.select import BackendSelector

GPU = torch.device("cuda")
MLP = {"type": "mlp", "hidden_units": 16}
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory (injected)")


def test_a_group_has_the_next_power_of_two_and_shrinks_when_most_lanes_idle():
    spec, selector = lanes.group(MLP), BackendSelector(GPU, probe=False)
    assert [selector.lanes_for(spec, n) for n in (1, 2, 3, 9)] == [1, 2, 4, 16]
    assert selector.lanes_for(spec, 100_000) == 512
    assert [selector.lanes_for(spec, 1) for _ in range(8)] == [512] * 8
    assert selector.lanes_for(spec, 1) == 1


@pytest.fixture
def probes(monkeypatch):
    """What probes of so many lanes say; a number that is not there finds no memory."""
    said = {}

    def probe(group, step):
        if step.lanes not in said:
            raise NO_MEMORY
        return said[step.lanes]

    monkeypatch.setattr(select, "probe", probe)
    return said


def test_a_probe_that_finds_no_memory_is_tried_with_fewer_lanes(probes):
    probes[2] = None
    spec, selector = lanes.group(MLP), BackendSelector(GPU)
    assert selector.lanes_for(spec, 8) == 2
    assert selector.lanes_for(spec, 8) == 2


def test_a_group_that_found_no_memory_at_all_is_probed_again_after_a_while(probes):
    now = [0.0]
    spec, selector = lanes.group(MLP), BackendSelector(GPU, clock=lambda: now[0])
    assert selector.lanes_for(spec, 4) == 1
    assert "OutOfMemoryError" in selector.make_step(spec, 1).backend_reason
    probes[4] = None
    assert selector.lanes_for(spec, 4) == 1
    now[0] += select.MEMORY_SECONDS
    assert selector.lanes_for(spec, 4) == 4


def test_what_does_not_pay_for_one_trial_is_probed_again_for_many(probes):
    probes.update({1: "fusing does not pay", 2: "fusing does not pay", 8: None})
    spec, selector = lanes.group(MLP), BackendSelector(GPU)
    assert selector.lanes_for(spec, 1) == 1
    assert selector.make_step(spec, 1).backend == "plain"
    assert selector.lanes_for(spec, 8) == 8
