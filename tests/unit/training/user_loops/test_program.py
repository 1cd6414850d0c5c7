"""Programs as trials: what they are given, how their values are found, and that they end."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.training.user_loops.test_pool import ends, kind, start, until
from tuner_service.programs import ProgramCommand, ProjectError, read_project
from workers.protocol.messages import RunId
from workers.training.trials.best_models import ModelKeeper
from workers.training.user_loops.pool import UserLoopPool
from workers.training.user_loops.program_values import NoNumberError, OutputReader

SCRIPT = f"{sys.executable} -S train.py"


def loops(folder: Path, source: str, **command: Any) -> UserLoopPool:
    project = folder / "mine"
    project.mkdir()
    (project / "train.py").write_text(source)
    said = {"run": f"{SCRIPT} {{x}}", **command}
    (project / "tuner.yaml").write_text(json.dumps({"commands": {"train": said}}))
    return UserLoopPool("cpu", keeper=ModelKeeper(), modules_dir=None, programs=(folder,))


def trial(folder: Path, **changes: Any) -> Any:
    return start(folder, spec={"module": "mine.train"}, **changes)


def run(folder: Path, source: str, **command: Any) -> list[Any]:
    trials = loops(folder, source, **command)
    trials.submit(trial(folder))
    return until(trials, ends())


ASKS = """
import json, os, sys
print(json.dumps({"cwd": os.getcwd(), "arguments": sys.argv[1:], "environment": dict(os.environ)}))
open(os.path.join(os.environ["TUNER_OUTPUT_DIR"], "made"), "w").write("1")
open(os.path.join(os.environ["TUNER_CHECKPOINT_DIR"], "kept"), "w").write("1")
print("score: 1")
"""


def test_a_program_gets_its_parameters_and_folders_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "{x} {y} --seed={seed} {checkpoint_dir} {output_dir} {parameters_file} {overrides}"
    last = run(
        tmp_path, ASKS, run=f"{SCRIPT} {arguments}", parameters={"y": True},
        environment={"MORE": "1"},
    )[-1]  # fmt: skip
    assert (last.type, last.values) == ("finished", [1.0])
    said = json.loads((tmp_path / "1.log").read_text().splitlines()[0])
    x, y, seed, kept, outputs, file, *overrides = said["arguments"]
    assert (x, y, seed) == ("2.0", "true", "--seed=5")
    assert overrides == ["y=true", "x=2.0"]
    assert said["cwd"] == outputs
    assert (Path(kept) / "kept").read_text() == "1"
    assert [file.name for file in Path(outputs).iterdir()] == ["made"]
    assert json.loads(Path(file).read_text()) == {"y": True, "x": 2.0}
    given = said["environment"]
    assert json.loads(given["TUNER_PARAMETERS"]) == {"y": True, "x": 2.0}
    assert (given["MORE"], given["CUDA_VISIBLE_DEVICES"], given["TUNER_SEED"]) == ("1", "", "5")


REPORTS = {
    "printed": "for e in range(3): print(f'epoch {e + 1}: loss=0.5 score={e / 4}')",
    "json": "import json\nfor e in range(3): print(json.dumps({'step': e + 1, 'score': e / 4}))",
    "helper": "import tuner_trial\nfor e in range(3): tuner_trial.report(e + 1, score=e / 4, l=2)",
    "keras": "for e in range(3): print(f'Epoch {e + 1}/3\\r10/10 - score: {e / 4:.4f} - loss: 2')",
    "quoted": "for e in range(3): print({'score': f'{e / 4}', 'epoch': f'{e + 1}'})",
    "dictionary": "for e in range(3): print({'score': e / 4, 'epoch': e + 1.0})",
}


@pytest.mark.parametrize("source", REPORTS.values(), ids=REPORTS)
def test_values_arrive_with_their_steps(tmp_path: Path, source: str) -> None:
    events = run(tmp_path, source)
    told = [(event.step, event.value) for event in events if event.type == "reported"]
    assert told == [(1, 0.0), (2, 0.25), (3, 0.5)]
    assert (events[-1].type, events[-1].values) == ("finished", [0.5])
    assert len(events[-1].record["source_hash"]) == 12


PATTERNS = [
    (r"Accuracy: (?P<value>\S+)", "Average loss: 0.05, Accuracy: 9871/10000 (99%)\n", 0.9871),
    (r"acc=([\d.]+)%", "acc=93.5%\n", 93.5),
    (r"val (?P<value>\S+)", "val 1e-3\n", 1e-3),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "line", "value"), PATTERNS)
def test_a_pattern_finds_its_number(pattern: str, line: str, value: float) -> None:
    (found,) = OutputReader(["score"], {"score": pattern}).feed(line.encode())
    assert found.values == {"score": value}


def test_a_step_may_be_in_the_pattern_and_lines_may_be_torn() -> None:
    reader = OutputReader(["score"], {"score": r"\[(?P<step>\d+)\] (?P<value>\S+)"})
    assert not list(reader.feed(b"[7] 0."))
    (found,) = reader.feed(b"25\nother")
    assert (found.step, found.values) == (7, {"score": 0.25})
    assert not list(reader.end())


@pytest.mark.parametrize("line", ["best_score=1", "scores=1", "score", "train/score: 2", "score=x"])
def test_other_names_are_not_taken_for_the_metric(line: str) -> None:
    assert not list(OutputReader(["score"], {}).feed(f"{line}\n".encode()))


def test_what_a_pattern_finds_must_be_a_number() -> None:
    with pytest.raises(NoNumberError, match="'abc', which is no number"):
        list(OutputReader(["score"], {"score": "is (.+)"}).feed(b"is abc\n"))


FAILURES = {
    "no value": ("print('hello')", {}, "without a value of score: no line said `score=0.5`"),
    "quoted": ("print('hello')", {}, "Its last lines: hello"),
    "silent": ("", {}, "It printed nothing."),
    "pattern": ("print('score 1')", {"metrics": {"score": "S=(.+)"}}, "'S=(.+)' matched no line"),
    "no number": ("print('S=abc')", {"metrics": {"score": "S=(.+)"}}, "found 'abc', which is no"),
    "exit": (
        "import sys\nprint('score=1')\nsys.exit('why')",
        {},
        "exit code 1: why. Its last lines: ",
    ),
    "killed": ("import os\nos.kill(os.getpid(), 11)", {}, "was killed by SIGSEGV"),
    "command": ("", {"run": "nothing-like-it {x}"}, "'nothing-like-it' was not found, in "),
    "directory": ("", {"directory": "nowhere"}, "There is no directory "),
    "placeholder": ("", {"run": f"{SCRIPT} {{x}} {{z}}"}, "names {z}, which the study does not"),
    "infinite": ("print('score=inf')", {}, "became inf"),
}


@pytest.mark.parametrize(("source", "command", "said"), FAILURES.values(), ids=FAILURES)
def test_what_goes_wrong_is_said_on_the_trial(
    tmp_path: Path, source: str, command: dict[str, Any], said: str
) -> None:
    last = run(tmp_path, source, **command)[-1]
    assert last.type == "failed"
    assert said in last.failure.message


def test_a_failure_that_repeats_can_be_told_from_one_that_does_not(tmp_path: Path) -> None:
    source = "import os\nraise ValueError(os.getcwd() and 'no')"
    failures = []
    trials = loops(tmp_path, source)
    for attempt in ("1", "2"):
        trials.submit(trial(tmp_path, log=str(tmp_path / f"{attempt}.log")))
        failures.append(until(trials, ends())[-1].failure)
    assert failures[0] == failures[1]  # though each has run in a directory of its own
    assert failures[0].traceback is not None
    assert failures[0].message.startswith("The program ended with exit code 1: ValueError: no.")


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "300"], start_new_session=True)
bare = subprocess.Popen(["sleep", "300"], start_new_session=True, env={})
open("bare", "w").write(str(bare.pid))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
print("score=1", flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="marks are read on Linux only")
@pytest.mark.parametrize("deed", ["stop", "kill"])
def test_nothing_of_a_program_outlives_its_trial(tmp_path: Path, deed: str) -> None:
    trials = loops(tmp_path, STUBBORN)
    trials._stop_seconds = 0.5
    trials.submit(trial(tmp_path))
    until(trials, kind("reported"))
    (held,) = trials._runs.values()
    mark = held.process._mark
    assert mark is not None
    deadline = time.monotonic() + 20.0
    while len(marked_by(mark)) < 3:  # the fork's fork may be on its way
        assert time.monotonic() < deadline
        time.sleep(0.02)
    bare = int((tmp_path / "1.files" / "bare").read_text())
    if deed == "stop":
        trials.stop(RunId(1), "cancel")
    else:
        os.kill(held.process.pid, 9)
    assert until(trials, ends())[-1].type == ("stopped" if deed == "stop" else "failed")
    deadline = time.monotonic() + 5.0  # a process that was killed takes a moment to end
    while marked_by(mark):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if deed == "kill":  # from outside, who had neither mark nor group is nobody's any more
        os.kill(bare, 9)
    else:
        assert has_ended(bare)


def has_ended(process: int) -> bool:
    try:
        psutil.Process(process).wait(5.0)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    return True


def marked_by(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


RESUMES = """
import os, time
kept = os.path.join(os.environ["TUNER_CHECKPOINT_DIR"], "epoch")
first = int(open(kept).read()) if os.path.exists(kept) else 0
for epoch in range(first, 4):
    open(kept, "w").write(str(epoch + 1))
    print(f"epoch {epoch + 1} score={epoch + 1}", flush=True)
    if epoch == 1 and first == 0:
        time.sleep(300)
