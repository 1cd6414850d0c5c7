"""`tuner run`: what its options mean, and what is refused before anything is started."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuner_service.cli import run, run_program
from tuner_service.cli.run_program import _parameter
from tuner_service.client import ConflictError

GOOD = ["--metric", "acc:max", "--param", "lr=1e-5..1e-1:log"]


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("x=1..8", {"type": "int", "low": 1, "high": 8}),
        ("x=0..1.5", {"type": "float", "low": 0, "high": 1.5}),
        ("x=1e-5..1e-1:log", {"type": "float", "low": 1e-5, "high": 0.1, "log": True}),
        ("x=16..64:16", {"type": "int", "low": 16, "high": 64, "step": 16}),
        ("x=-1..1", {"type": "int", "low": -1, "high": 1}),
        ("x=16,32", {"type": "categorical", "choices": [16, 32]}),
        ("x=adam,0.5,true", {"type": "categorical", "choices": ["adam", 0.5, True]}),
        ("x=a=b", {"type": "categorical", "choices": ["a=b"]}),
    ],
)
def test_a_parameter_is_a_domain(text: str, domain: dict[str, Any]) -> None:
    assert _parameter(text) == ("x", domain)


def test_a_dry_run_prints_the_first_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*GOOD, "--param", "kind=a b,c", "--dry-run"]
    assert run(["run", *options, "--", "python", "t.py", "--lr={lr}", "{kind}", "{seed}"]) == 0
    assert capsys.readouterr().out.strip() == "python t.py --lr=1e-05 'a b' 0"


@pytest.mark.parametrize(
    ("options", "command", "said"),
    [
        (GOOD, ["python", "{lr}", "{bs}"], "names {bs}, which no --param gives"),
        (GOOD, ["python", "t.py"], "--param lr is not in the command: write {lr}"),
        (GOOD, ["no-such-command", "{lr}"], "'no-such-command' was not found on PATH"),
        (GOOD, ["python", "{}", "{lr}"], "write {{ and }} for braces"),
        (["--metric", "acc:up", *GOOD[2:]], ["python", "{lr}"], "but got 'acc:up'"),
        (["--metric", "acc", *GOOD[2:]], ["python", "{lr}"], "--metric acc:max or :min"),
        (["--metric", "acc:max=x", *GOOD[2:]], ["python", "{lr}"], "needs a group"),
        ([*GOOD, "--param", "lr=1..2"], ["python", "{lr}"], "--param lr is given twice"),
        ([*GOOD[:2], "--param", "lr=1,,2"], ["python", "{lr}"], "empty choice, in '1,,2'"),
        ([*GOOD[:2], "--param", "lr"], ["python", "{lr}"], "LOW..HIGH or NAME=ONE,TWO"),
        ([*GOOD[:2], "--param", "lr=a..b"], ["python", "{lr}"], "needs two numbers"),
        ([*GOOD[:2], "--param", "lr=1..2:lin"], ["python", "{lr}"], "log or a step, but got 'lin'"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    options: list[str],
    command: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [sys.executable if one == "python" else one for one in command]
    arguments = ["run", *options, "--data-dir", str(tmp_path / "data"), "--", *command]
    assert run(arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "data" / "programs").exists()


class RefusingClient:
    def submit(self, _: object) -> None:
        raise ConflictError(409, "conflict", "the name is taken")


def test_a_study_that_is_refused_changes_no_command_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def service(_: object, url: str, *__: object) -> Iterator[tuple[RefusingClient, str]]:
        yield RefusingClient(), url

    monkeypatch.setattr(run_program, "_service", service)
    other = tmp_path / "data" / "programs" / "run_mine" / "tuner.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    options = [*GOOD, "--name", "mine", "--data-dir", str(tmp_path / "data")]
    assert run(["run", *options, "--", sys.executable, "t.py", "{lr}"]) != 0
    assert "the name is taken" in capsys.readouterr().err
    assert list(other.parent.parent.glob("*/*")) == [other]
    assert other.read_text() == "{}"
