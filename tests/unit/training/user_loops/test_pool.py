"""Training loops in processes of their own: what they are given, and whatever they do wrong."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuner_service.definition import load_yaml, parse_definition, resolve_user_loop
from workers.protocol.messages import RunId, TrialStart
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.checkpoints import read_tensors
from workers.training.user_loops.pool import UserLoopPool
from workers.training.user_loops.trial import numbers, plain, whole
from workers.user_modules import describe

LAST_WORDS = ("finished", "stopped", "failed")
SECONDS = 60.0  # a busy machine may take long to import torch
EXAMPLE = Path(__file__).parents[4] / "examples" / "loop"


def start(folder: Path, *, trial: int = 1, **changes: Any) -> TrialStart:
    spec = {
        "kind": "loop",
        "module": "loop",
        "parameters": {"x": 2.0},
        "objective": [["score", "maximize"]],
        "seed": 5,
    }
    base = TrialStart(
        run=RunId(trial),
        number=trial,
        study=1,
        spec={**spec, **changes.pop("spec", {})},
        checkpoint=str(folder / f"checkpoint-{trial}"),
        resume=None,
        model=None,
        keep_models=1,
        prunable=False,
        exclusive=False,
        log=str(folder / f"{trial}.log"),
    )
    return replace(base, **changes)


def loops(folder: Path, source: str, **changes: Any) -> UserLoopPool:
    (folder / "loop.py").write_text(source)
    settings: dict[str, Any] = {"keeper": ModelKeeper(), "modules_dir": folder, **changes}
    return UserLoopPool("cpu", **settings)


def until(trials: UserLoopPool, done: Callable[[list[Any]], bool]) -> list[Any]:
    """Advance until what was heard is enough."""
    events: list[Any] = []
    deadline = time.monotonic() + SECONDS
    while not done(events):
        assert time.monotonic() < deadline, events
        events += trials.advance()
        time.sleep(0.005)
    return [event for event in events if event.type != "working"]


def ends(count: int = 1) -> Callable[[list[Any]], bool]:
    return lambda events: sum(event.type in LAST_WORDS for event in events) >= count


def kind(name: str) -> Callable[[list[Any]], bool]:
    return lambda events: any(event.type == name for event in events)


REPORTS = """
def train(trial, x, rounds: int = 2):
    print("x is", x, trial.params["rounds"], trial.device, trial.seed)
    for step in range(1, rounds + 1):
        trial.log_metrics(loss=1 / step, note="fine")
        trial.report(step, x * step)
    trial.log_metrics({"test_score": 7, "bad": float("nan")})
