"""Values that a script gives to a tracker, each written by the real library where it is there."""

import importlib.util
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.unit.training.user_loops.test_pool import ends, kind, start, until
from tests.unit.training.user_loops.test_program import loops, trial
from workers.training.user_loops.tracker_files import TrackerFiles
from workers.training.user_loops.tracker_records import EventFile, WandbFile

TENSORBOARD = """
from torch.utils.tensorboard import SummaryWriter
with SummaryWriter() as writer:
    for epoch in range(3):
        writer.add_scalar("score", epoch / 4, epoch + 1)
        writer.add_scalar("loss/train", 1.0, epoch + 1)
    writer.add_text("note", "x" * 2_000_000, 3)
"""
CSV = """
from lightning.pytorch.loggers import CSVLogger
logger = CSVLogger(".", flush_logs_every_n_steps=1)
for epoch in range(3):
    logger.log_metrics({"loss": 1.0, "epoch": epoch + 1}, step=10 * epoch)
    logger.log_metrics({"score": epoch / 4, "epoch": epoch + 1}, step=10 * epoch + 9)
logger.save()
"""
STATE = """
from pathlib import Path
from transformers.trainer_callback import TrainerState
state = TrainerState()
for epoch in range(3):
    state.log_history.append({"loss": 0.5, "epoch": epoch + 0.5, "step": epoch + 1})
    state.log_history.append({"eval_score": 1, "score": epoch / 4, "step": epoch + 1})
    folder = Path("out", f"checkpoint-{epoch + 1}")
    folder.mkdir(parents=True)
    state.save_to_json(str(folder / "trainer_state.json"))
"""
WANDB = """
import os
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
import wandb
with wandb.init(project="p") as run:
    for epoch in range(3):
        run.log({"score": epoch / 4, "text": "y" * 50_000}, step=epoch + 1)
"""
MLFLOW = """
import os
os.environ |= {"MLFLOW_TRACKING_URI": "file:mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
import mlflow
with mlflow.start_run():
    for epoch in range(3):
        mlflow.log_metric("score", epoch / 4, step=epoch + 1)
"""
WRITTEN = {
    "tensorboard": TENSORBOARD,
    "lightning": CSV,
    "transformers": STATE,
    "wandb": WANDB,
    "mlflow": MLFLOW,
}


