"""docs/operate.md: its table is the settings', its units start what there is, its commands run."""

import configparser
import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from tests.e2e.readme import ROOT, Block, blocks
from tuner_service.api.routes.metrics import Metrics
from tuner_service.cli import run
from tuner_service.settings import Settings
from tuner_service.storage import Database
from workers.settings import WorkerSettings

PAGE = "docs/operate.md"
ROW = re.compile(r"^\| `TUNER_(\w+)` \| ([^|]*)\|", re.MULTILINE)


def documented() -> dict[str, str]:
    return {name.lower(): text.strip() for name, text in ROW.findall((ROOT / PAGE).read_text())}


def fields(model: type[BaseSettings]) -> dict[str, object]:
    return {name: field.default for name, field in model.model_fields.items()}


def test_every_setting_is_described() -> None:
    assert documented().keys() == fields(Settings).keys() | fields(WorkerSettings).keys()


@pytest.mark.parametrize("name", documented())
def test_the_defaults_are_the_settings_own(name: str) -> None:
    text = documented()[name]
    default = (fields(Settings) | fields(WorkerSettings))[name]
    if isinstance(default, bool):
        assert text == str(default).lower()
    elif isinstance(default, (int, float)):
        assert float(text.replace(",", "")) == default
    elif default in ((), None):  # absent, or said in words
        assert not text.isdecimal()
    elif isinstance(default, str):
        assert text == default


def units() -> list[Block]:
    return [block for block in blocks(PAGE) if block.marks and block.marks[0].endswith(".service")]


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.marks[0])
def test_a_unit_starts_what_there_is_and_lets_it_hand_back(unit: Block) -> None:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.text)
    service = parser["Service"]
    command, *arguments = service["ExecStart"].split()
    assert command == "/opt/tuner/.venv/bin/tuner"
    tuner = Path(sys.executable).with_name("tuner")
    subprocess.run([tuner, *arguments, "--help"], check=True, capture_output=True)
    assert service["Restart"] == "always"
    assert service["KillMode"] == "mixed"  # the trainer must not hear of the end before its worker
    assert float(service["TimeoutStopSec"]) >= 2 * Settings.model_fields["grace_seconds"].default


def test_the_shared_settings_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    (env,) = (block for block in blocks(PAGE) if block.marks == ("env",))
    for line in env.text.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    settings, worker = Settings(), WorkerSettings()
    assert settings.data_dir == Path("/srv/tuner")
    assert settings.resolved_broker_url.startswith("redis://")
    assert worker.log_json


def test_a_password_is_percent_encoded_as_the_page_says() -> None:
    (line,) = (b.text for b in blocks(PAGE) if "urllib.parse" in b.text)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "p%40ss%2Fw%3Ard%231%25\n"


def test_the_commands_for_keys_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_sqlite: Path
) -> None:
    monkeypatch.setenv("TUNER_DATA_DIR", str(tmp_path))
    shutil.copy(migrated_sqlite, tmp_path / "tuner.db")
    (keys,) = (b.text for b in blocks(PAGE) if b.text.startswith("tuner keys"))
    for line in keys.splitlines():
        assert run(shlex.split(line)[1:]) == 0


def test_the_metrics_of_the_page_are_there(migrated_sqlite: Path) -> None:
    with contextlib.closing(Database.open(f"sqlite:///{migrated_sqlite}")) as db:
        text = Metrics(db).render().decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    described = re.findall(r"^\| `(tuner_\w+)` \|", (ROOT / PAGE).read_text(), re.MULTILINE)
    assert described
    assert set(described) <= kinds.keys()
    assert all(name.endswith("_total") == (kinds[name] == "counter") for name in described)


def test_every_command_of_the_page_is_run_here_or_says_why_not() -> None:
    shell = [block for block in blocks(PAGE) if block.language == "sh"]
    run_here = [b for b in shell if "urllib.parse" in b.text or b.text.startswith("tuner keys")]
    assert [b for b in shell if not b.cannot_run_here] == run_here


def test_every_link_of_the_page_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#([^)]*))?\)", (ROOT / PAGE).read_text())
    for path, anchor in targets:
        text = (ROOT / "docs" / path).read_text()
        heads = [head.lower().replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)]
        assert not anchor or anchor in heads, (path, anchor)