"""


def test_a_loop_from_its_parameters_to_its_result(tmp_path: Path) -> None:
    trials = loops(tmp_path, REPORTS)
    trials.submit(start(tmp_path))
    started, first, second, finished = until(trials, ends())
    assert started.type == "started"
    assert (first.step, first.value, second.step, second.value) == (1, 2.0, 2, 4.0)
    assert {"score": 4.0, "loss": 0.5, "note": "fine"}.items() <= second.record.items()
    assert finished.type == "finished"
    assert finished.values == [4.0]
    assert {"test_score": 7, "bad": None, "seed": 5}.items() <= finished.record.items()
    assert len(finished.record["source_hash"]) == 12
    assert finished.record["device"] == "cpu"
    assert {"tuner_service", "torch"} <= set(finished.record["versions"])
    assert (tmp_path / "1.log").read_text() == "x is 2.0 2 cpu 5\n"
    assert trials.idle
    json.dumps(asdict(finished), allow_nan=False)


@pytest.mark.parametrize(
    ("source", "failure", "message"),
    [
        ("def train(trial): raise KeyError('no')", "user_code", "KeyError: 'no'"),
        ("def train(trial): import sys; sys.exit(3)", "user_code", "SystemExit: 3"),
        ("def train(trial): import os; os._exit(3)", "user_code", "exit code 3"),
        ("def train(trial): import os; os.kill(os.getpid(), 11)", "user_code", "by SIGSEGV"),
        ("import nothing_like_it\ndef train(trial): pass", "user_code", "ModuleNotFoundError"),
        ("def train(trial): return 'much'", "user_code", "must be a number, but got 'much'"),
        ("def train(trial): return float('nan')", "diverged", "a finite number, but got nan"),
        (
            "import numpy\ndef train(trial): return numpy.arange(2.0)",
            "user_code",
            "1, but got [0.0, 1.0]",
        ),
        ("def train(trial): return [1, 2]", "user_code", "as many numbers as the study has"),
        ("def train(trial): pass", "user_code", "must return the objective, or report it"),
        ("def train(trial, y): return y", "user_code", "train has no parameter 'x'; it has y"),
        ("def train(trial, x, z): return z", "user_code", "train needs the parameter 'z'"),
        ("def train(trial): trial.report('one', 1)", "user_code", "a step must be a whole number"),
        ("def train(trial): [trial.report(2, 1), trial.report(1, 1)]", "user_code", "must grow"),
        ("def train(trial): trial.report(1, float('inf'))", "diverged", "became inf at step 1"),
        ("def train(trial): raise MemoryError", "out_of_memory", "MemoryError"),
        ("def train(trial):\n while True: pass", "user_code", "said nothing for 1 s"),
        (
            "def train(trial):\n import os\n if os.fork(): os._exit(1)\n trial.report(1, 1)",
            "user_code",
            "exit code 1",
        ),
        (
            "import time\ndef train(trial):\n a = []\n"
            " while 1: a.append(b'x' * 10**7); time.sleep(0.01)",
            "out_of_memory",
            "all of them may hold 200000000",
        ),
    ],
)
def test_what_a_loop_does_wrong_fails_its_trial_alone(
    tmp_path: Path, source: str, failure: str, message: str
) -> None:
    patience = 1.0 if "said nothing" in message else 60.0
    trials = loops(tmp_path, source, progress_seconds=patience, memory_limit_bytes=200_000_000)
    trials.submit(start(tmp_path))
    *_, failed = until(trials, ends())
    assert (failed.type, failed.sole_suspect) == ("failed", True)
    assert failed.failure.kind == failure
    assert message in failed.failure.message
    assert trials.idle


def test_a_loop_that_raises_trial_pruned_is_pruned_with_what_it_reported(tmp_path: Path) -> None:
    source = "import optuna\ndef train(trial):\n trial.report(1, 0.25)\n raise optuna.TrialPruned"
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path))
    *_, last = until(trials, ends())
    assert (last.type, last.mode, last.values) == ("stopped", "prune", [0.25])
    assert last.step == 1


@pytest.mark.parametrize(
    "step", [3, np.int64(3), torch.tensor(3), np.array([3]), torch.tensor([3])]
)
def test_a_step_is_a_whole_number_of_any_kind(step: Any) -> None:
    assert whole(step) == 3
    assert type(whole(step)) is int


@pytest.mark.parametrize(
    "step", [1.0, np.float32(1), True, np.True_, torch.tensor(True), "1", -1, None, np.arange(2)]
)
def test_what_is_no_step_is_refused(step: Any) -> None:
    with pytest.raises(ValueError, match="a step must be a whole number from 0"):
        whole(step)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, [0.5]),
        (np.float32(0.5), [0.5]),
        (np.array([0.5]), [0.5]),
        (np.array([[0.5]]), [0.5]),
        (np.array(0.5), [0.5]),
        (torch.tensor(0.5, requires_grad=True), [0.5]),
        (torch.tensor([0.5]), [0.5]),
        (np.array([0.5, 1.0]), [0.5, 1.0]),
        ((np.array([0.5]), torch.tensor([1.0])), [0.5, 1.0]),
    ],
)
def test_an_objective_is_a_number_of_any_kind(value: Any, expected: list[float]) -> None:
    assert numbers(value) == expected


@pytest.mark.parametrize("value", [{"a": 1}, "much", np.ones((2, 2)), None])
def test_what_is_no_objective_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="the objective must be a number, but got"):
        numbers(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (torch.tensor([2.0]), 2.0),
        (np.True_, True),
        (float("inf"), None),
        (None, None),
        ("fine", "fine"),
    ],
)
def test_a_metric_is_a_number_or_a_text_of_any_kind(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_a_traceback_names_the_line_and_is_in_the_log(tmp_path: Path) -> None:
    trials = loops(tmp_path, "def train(trial):\n    raise RuntimeError('not today')\n")
    trials.submit(start(tmp_path))
    *_, failed = until(trials, ends())
    text = failed.failure.traceback
    assert 'loop.py", line 2, in train' in text
    assert "raise RuntimeError('not today')" in text
    assert "RuntimeError: not today" in (tmp_path / "1.log").read_text()


def test_a_flood_of_output_ends_in_the_log_and_the_trial_goes_on(tmp_path: Path) -> None:
    flood = "def train(trial):\n for _ in range(300): print('y' * 10_000)\n return 1\n"
    trials = loops(tmp_path, flood)
    trials.submit(start(tmp_path))
    *_, finished = until(trials, ends())
    assert finished.type == "finished"
    assert 1_000_000 <= (tmp_path / "1.log").stat().st_size < 1_001_000


def test_a_full_disk_takes_the_log_and_not_the_trial(tmp_path: Path) -> None:
    source = """