"""


def test_a_program_that_is_paused_finds_its_checkpoint_again(tmp_path: Path) -> None:
    trials = loops(tmp_path, RESUMES)
    trials.submit(trial(tmp_path))
    until(trials, lambda events: any(e.type == "reported" and e.step == 2 for e in events))
    trials.stop(RunId(1), "checkpoint")
    stopped = until(trials, ends())[-1]
    assert stopped.type == "stopped"
    assert stopped.step in (1, 2)  # what it had printed as its checkpoint was seen
    trials.submit(trial(tmp_path, resume=stopped.step))
    again = until(trials, ends())
    steps = [event.step for event in again if event.type == "reported"]
    assert steps == list(range(stopped.step + 1, 5))
    assert again[-1].values == [4.0]


def test_a_flood_of_output_is_cut_and_the_last_value_found(tmp_path: Path) -> None:
    source = (
        "import sys\nfor _ in range(300): sys.stdout.write('x' * 10000 + '\\n')\nprint('score=3')"
    )
    last = run(tmp_path, source)[-1]
    assert (last.type, last.values) == ("finished", [3.0])
    assert (tmp_path / "1.log").stat().st_size < 1_100_000


def test_a_program_that_leaves_its_output_open_ends_its_trial_all_the_same(tmp_path: Path) -> None:
    source = (
        "import subprocess\nprint('score=2', flush=True)\n"
        "subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    )
    begun = time.monotonic()
    assert run(tmp_path, source)[-1].values == [2.0]
    assert time.monotonic() - begun < 60.0


MISTAKES = {
    "commands: missing": {},
    "train.run: missing": {"commands": {"train": {}}},
    "a command has run": {"commands": {"train": {"run": "x", "metric": {}}}},
    "tuner.yaml has commands": {"command": {}},
    "a placeholder is a parameter's name": {"commands": {"train": {"run": "x {0}"}}},
    "write {{ and }} for braces": {"commands": {"train": {"run": "x {"}}},
    "needs a group": {"commands": {"train": {"run": "x", "metrics": {"a": "b"}}}},
    "is none": {"commands": {"train": {"run": "x", "metrics": {"a": "("}}}},
    "letters, digits": {"commands": {"a b": {"run": "x"}}},
    "an argument of its own": {"commands": {"train": {"run": "x a{overrides}"}}},
}


@pytest.mark.parametrize(("said", "project"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_in_a_project_is_said(tmp_path: Path, said: str, project: dict[str, Any]) -> None:
    path = tmp_path / "tuner.yaml"
    path.write_text(json.dumps(project))
    with pytest.raises(ProjectError) as error:
        read_project(path)
    assert said in str(error.value)


def test_braces_and_given_names_are_no_parameters() -> None:
    command = ProgramCommand(run=("x", "{{}}", "{seed}", "{lr}"), parameters={"lr": 0.1})
    assert command.placeholders == ("lr",)
    assert command.required() == ()
    assert command.filled({}, {"seed": "1"}) == ["x", "{}", "1", "0.1"]
