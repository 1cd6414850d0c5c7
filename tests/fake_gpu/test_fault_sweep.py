"""A fault at one place after another: a trial ends as undisturbed, or says why it did not."""

import pytest

from tests.fake_gpu import device, runs
from workers.protocol.messages import Failed, Finished
from workers.training.trials.failures import DeviceLostError

SGD = {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9}
FAULTS = 8  # spread over the run: the preparation, the stack, the recording, the evaluation


def specs():
    return runs.specs(3, optimizer=SGD)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The curves, and how many allocations the run took."""
    before = device.native.allocations()
    curves = runs.curves(runs.run(specs(), tmp_path_factory.mktemp("undisturbed")))
    return curves, device.native.allocations() - before


@pytest.mark.parametrize("part", range(FAULTS))
def test_memory_that_runs_out_once_anywhere(part, undisturbed, tmp_path):
    expected, allocations = undisturbed
    device.native.fail_allocation(allocations * part // FAULTS)
    events = runs.run(specs(), tmp_path)
    curves = runs.curves(events)
    failed = {e.run: e.failure.kind for e in events if isinstance(e, Failed)}
    assert set(failed.values()) <= {"out_of_memory"}
    assert curves.keys() | failed.keys() == expected.keys()
    assert runs.equal(curves, {run: expected[run] for run in curves})


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """How many operations a run launches."""
    before = device.native.launches()
    runs.run(specs(), tmp_path_factory.mktemp("counted"))
    return device.native.launches() - before


@pytest.mark.parametrize("part", range(FAULTS))
def test_device_that_breaks_anywhere_is_lost_and_no_trial_failed(part, launches, tmp_path):
    engine, given = runs.engine(), specs()
    device.native.break_at_launch(launches * part // FAULTS)
    with pytest.raises(DeviceLostError):
        runs.run(given, tmp_path, engine)
    assert not [event for event in engine.last_words() if isinstance(event, Failed)]
    assert set(engine.turn) <= set(range(len(given)))


def test_capture_that_fails_leaves_the_trials_as_they_were(undisturbed, tmp_path):
    device.CUDAGraph.fail_capture = RuntimeError("CUDA error: not permitted (injected)")
    events = runs.run(specs(), tmp_path)
    assert device.CUDAGraph.fail_capture is None
    assert runs.equal(runs.curves(events), undisturbed[0])
    assert {e.backend for e in events if isinstance(e, Finished)} == {"plain"}