import time
def train(trial):
    for _ in range(20):
        print("y", flush=True)
        time.sleep(0.01)  # each is read, and written, by itself
    return 1
"""
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path, log="/dev/full", spec={"parameters": {}}))
    assert until(trials, ends())[-1].type == "finished"


def test_what_a_loop_leaves_behind_is_ended(tmp_path: Path) -> None:
    source = """
import os, subprocess
def train(trial):
    child = subprocess.Popen(["sleep", "60"])
    if os.fork() == 0:
        return 5  # comes out where the trial ends, and must not end it
    return child.pid
"""
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path))
    *_, finished = until(trials, ends())
    (pid,) = finished.values
    assert pid > 5
    deadline = time.monotonic() + 2.0
    while _is_running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("lacking", ["disk", "process", "thread"])
def test_what_the_machine_lacks_fails_the_trial_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    trials = loops(tmp_path, "def train(trial, x): return x")
    (tmp_path / "file").touch()
    first = start(tmp_path)
    with monkeypatch.context() as patch:
        if lacking == "disk":
            first = start(tmp_path, checkpoint=str(tmp_path / "file" / "1"))
        elif lacking == "process":
            patch.setattr(trials._fork_server, "start", _raise(BlockingIOError("no process left")))
        else:
            patch.setattr(threading.Thread, "start", _raise(RuntimeError("can't start new thread")))
        trials.submit(first)
        (failed,) = trials.advance()
    assert (failed.type, failed.failure.kind) == ("failed", "worker_lost")
    assert "could not be started" in failed.failure.message
    assert failed.sole_suspect is None  # the supervisor knows whether others were on board
    trials.submit(start(tmp_path, trial=2))
    assert until(trials, ends())[-1].values == [2.0]


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_what_is_logged_does_not_pass_for_what_is_known(tmp_path: Path) -> None:
    source = """
def train(trial, x):
    trial.log_metrics(step=9, score=9, seconds=-1, loss=3)
    trial.report(1, x)
    trial.log_metrics(device="mine", seed=9, source_hash="none", versions="all", loss=4)
"""
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path))
    _, report, finished = until(trials, ends())
    seconds = report.record.pop("seconds")
    assert seconds >= 0
    assert report.record == {"step": 1, "score": 2.0, "loss": 3}
    assert {"device": "cpu", "seed": 5, "loss": 4}.items() <= finished.record.items()
    assert len(finished.record["source_hash"]) == 12
    assert "torch" in finished.record["versions"]


CHECKPOINTS = """
import time
def train(trial, x):
    path = trial.checkpoint_dir / "at"
    first = int(path.read_text()) if path.exists() else 0
    print("from", first)
    for step in range(first + 1, 5):
        path.write_text(str(step))
        trial.report(step, step)
        if step == 2 and first == 0:
            while not trial.should_prune():
                time.sleep(0.01)
            return
    return 9
