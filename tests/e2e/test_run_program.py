"""`tuner run` as somebody with a script would type it, with nothing started before."""

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil

from tuner_service.reads.trials import list_trials
from tuner_service.settings import Settings
from tuner_service.storage import Database

SCRIPT = """
import sys
for epoch in range(1, 4):
    print(f"epoch {epoch} acc {float(sys.argv[1]) * epoch:.3f}")
"""


def test_from_a_script_to_its_best_command(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    data = tmp_path / "data"
    kept = {name: one for name, one in os.environ.items() if not name.startswith("TUNER_")}
    command = ["run", "--trials", "4", "--metric", "acc:max", "--param", "x=0..1", "--name", "mine"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tuner_service.cli", *command, "--sampler", "random"),
            *("--url", "http://127.0.0.1:8000", "--data-dir", str(data)),
            *("--", sys.executable, "train.py", "{x}"),
        ],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(Path.cwd()), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(Database.open(Settings(data_dir=data).resolved_database_url)) as db:
        trials = list_trials(db, "mine").items
    assert [trial.state for trial in trials] == ["COMPLETE"] * 4
    assert [trial.last_step for trial in trials] == [3] * 4
    best = max(trials, key=lambda trial: trial.value or 0)
    printed = re.search(r"The best command:\s+(\S+) train.py (\S+)", done.stdout)
    assert printed is not None
    assert float(printed[2]) == best.parameters["x"]
    left = [one for one in psutil.process_iter() if str(data) in " ".join(arguments_of(one))]
    assert not left


def arguments_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
