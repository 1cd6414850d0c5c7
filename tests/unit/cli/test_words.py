"""What a user reads has the user's words; those of the service's inside stand behind --verbose."""

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command

from tests.unit.cli.test_catalogue import worker
from tests.unit.cli.test_studies import Shown, Tuner, service, tuner
from tests.unit.client.fake_service import FakeService, ends, finishes, starts, trial
from tuner_service.cli import catalogue, show
from tuner_service.cli.app import app
from tuner_service.client import TunerClient

__all__ = ["service", "tuner"]

INSIDE = re.compile(r"\b(slots?|rings?|rungs?|lanes?|leases?|leased|groups? hash)\b", re.IGNORECASE)
SERVICE = Path(show.__file__).parents[1]
OPERATORS = {
    "api/routes/metrics.py",  # Prometheus
    "cli/studies.py",  # the help of --verbose, which says what it shows
}
SCREENS = [
    ["list"],
    ["status", "digits"],
    ["status", "digits", "--watch"],
    ["trials", "digits"],
    ["best", "digits"],
    ["coverage", "digits"],
    ["pause", "digits"],
    ["resume", "digits"],
    ["cancel", "digits"],
    ["refit", "digits"],
    ["update", "digits", "--trials", "9"],
    ["logs", "digits", "2"],
]
HOW = {"backend": "native", "backend_reason": "alone", "group": "0123456789"}


@pytest.fixture
def busy(service: FakeService) -> FakeService:
    """A study that has something of everything to show."""
    service.study.trials = [trial(0, value=0.5) | HOW, trial(1, "RUNNING"), trial(2, "FAIL")]
    service.study.warnings = ["one"]
    service.study.steps = [starts(1), finishes(1), ends()]
    return service


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", SCREENS, ids=" ".join)
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_no_screen_has_a_word_of_the_inside(
    tuner: Tuner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Shown,
    command: list[str],
    terminal: bool,
) -> None:
    screen = io.StringIO()
    drawn = Console(file=screen, force_terminal=terminal, width=200, color_system=None)
    monkeypatch.setattr(show, "out", drawn)
    tuner(*command)
    shown = screen.getvalue() + "".join(capsys.readouterr())
    assert len(shown) > 20
    assert INSIDE.findall(shown) == []


def test_the_plan_of_a_study_has_none(tuner: Tuner, tmp_path: Path, capsys: Shown) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: digits\n")
    for command in ("validate", "submit"):
        assert tuner(command, str(file)) == 0
    assert INSIDE.findall("".join(capsys.readouterr())) == []


def test_the_table_of_workers_has_none(monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setattr(TunerClient, "ping", lambda self: None)
    monkeypatch.setattr(TunerClient, "workers", lambda self: [worker()])
    catalogue.workers()
    shown = capsys.readouterr().out
    assert "host-1-a" in shown
    assert INSIDE.findall(shown) == []


def test_the_help_of_every_command_has_none() -> None:
    texts = [
        f"{command.help} {getattr(option, 'help', '')}"
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for option in command.params
        if getattr(option, "name", "") != "verbose"
    ]
    assert len(texts) > 50
    assert [text for text in texts if INSIDE.search(text)] == []


def test_no_sentence_of_the_service_has_one() -> None:
    """Messages, faults, reasons and notes: they all reach a user."""
    files = [p for p in SERVICE.rglob("*.py") if str(p.relative_to(SERVICE)) not in OPERATORS]
    sentences = [(file.name, text) for file in files for text in _sentences(file)]
    assert len(sentences) > 500
    assert [(file, text) for file, text in sentences if INSIDE.search(text)] == []


def _sentences(file: Path) -> Iterator[str]:
    """Return the texts of a module that have words, but for its docstrings."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    told = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = (
        node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in told
    )
    return (text for text in texts if isinstance(text, str) and " " in text)