"""


def test_a_stopped_loop_goes_on_from_its_directory(tmp_path: Path) -> None:
    trials = loops(tmp_path, CHECKPOINTS)
    trials.submit(start(tmp_path))
    until(trials, lambda events: any(getattr(event, "step", None) == 2 for event in events))
    trials.stop(1, "checkpoint")
    *_, stopped = until(trials, ends())
    assert (stopped.type, stopped.mode, stopped.step) == ("stopped", "checkpoint", 2)
    trials.submit(start(tmp_path, trial=1, resume=2))
    events = until(trials, ends())
    assert [event.step for event in events if event.type == "reported"] == [3, 4]
    assert events[-1].values == [9]
    assert (tmp_path / "1.log").read_text() == "from 0\nfrom 2\n"


def test_without_a_checkpoint_the_directory_is_emptied(tmp_path: Path) -> None:
    trials = loops(tmp_path, "def train(trial): return len(list(trial.checkpoint_dir.iterdir()))")
    stale = tmp_path / "checkpoint-1.loop"
    stale.mkdir()
    (stale / "old").write_text("")
    trials.submit(start(tmp_path, spec={"parameters": {}}))
    assert until(trials, ends())[-1].values == [0.0]


AHEAD = """
import os
def train(trial, x):
    path = trial.checkpoint_dir / "at"
    at = int(path.read_text()) if path.exists() else 0
    for step in range(at + 1, 7):
        trial.log_metrics(note=f"from {at}")
        trial.report(step, step * 10)
        path.write_text(str(step))
        if step == 4 and at == 0:
            os._exit(1)
"""


@pytest.mark.parametrize("known", [1, 2, 4])
def test_a_checkpoint_ahead_of_the_database_leaves_no_gap(tmp_path: Path, known: int) -> None:
    trials = loops(tmp_path, AHEAD)
    trials.submit(start(tmp_path))
    *_, failed = until(trials, ends())
    assert failed.type == "failed"
    # The directory goes to step 4; the database knows less of it, as a crash may have it.
    trials.submit(start(tmp_path, resume=known))
    events = until(trials, ends())
    reports = [(event.step, event.value) for event in events if event.type == "reported"]
    assert reports == [(step, step * 10.0) for step in range(known + 1, 7)]
    notes = [event.record["note"] for event in events if event.type == "reported"]
    assert notes == ["from 0"] * (4 - known) + ["from 4"] * 2


def test_what_is_trained_again_is_reported_anew(tmp_path: Path) -> None:
    trials = loops(tmp_path, AHEAD)
    trials.submit(start(tmp_path))
    until(trials, ends())
    (tmp_path / "checkpoint-1.loop" / "at").write_text("2")
    trials.submit(start(tmp_path, resume=2))
    reports = [event for event in until(trials, ends()) if event.type == "reported"]
    assert [event.step for event in reports] == [3, 4, 5, 6]
    assert {event.record["note"] for event in reports} == {"from 2"}


def test_a_loop_that_had_only_to_end_still_has_its_result(tmp_path: Path) -> None:
    source = "import os\n" + AHEAD.replace("step == 4", "step == 6")
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path))
    until(trials, ends())
    trials.submit(start(tmp_path, resume=5))
    *_, last, finished = until(trials, ends())
    assert (last.step, finished.type, finished.values) == (6, "finished", [60.0])


def test_a_checkpoint_after_its_report_is_known_at_the_next_look(tmp_path: Path) -> None:
    source = AHEAD.replace("if step == 4 and at == 0", "if trial.should_prune()")
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path))
    events = until(trials, ends())
    saved = [event.step for event in events if event.type == "checkpointed"]
    assert saved == [1, 2, 3, 4, 5, 6]


PRUNABLE = """
def train(trial, x):
    for step in range(1, 9):
        trial.report(step, step)
        if trial.should_prune():
            return
"""


def test_should_prune_waits_for_the_verdict(tmp_path: Path) -> None:
    trials = loops(tmp_path, PRUNABLE)
    trials.submit(start(tmp_path, prunable=True))
    events = until(trials, kind("reported"))
    time.sleep(0.2)
    assert not [event for event in trials.advance() if event.type == "reported"]
    trials.allow(1, 1)
    events = until(trials, kind("reported"))
    assert events[-1].step == 2
    trials.stop(1, "prune")
    *_, stopped = until(trials, ends())
    assert (stopped.mode, stopped.step, stopped.values) == ("prune", 2, [2.0])


def test_each_trial_runs_the_file_as_it_is_when_it_starts(tmp_path: Path) -> None:
    found = []
    for trial, value in ((1, 3), (2, 4)):
        trials = loops(tmp_path, f"def train(trial): return {value}")
        trials.submit(start(tmp_path, trial=trial))
        event = until(trials, ends())[-1]
        found.append((event.values, event.record["source_hash"]))
    assert [values for values, _ in found] == [[3.0], [4.0]]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("mode", ["prune", "cancel", "checkpoint", "timeout"])
def test_a_loop_that_does_not_stop_is_killed(tmp_path: Path, mode: Any) -> None:
    source = "def train(trial):\n trial.report(1, 3)\n while True: pass"
    trials = loops(tmp_path, source, stop_seconds=0.1)
    trials.submit(start(tmp_path))
    until(trials, kind("reported"))
    trials.stop(1, mode)
    *_, stopped = until(trials, ends())
    assert (stopped.type, stopped.mode) == ("stopped", mode)
    assert stopped.values == [3.0]


def test_as_many_run_as_there_is_room_for(tmp_path: Path) -> None:
    source = """
