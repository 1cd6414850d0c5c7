"""Memory runs out: every trial ends as undisturbed, or says why it did not."""

import pytest
import torch

from tests.fake_gpu import runs
from tests.unit.training import builders, lanes
from workers.training.steps.fused import executors
from workers.training.steps.fused.step import FusedStep

SGD = {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9}
MLP = {"type": "mlp", "hidden_units": 16}
BATCH_NORM = builders.mlp(norm="batch")


class Once:
    """Fails the n-th call of a recorded step function with an error."""

    def __init__(self, monkeypatch, call, error):
        self.left, self.happened = call, False
        record = executors._CudaGraph._record

        def failing(graph, run, tensors, stacked):
            def counted(tensors):
                self.left -= 1
                if self.left == 0:
                    self.happened = True
                    raise error
                return run(tensors)

            return record(graph, counted, tensors, stacked)

        monkeypatch.setattr(executors._CudaGraph, "_record", failing)


@pytest.mark.parametrize("call", [2, 4])
def test_recording_that_finds_no_memory_leaves_the_weights_alone(call, monkeypatch):
    spec = lanes.group(MLP)
    step = FusedStep(spec, 1, executors.Traced())
    step.put(0, lanes.hyper(), None)
    before = step.take(0)
    Once(monkeypatch, call, torch.OutOfMemoryError("CUDA out of memory (injected)"))
    with pytest.raises(torch.OutOfMemoryError):
        lanes.epoch(step, spec, [1], 0)
    assert lanes.same_state(step.take(0), before)


# Of each three warm-ups, then the capture; coupled rows have a second one, of the last batch.
@pytest.mark.parametrize(("network", "call"), [(builders.mlp(), 3), (BATCH_NORM, 8)])
def test_memory_that_runs_out_in_a_recording_changes_no_trial(network, call, monkeypatch, tmp_path):
    given = runs.specs(8, network=network, optimizer=SGD)
    undisturbed = runs.curves(runs.run(given, tmp_path))
    fault = Once(monkeypatch, call, torch.OutOfMemoryError("CUDA out of memory (injected)"))
    assert runs.equal(runs.curves(runs.run(given, tmp_path)), undisturbed)
    assert fault.happened