def need(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize("library", WRITTEN)
def test_what_a_tracker_writes_is_found(tmp_path: Path, library: str) -> None:
    need(library)
    trials = loops(tmp_path, WRITTEN[library], run=f"{sys.executable} train.py")
    trials.submit(trial(tmp_path))
    events = until(trials, ends())
    assert events[-1].type == "finished", events[-1]
    told = [(event.step, event.value) for event in events if event.type == "reported"]
    assert told == [(1, 0.0), (2, 0.25), (3, 0.5)]
    assert events[-1].values == [0.5]


LIGHTNING = """
import sys, torch, lightning, tuner_trial
class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, index):
        return self.layer(batch[0]).square().mean()
    def validation_step(self, batch, index):
        self.log("score", float(self.current_epoch))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)))
lightning.Trainer(max_epochs=3, logger=False, accelerator="cpu", enable_checkpointing=False,
    enable_model_summary=False, enable_progress_bar=False,
    callbacks=[tuner_trial.lightning_callback()]).fit(Net(), data, data)
"""
TRAINER = """
import tuner_trial
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
handler = CallbackHandler([tuner_trial.transformers_callback()], None, None, None, None)
for epoch in range(3):
    handler.on_evaluate(None, TrainerState(global_step=epoch), TrainerControl(), {"score": epoch})
"""


@pytest.mark.parametrize(
    ("library", "source"), [("lightning", LIGHTNING), ("transformers", TRAINER)]
)
def test_a_callback_reports(tmp_path: Path, library: str, source: str) -> None:
    need(library)
    trials = loops(tmp_path, source, run=f"{sys.executable} train.py")
    trials.submit(trial(tmp_path))
    events = until(trials, ends())
    told = [(event.step, event.value) for event in events if event.type == "reported"]
    assert told == [(0, 0.0), (1, 1.0), (2, 2.0)], events[-1]


def test_a_tracker_counts_more_than_a_line_and_a_report_more_than_both(tmp_path: Path) -> None:
    source = """
import csv, os, time, tuner_trial
def say(rows):
    with open("metrics.csv", "w") as file:
        csv.writer(file).writerows([("epoch", "score"), *rows])
say([(1, 0.12)])
print("epoch 1: score=0.1", flush=True)
time.sleep(1.3)
tuner_trial.report(2, score=0.22)
time.sleep(0.3)
say([(1, 0.12), (2, 0.9), (3, 0.9)])
print("epoch 4: score=0.8")
"""
    trials = loops(tmp_path, source)
    trials.submit(trial(tmp_path))
    events = until(trials, ends())
    told = [(event.step, event.value) for event in events if event.type == "reported"]
    assert told == [(1, 0.12), (2, 0.22)]
    assert events[-1].values == [0.22]


def test_a_line_waits_for_a_tracker_that_is_there(tmp_path: Path) -> None:
    source = """
import sys
file = open("metrics.csv", "w")
print("epoch 9: score=0.3", flush=True)
file.write(sys.argv[1].replace(";", chr(10)))
file.close()
"""
    trials = loops(tmp_path, source, run=f"{sys.executable} -S train.py {{text}}")
    told = {}
    for number, text in ((1, "epoch,score;1,0.25;2,0.301;"), (2, "epoch,loss;1,0.2;")):
        spec = {"module": "mine.train", "parameters": {"text": text}}
        trials.submit(start(tmp_path, trial=number, spec=spec))
        events = until(trials, ends())
        told[number] = [(one.step, one.value) for one in events if one.type == "reported"]
    assert told == {1: [(1, 0.25), (2, 0.301)], 2: [(9, 0.3)]}


def test_values_of_a_bar_that_is_drawn_again_are_no_steps(tmp_path: Path) -> None:
    source = """
for epoch in range(2):
    for batch in range(50):
        print(f"\\rEpoch {epoch}: {batch}/50 score={epoch + batch / 100}", end="")
print()
"""
    trials = loops(tmp_path, source)
    trials.submit(trial(tmp_path))
    events = until(trials, ends())
    assert [event.step for event in events if event.type == "reported"] == [0, 1]
    assert events[-1].values == [1.49]


def test_the_files_of_earlier_runs_in_the_project_are_not_the_trials(tmp_path: Path) -> None:
    project = tmp_path / "mine"
    trials = loops(tmp_path, "import os\nprint(sorted(os.listdir()), open('a.txt').read())")
    for path in ("lightning_logs/version_0/metrics.csv", "metrics.csv", "data/metrics.csv"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("epoch,score\n1,0.9\n")
    (project / "a.txt").write_text("here")
    trials.submit(trial(tmp_path))
    last = until(trials, ends())[-1]
    assert last.type == "failed"
    assert "without a value of score" in last.failure.message
    assert "['a.txt', 'data', 'train.py', 'tuner.yaml'] here" in last.failure.message


def test_two_trials_at_once_do_not_write_over_each_other(tmp_path: Path) -> None:
    source = """
import sys, time
kept = open("best.txt").read()
open("best.txt", "w").write(kept + sys.argv[1])
print("ready", flush=True)
time.sleep(0.5)
print("score=" + open("best.txt").read())
"""
    trials = loops(tmp_path, source)
    trials.capacity = 2
    (tmp_path / "mine" / "best.txt").write_text("1")
    for number, x in ((1, 2), (2, 3)):
        spec = {"module": "mine.train", "parameters": {"x": x}}
        trials.submit(start(tmp_path, trial=number, spec=spec))
    events = until(trials, ends(2))
    found = {event.run: event.values for event in events if event.type == "finished"}
    assert found == {1: [12.0], 2: [13.0]}
    assert (tmp_path / "mine" / "best.txt").read_text() == "1"
    assert (tmp_path / "1.files" / "best.txt").read_text() == "12"


def test_it_finds_its_neighbours_under_our_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    trials = loops(tmp_path, "import beside\nprint(f'score={beside.VALUE}')")
    (tmp_path / "mine" / "beside.py").write_text("VALUE = 7")
    trials.submit(trial(tmp_path))
    assert until(trials, ends())[-1].values == [7.0]


def test_values_arrive_while_the_file_grows(tmp_path: Path) -> None:
    source = """
import time
open("metrics.csv", "w").write("epoch,score\\n1,0.5\\n")
time.sleep(300)
"""
    trials = loops(tmp_path, source)
    trials.submit(trial(tmp_path))
    assert until(trials, kind("reported"))[-1].value == 0.5
    trials.shutdown()


def test_what_is_no_trackers_file_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(os.urandom(5000))
    (tmp_path / "run-1.wandb").write_bytes(b":W&B" + os.urandom(100_000))
    (tmp_path / "trainer_state.json").write_text("{")
    (tmp_path / "metrics.csv").write_text("a,b\n1\n,,,\n")
    (tmp_path / "mlflow.db").write_bytes(b"none")
    assert [found for found in TrackerFiles(tmp_path).news() if "score" in found.values] == []


def test_a_metric_of_a_run_database_is_found(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE metrics (key, value, timestamp, run_uuid, step, is_nan)")
        database.execute("INSERT INTO metrics VALUES ('val/score', 0.5, 0, 'a', 3, 0)")
    files = TrackerFiles(tmp_path)
    (found,) = files.news()
    assert (found.step, found.values) == (3, {"val_score": 0.5})
    assert list(files.news()) == []


def test_torn_records_wait_for_their_end(tmp_path: Path) -> None:
    for reader, path in ((EventFile, tmp_path / "a"), (WandbFile, tmp_path / "b")):
        path.write_bytes(b"\x10\0\0\0\0\0\0\0abc")
        assert list(reader(path).news()) == []