import time
def train(trial):
    (trial.checkpoint_dir / "here").touch()
    while not trial.should_prune(): time.sleep(0.01)
"""
    trials = loops(tmp_path, source, capacity=2)
    for trial in (1, 2, 3):
        trials.submit(start(tmp_path, trial=trial))
    events = trials.advance()
    assert [event.run for event in events] == [1, 2]
    assert trials.stop(3, "checkpoint")[0].type == "stopped"
    events = trials.shutdown()
    assert sorted(event.run for event in events if event.type == "stopped") == [1, 2]
    assert trials.idle


def test_a_loop_ends_with_its_trainer(tmp_path: Path) -> None:
    source = "def train(trial):\n trial.report(1, 1)\n while True: pass"
    trials = loops(tmp_path, source)
    trials.submit(start(tmp_path))
    until(trials, kind("reported"))
    trials._runs[1].process._commands.close()  # as the trainer's death does
    assert "exit code 1" in until(trials, ends())[-1].failure.message


def test_the_example_trains_and_keeps_its_model(tmp_path: Path) -> None:
    module = describe(EXAMPLE / "two_moons.py")
    study = (EXAMPLE / "two-moons.yaml").read_text()
    definition = parse_definition(load_yaml(study), modules={module.name: module})
    spec = resolve_user_loop(definition, {"learning_rate": 0.03, "width": 16, "epochs": 6})
    trials = UserLoopPool("cpu", modules_dir=EXAMPLE, keeper=ModelKeeper())
    model = tmp_path / "model.safetensors"
    trials.submit(start(tmp_path, spec=spec.model_dump(mode="json"), model=str(model)))
    events = until(trials, ends())
    assert sum(event.type == "checkpointed" for event in events) == 6
    finished = events[-1]
    assert finished.values[0] > 0.8
    assert finished.model == str(model)
    tensors, note = read_tensors(model)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "0.weight": (16, 2),
        "0.bias": (16,),
        "2.weight": (2, 16),
        "2.bias": (2,),
    }
    assert note["network"] == {"type": "two_moons", **spec.parameters, "noise": 0.2}
    assert list(tmp_path.glob("*.draft")) == []


def test_a_worse_trials_model_is_dropped(tmp_path: Path) -> None:
    source = "import torch\ndef train(trial, x): trial.save_model({'w': torch.ones(1)}); return x\n"
    trials = loops(tmp_path, source)
    kept = []
    for trial, value in ((1, 2.0), (2, 1.0)):
        model = str(tmp_path / f"{trial}.safetensors")
        trials.submit(start(tmp_path, trial=trial, model=model, spec={"parameters": {"x": value}}))
        kept.append(until(trials, ends())[-1].model)
    assert kept == [str(tmp_path / "1.safetensors"), None]
    assert not list(tmp_path.glob("2.safetensors*"))


def test_a_model_that_cannot_be_kept_costs_no_result_and_ranks_no_more(tmp_path: Path) -> None:
    source = "def train(trial, x, draft): open(draft, 'w').close(); return x"
    trials = loops(tmp_path, source)
    blocked, free = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    blocked.mkdir()
    ended = []
    for trial, (value, model) in enumerate(((2.0, blocked), (1.0, free)), 1):
        parameters = {"x": value, "draft": f"{model}.draft"}
        trials.submit(
            start(tmp_path, trial=trial, model=str(model), spec={"parameters": parameters})
        )
        ended.append(until(trials, ends())[-1])
    assert [end.values for end in ended] == [[2.0], [1.0]]
    assert [end.model for end in ended] == [None, str(free)]
