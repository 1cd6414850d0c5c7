"""`tuner doctor`: what it finds on machines that lack something."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.disk import full, small_disk
from tuner_service import doctor, extras
from tuner_service.cli import run
from tuner_service.errors import InputError
from tuner_service.settings import Settings
from tuner_service.storage import migrate
from tuner_service.up import machine

ON_CPU = {"version": "2.13.0+cpu", "cuda_build": None, "gpus": [], "reason": "AssertionError: no"}
TRAINED = {"metrics": {"val_accuracy": 0.9}, "device": "cpu"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("TUNER_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TUNER_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0)


def machine_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **tools: str) -> None:
    """Leave nothing on PATH but these shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in tools.items():
        tool = folder / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_gpu_that_only_nvidia_smi_sees_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(tmp_path, monkeypatch, nvidia_smi="echo 'GPU 0: NVIDIA H200 (UUID: x)'")
    listed = doctor.visible_gpus()
    assert listed == ["0"]
    found = doctor.cuda(ON_CPU, listed)
    assert (found.state, found.remedy) == (
        "problem",
        "install torch's build for CUDA, or train on the CPU: tuner up --device cpu",
    )
    assert "nvidia-smi lists 1, and torch can use none: AssertionError: no" in found.detail
    old_driver = doctor.cuda({**ON_CPU, "cuda_build": "13.0"}, listed)
    assert old_driver.remedy.startswith("a driver for CUDA 13.0")


def test_what_torch_can_use_counts_whatever_nvidia_smi_says() -> None:
    found = doctor.cuda({**ON_CPU, "cuda_build": "13.0", "gpus": ["NVIDIA H200"]}, [])
    assert (found.state, found.detail) == ("ok", "1 usable: NVIDIA H200")
    assert doctor.cuda(ON_CPU, []).state == "absent"


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    torch, cuda = doctor.torch()
    assert (torch.name, torch.state, cuda.name) == ("torch", "ok", "cuda")
    assert torch.detail[0].isdigit()


def test_a_torch_that_cannot_be_imported_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "path" / "workers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "device_report.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    environment = {"PYTHONPATH": str(package.parent)}
    monkeypatch.setattr(machine, "worker_environment", lambda _: environment)
    (found,) = doctor.torch()
    assert (found.state, found.remedy[:11]) == ("problem", "pip install")
    assert "libcudart.so.13" in found.detail


def test_a_missing_compiler_costs_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(tmp_path, monkeypatch)
    found = doctor.compiler()
    assert (found.state, found.remedy) == ("warning", "apt install g++")
    (tmp_path / "bin" / "clang++").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "clang++").chmod(0o755)
    assert doctor.compiler().state == "ok"


def test_a_missing_header_costs_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda _: str(tmp_path))
    found = doctor.python_header()
    assert (found.state, found.remedy) == (
        "warning",
        f"apt install python3.{sys.version_info[1]}-dev",
    )
    (tmp_path / "Python.h").touch()
    assert doctor.python_header().state == "ok"


def test_a_full_disk_is_a_problem(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        if disk is None:
            pytest.skip("no right to mount a small disk")
        settings = Settings(data_dir=disk / "not" / "made" / "yet")
        assert doctor.disk(settings).state == "warning"  # 256 MiB are little
        with full(disk):
            found = doctor.disk(settings)
        assert found.state == "problem"
        assert "no space left" in found.detail
        assert not (disk / "not").exists()


class Answer(BaseHTTPRequestHandler):
    """Answers as a tuner service's /healthz does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok", "version": "0.1.0"}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def service_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_taken_port_is_a_problem_unless_a_service_of_ours_has_it(
    settings: Settings, service_port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        stranger.settimeout(0.1)
        found = doctor.port(settings.model_copy(update={"port": taken}))
    assert (found.state, found.remedy.split(",")[0]) == ("problem", f"tuner up --port {taken + 1}")
    ours = doctor.port(settings.model_copy(update={"port": service_port}))
    assert (ours.state, ours.detail) == ("ok", f"127.0.0.1:{service_port}: a tuner service answers")


def test_the_database_is_looked_at_and_not_made(settings: Settings) -> None:
    assert doctor.database(settings).state == "ok"
    assert not settings.data_dir.exists()
    settings.directory.prepare()
    migrate(settings.resolved_database_url)
    assert doctor.database(settings).detail == "SQLite, of this version"
    (settings.data_dir / "tuner.db").write_bytes(b"")
    found = doctor.database(settings)
    assert found.state == "problem"
    assert "tuner migrate" in found.remedy


def test_a_broker_that_is_away_is_a_problem(settings: Settings) -> None:
    assert doctor.broker(settings).state == "ok"
    away = Settings(data_dir=settings.data_dir, broker_url="redis://127.0.0.1:9/0")  # type: ignore[arg-type]
    found = doctor.broker(away)
    assert (found.state, found.remedy) == ("problem", "start Redis, or set TUNER_BROKER_URL")


def test_a_trial_that_fails_is_a_problem() -> None:
    def fails(_: dict[str, Any]) -> dict[str, Any]:
        raise InputError("the process ended with code -9")

    assert doctor.trial(fails).state == "problem"
    assert "validation accuracy 0.9" in doctor.trial(lambda _: TRAINED).detail


def test_the_command_prints_json_and_its_exit_code_says_whether_there_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = doctor.Finding("python", "ok", "3.11")
    slow = doctor.Finding("compiler", "warning", "none", "apt install g++")
    broken = doctor.Finding("disk", "problem", "full", "make room")
    for findings, code in (([sound, slow], 0), ([sound, broken], 1)):
        monkeypatch.setattr(doctor, "examine", lambda *_, found=findings: iter(found))
        assert run(["doctor", "--json"]) == code
        assert json.loads(capsys.readouterr().out) == [one.as_dict() for one in findings]
        assert run(["doctor"]) == code
        told = capsys.readouterr().out.splitlines()
    assert told == [
        "ok       python    3.11",
        "PROBLEM  disk      full",
        "                   -> make room",
    ]


def test_one_trial_trains_for_one_epoch_for_real(capfd: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json", "--port", "0"])
    found = {one["name"]: one for one in json.loads(capfd.readouterr().out)}
    assert found["trial"]["state"] == "ok", found["trial"]
    assert code == any(one["state"] == "problem" for one in found.values())
    assert list(found)[:3] == ["python", "server", "worker"]


def test_without_the_extras_it_says_what_is_missing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "missing", lambda extra: ["torch", "celery"])
    found = {one.name: one for one in doctor.examine(settings, lambda _: TRAINED)}
    absent = {name for name, one in found.items() if one.state == "absent"}
    assert absent == {"server", "worker", "torch", "database", "broker", "trial"}
    assert found["worker"].remedy.endswith("pip install 'tuner-service[worker]'")
