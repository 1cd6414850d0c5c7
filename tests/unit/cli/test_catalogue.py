"""`tuner workers` and `tuner catalogue`, on what the real catalogue answers."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tuner_service.cli import run
from tuner_service.cli.app import app
from tuner_service.cli.catalogue import Kind
from tuner_service.client import TunerClient
from tuner_service.definition.catalogue import CATALOGUE, catalogue_view

Shown = pytest.CaptureFixture[str]


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the service lists, by address; the catalogue is the real one."""
    known: dict[str, Any] = {f"/v1/{kind}": catalogue_view(kind) for kind in CATALOGUE}

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/healthz":
            return httpx2.Response(200, json={"status": "ok"})
        return httpx2.Response(200, json={"items": known[request.url.path]})

    def client(url: str, *, api_key: str | None = None) -> TunerClient:
        return TunerClient(url, api_key=api_key, transport=httpx2.MockTransport(answer))

    monkeypatch.setattr("tuner_service.cli.options.TunerClient", client)
    return known


def worker(**changes: Any) -> dict[str, Any]:
    known = {
        "id": "host-1-a",
        "host": "host",
        "pid": 1,
        "queue": "cpu",
        "device": "cpu",
        "version": "0.1.0",
        "state": "busy",
        "lanes": 64,
        "current_trials": [],
        "started_at": "2026-01-01T00:00:00Z",
        "heartbeat_at": (datetime.now(UTC) - timedelta(seconds=7.2)).isoformat(),
    }
    return {**known, **changes}


def test_workers_are_shown_with_the_studies_they_train(
    lists: dict[str, Any], capsys: Shown
) -> None:
    trials = [{"study": s, "slot": n, "trial": n} for n, s in enumerate(["a", "b", "a"])]
    lists["/v1/workers"] = [
        worker(current_trials=trials),
        worker(id="new", device=None, state="idle"),
    ]
    assert run(["workers"]) == 0
    busy, idle = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert all(7 <= int(line.pop(3)) < 60 for line in (busy, idle)), "by this machine's clock"
    assert busy == ["host-1-a", "cpu", "busy", "s", "ago", "64", "a", "(2),", "b", "(1)"]
    assert idle == ["new", "-", "idle", "s", "ago", "64", "-"]


def test_no_workers_says_how_to_start_one(lists: dict[str, Any], capsys: Shown) -> None:
    lists["/v1/workers"] = []
    assert run(["workers"]) == 0
    assert "`tuner worker`" in capsys.readouterr().err


def test_the_kinds_are_those_of_the_service() -> None:
    assert set(Kind) == set(CATALOGUE) - {"datasets"}  # those are in `tuner data list`


@pytest.mark.parametrize("kind", sorted(Kind))
def test_every_entry_can_be_shown(lists: dict[str, Any], capsys: Shown, kind: str) -> None:
    assert run(["catalogue", kind]) == 0
    listed = capsys.readouterr().out
    for entry in lists[f"/v1/{kind}"]:
        assert entry["name"] in listed
        assert run(["catalogue", kind, entry["name"]]) == 0
        shown = capsys.readouterr().out
        assert all(option["name"] in shown for option in entry["options"])


@pytest.mark.usefixtures("lists")
def test_ranges_and_defaults_are_shown(capsys: Shown) -> None:
    run(["catalogue", "optimizers", "adam"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert lines["learning_rate"].split()[:5] == ["learning_rate", "float", ">", "0", "0.001"]
    assert lines["beta1"].split()[:5] == ["beta1", "float", "[0,", "1)", "0.9"]


@pytest.mark.usefixtures("lists")
def test_an_unknown_name_lists_the_known_ones(capsys: Shown) -> None:
    assert run(["catalogue", "losses", "hinge"]) == 2
    told = capsys.readouterr().err
    assert "'hinge'" in told
    assert "cross_entropy" in told


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["net"], 2), (["mlp"], 0)])
def test_files_that_workers_refuse_are_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: Shown, arguments: list[str], code: int
) -> None:
    refused = [{"file": "net.py", "reason": "no [b]Python", "workers": ["w"]}]
    told = {"items": catalogue_view("networks"), "refused": refused}

    def client(url: str, *, api_key: str | None = None) -> TunerClient:
        answers = httpx2.MockTransport(lambda _: httpx2.Response(200, json=told))
        return TunerClient(url, api_key=api_key, transport=answers)

    monkeypatch.setattr("tuner_service.cli.options.TunerClient", client)
    assert run(["catalogue", "networks", *arguments]) == code
    shown = capsys.readouterr().err
    assert ("net.py is not offered: no [b]Python" in shown) == (arguments != ["mlp"])


@pytest.mark.usefixtures("lists")
def test_json_is_what_the_service_says(capsys: Shown) -> None:
    assert run(["catalogue", "losses", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == catalogue_view("losses")


def test_every_command_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    names = [command.name for command in app.registered_commands]
    assert [
        name for name in names if f"`tuner {name}" not in page and f"`{name}`" not in page
    ] == []


@pytest.mark.parametrize("command", ["up", "worker", "validate --run"])
def test_commands_that_take_modules_say_so_in_the_documentation(command: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `tuner {command} "))
    assert "--modules" in row


@pytest.mark.usefixtures("lists")
def test_the_catalogue_of_training_shows_its_options(capsys: Shown) -> None:
    assert run(["catalogue", "training"]) == 0
    shown = capsys.readouterr().out
    assert "batch_size" in shown
    assert "label_smoothing" in shown
