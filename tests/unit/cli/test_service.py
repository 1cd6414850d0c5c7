"""The commands on this machine: migrate, keys, storage-url, and refusals of serve, up, worker."""

import json
import logging
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tuner_service.cli import run

Tuner = Callable[..., int]
Shown = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """`serve` sets up logging for its process, which here is the tests'."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuner:
    """Run a command line on a data directory of its own."""
    for name in [name for name in os.environ if name.startswith("TUNER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TUNER_DATA_DIR", str(tmp_path / "data"))
    return lambda *arguments: run(arguments)


@pytest.fixture
def migrated(tuner: Tuner, tmp_path: Path, migrated_sqlite: Path) -> Tuner:
    """As `tuner`, with the tables there."""
    (tmp_path / "data").mkdir(mode=0o700)
    shutil.copy(migrated_sqlite, tmp_path / "data" / "tuner.db")
    return tuner


def test_no_command_shows_the_help(tuner: Tuner, capsys: Shown) -> None:
    assert tuner() == 0
    assert "submit" in capsys.readouterr().out


def test_version(tuner: Tuner, capsys: Shown) -> None:
    assert tuner("--version") == 0
    assert capsys.readouterr().out.startswith("tuner ")


def test_migrate_makes_a_private_database(tuner: Tuner, tmp_path: Path) -> None:
    assert tuner("migrate") == 0
    assert tuner("migrate") == 0  # a second time changes nothing
    data = tmp_path / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    with closing(sqlite3.connect(data / "tuner.db")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert {"trials", "tuner_slots"} <= tables


def test_storage_url_is_for_optuna(tuner: Tuner, tmp_path: Path, capsys: Shown) -> None:
    assert tuner("storage-url") == 0
    assert capsys.readouterr().out == f"sqlite:///{tmp_path}/data/tuner.db\n"


def test_the_data_directory_can_be_an_option(tuner: Tuner, tmp_path: Path, capsys: Shown) -> None:
    assert tuner("storage-url", "--data-dir", str(tmp_path / "other")) == 0
    assert capsys.readouterr().out == f"sqlite:///{tmp_path}/other/tuner.db\n"


def test_a_key_is_shown_once_and_can_be_revoked(migrated: Tuner, capsys: Shown) -> None:
    assert migrated("keys", "create", "ci", "--scope", "read", "--expires", "30d", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"].startswith("tuner_")
    assert made["scopes"] == ["read"]
    assert made["expires_at"] is not None
    assert migrated("keys", "list") == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "name", "scopes", "created", "expires", "revoked"]
    assert line.count(" UTC") == 2

    migrated("keys", "list", "--json")
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["id"], listed["name"], listed["scopes"]) == (made["id"], "ci", ["read"])
    assert listed["expires_at"] is not None
    assert made["key"] not in str(listed)

    assert migrated("keys", "revoke", made["id"]) == 0
    capsys.readouterr()
    migrated("keys", "list", "--json")
    revoked = json.loads(capsys.readouterr().out)
    assert revoked[0]["revoked_at"] is not None

    assert migrated("keys", "revoke", made["id"]) == 0
    assert capsys.readouterr().out == f"{made['id']} was revoked before.\n"
    migrated("keys", "list", "--json")
    assert json.loads(capsys.readouterr().out) == revoked


def test_the_key_alone_is_on_stdout(migrated: Tuner, capsys: Shown) -> None:
    migrated("keys", "create", "ci")
    assert capsys.readouterr().out.strip().startswith("tuner_")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "ci", "--scope", "root"), "scopes must be some of read, write"),
        (("create", "ci", "--expires", "soon"), "A time looks like 90s, 30m, 12h or 30d"),
        (("create", "ci", "--expires", "-1d"), "must lie in the future"),
        (("revoke", "nix"), "there is no API key with the id 'nix'"),
    ],
    ids=str,
)
def test_wrong_keys_are_bad_input(
    migrated: Tuner, capsys: Shown, arguments: tuple[str, ...], words: str
) -> None:
    assert migrated("keys", *arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", [("serve",), ("keys", "list")], ids=" ".join)
def test_a_database_without_tables_names_the_command(
    tuner: Tuner, tmp_path: Path, capsys: Shown, command: tuple[str, ...]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tuner.db").touch()
    assert tuner(*command) == 1
    assert "run `tuner migrate`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "up"])
def test_others_are_not_let_in_without_a_key(migrated: Tuner, capsys: Shown, command: str) -> None:
    assert migrated(command, "--host", "0.0.0.0", "--port", "0") == 2
    assert "tuner keys create" in capsys.readouterr().err


def test_up_refuses_a_key_that_is_too_short(
    migrated: Tuner, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setenv("TUNER_API_KEY", "short")
    assert migrated("up", "--port", "0") == 2
    assert "TUNER_API_KEY needs at least 16 characters, but has 5" in capsys.readouterr().err


def test_up_says_that_the_port_is_taken(tuner: Tuner, capsys: Shown) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert tuner("up", "--port", str(port)) == 2
    assert capsys.readouterr().err.startswith(
        f"tuner: Cannot listen on 127.0.0.1:{port}: Address already in use."
    )


@pytest.mark.parametrize(
    ("name", "value"), [("TUNER_LEASE_SECONDS", "soon"), ("TUNER_FLUSH_SECONDS", "100")]
)
def test_a_wrong_setting_is_named(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch, capsys: Shown, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert tuner("migrate") == 2
    shown = capsys.readouterr().err
    assert name.removeprefix("TUNER_").lower() in shown.lower()
    assert value in shown


def test_worker_becomes_the_worker_process(
    tuner: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.extend(arguments))

    tuner("worker", "--device", "cpu", "--threads", "2", "--data-dir", str(tmp_path))

    _, command, environment = became
    assert command[1:] == [
        "-P", "-m", "workers", "--device", "cpu", "--log-level", "info", "--threads", "2"
    ]  # fmt: skip
    assert environment["TUNER_DATA_DIR"] == str(tmp_path)
