"""Keeping children running, with small Python programs for children."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuner_service.errors import SettingsError
from tuner_service.settings import Settings
from tuner_service.up import machine as machine_module
from tuner_service.up import services as services_module
from tuner_service.up import up
from tuner_service.up.machine import default_workers, free_port, only_one, visible_gpus
from tuner_service.up.services import Service, Services, aside_of

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
DIES = "import sys; print('why I died', flush=True); sys.exit(7)"
# As a worker with its trainer: a child in a session of its own, which does not care.
HAS_A_CHILD = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    + repr(STUBBORN)
    + "], start_new_session=True); "
    + SLEEPS
)


def until(probe: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (answer := probe()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def home(tmp_path: Path, said: list[str]) -> Callable[..., Services]:
    """Returns services that run these programs."""

    def make(*programs: str, grace_seconds: float = 30.0) -> Services:
        members = [
            Service(
                f"Service {i}", [sys.executable, "-c", code], dict(os.environ), tmp_path / f"{i}"
            )
            for i, code in enumerate(programs)
        ]
        return Services(members, said.append, grace_seconds)

    return make


def is_up(service: Service) -> bool:
    return service.log.exists() and "up" in service.log.read_text()


def test_children_start_and_are_stopped(home: Callable[..., Services]) -> None:
    services = home(SLEEPS, SLEEPS)
    with services.held() as parent_pipe:
        services.restart_ended(parent_pipe)
        processes = [service.process for service in services.members]
        until(lambda: all(map(is_up, services.members)))
    assert [process.returncode for process in processes if process] == [-signal.SIGTERM] * 2


def test_a_child_that_dies_is_started_again_ever_more_slowly(
    home: Callable[..., Services], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "FIRST_PAUSE_SECONDS", 0.01)
    services = home(DIES)
    (service,) = services.members
    service.pause = 0.01
    with services.held() as parent_pipe:
        until(lambda: services.restart_ended(parent_pipe) or len(said) == 4)  # type: ignore[func-returns-value]
    starts = [f"Service 0 ended with exit code 7; starting it again in {p} s." for p in
              ("0.01", "0.02", "0.04", "0.08")]  # fmt: skip
    assert [line.partition(" The end")[0] for line in said] == starts
    assert "why I died" in said[0]


def test_a_child_that_cannot_be_started_is_tried_again(
    home: Callable[..., Services], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = home(SLEEPS)
    (service,) = services.members
    service.pause = 0.01
    popen, failures = subprocess.Popen, [OSError(11, "no process to be had"), OSError(12, "nor")]

    def scarce(*arguments: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return popen(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", scarce)
    with services.held() as parent_pipe:
        until(lambda: services.restart_ended(parent_pipe) or is_up(service))  # type: ignore[func-returns-value]
    assert [line.partition("; trying")[2] for line in said] == [
        " again in 0.01 s.",
        " again in 0.02 s.",
    ]
    assert "Service 0 cannot be started: [Errno 11] no process to be had" in said[0]


def test_the_pause_is_short_again_after_a_steady_time(home: Callable[..., Services]) -> None:
    (service,) = home(DIES).members
    service.pause = 16.0
    reading, writing = os.pipe()
    service.start(reading, now=0.0)
    assert service.process is not None
    service.process.wait()
    service.ended(now=services_module.STEADY_SECONDS + 1)
    os.close(reading)
    os.close(writing)
    assert service.pause == 2 * services_module.FIRST_PAUSE_SECONDS


def test_a_child_that_does_not_stop_is_killed(
    home: Callable[..., Services], said: list[str]
) -> None:
    services = home(STUBBORN, grace_seconds=0.3)
    with services.held() as parent_pipe:
        services.restart_ended(parent_pipe)
        process = services.members[0].process
        until(lambda: is_up(services.members[0]))
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert said == ["Service 0 does not stop; killing it"]


def test_a_second_request_hurries(home: Callable[..., Services]) -> None:
    services = home(STUBBORN, grace_seconds=1000.0)
    with services.held() as parent_pipe:
        services.restart_ended(parent_pipe)
        until(lambda: is_up(services.members[0]))
        services.request_stop()
        services.request_stop()
    assert services.members[0].process is not None  # and we are here: nobody waited


def test_what_a_child_has_started_does_not_stay(
    home: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "ORPHAN_SECONDS", 0.1)
    services = home(HAS_A_CHILD)
    (service,) = services.members
    with services.held() as parent_pipe:
        services.restart_ended(parent_pipe)
        until(lambda: service.log.exists() and service.log.read_text().count("up") == 2)
        assert service.process is not None
        (grandchild,) = psutil.Process(service.process.pid).children()
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


PARENT_PIPE = (
    "import signal, sys, time\n"
    "from tuner_service.up.parent_watch import hold\n"
    "if IGNORES: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "hold(int(sys.argv[1]), grace_seconds=0.2)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(("ignores", "code"), [(False, -signal.SIGTERM), (True, -signal.SIGKILL)])
def test_the_end_of_the_parent_pipe_ends_the_child(ignores: bool, code: int) -> None:
    reading, writing = os.pipe()
    program = PARENT_PIPE.replace("IGNORES", str(ignores))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(reading)], pass_fds=[reading]
    ) as child:
        os.close(reading)
        os.close(writing)
        assert child.wait(60) == code


def test_an_api_that_does_not_start_is_told_with_its_log(
    home: Callable[..., Services], tmp_path: Path
) -> None:
    services = home(DIES)
    settings = Settings(data_dir=tmp_path, port=1)
    with (
        pytest.raises(up.StartError, match=r"(?s)The API does not start.*why I died"),
        services.held() as parent_pipe,
    ):
        up._await_api(services, settings, parent_pipe)


def test_a_data_directory_serves_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with only_one(settings):
        words = rf"runs already on {tmp_path} \(process {os.getpid()}\)"
        with pytest.raises(SettingsError, match=words), only_one(settings):
            pass
    with only_one(settings):
        pass


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=host):
        free_port(host, 0)


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("", []),
        ("GPU 0: H200 (UUID: x)\nGPU 1: H200 (UUID: y)\n", ["0", "1"]),
        (
            "GPU 0: H200 (UUID: x)\n  MIG 3g.71gb Device 0: (UUID: MIG-a)\n"
            "  MIG 3g.71gb Device 1: (UUID: MIG-b)\nGPU 1: H200 (UUID: y)\n",
            ["MIG-a", "MIG-b", "1"],
        ),
    ],
)
def test_gpus_are_counted_by_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, gpus: list[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("answer", "reason"),
    [({"gpus": [], "reason": "AssertionError: no"}, "AssertionError: no"), ({"gpus": []}, "CPU")],
)
def test_a_gpu_that_torch_cannot_use_is_told_and_workers_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], reason: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(machine_module, "device_report", lambda: answer)
    said: list[str] = []
    assert up._gpus("auto", said.append) == []
    assert "Workers train on the CPU" in said[0]
    assert reason in said[0]
    with pytest.raises(SettingsError, match=reason):
        up._gpus("cuda", said.append)
    monkeypatch.setattr(machine_module, "device_report", lambda: {"gpus": ["H200"]})
    assert up._gpus("auto", said.append) == ["0"]


@pytest.mark.parametrize(("value", "gpus"), [("", []), ("-1", []), ("2,5", ["2", "5"])])
def test_gpus_may_be_chosen(monkeypatch: pytest.MonkeyPatch, value: str, gpus: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == gpus


def test_one_worker_per_gpu_else_per_core_up_to_four() -> None:
    assert default_workers(["0", "1", "2", "3", "4"]) == 5
    assert default_workers([]) == min(len(os.sched_getaffinity(0)), 4)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("tuner.example", "http://tuner.example:8000"),
    ],
)
def test_the_address_is_one_that_this_machine_can_open(host: str, url: str) -> None:
    assert up.address(Settings(host=host, port=8000)) == url


def test_a_full_log_is_set_aside_and_the_child_writes_on(
    home: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "LOG_BYTES", 1000)
    services = home(
        "import time; print('x' * 1000, flush=True); time.sleep(0.2)\n"
        "while True: print('later', flush=True); time.sleep(0.05)"
    )
    (service,) = services.members
    aside = service.log.with_name(f"{service.log.name}.1")
    with services.held() as parent_pipe:
        services.restart_ended(parent_pipe)
        service.log.chmod(0o600)
        until(lambda: service.log.stat().st_size > 1000)
        services.restart_ended(parent_pipe)
        assert aside.read_text().startswith("x" * 1000)
        assert aside.stat().st_mode & 0o777 == 0o600
        until(lambda: "later" in service.log.read_text())
    assert service.log.read_bytes().startswith(b"later")  # no hole of zeros before it


def test_a_module_that_workers_refuse_is_told_once(
    home: Callable[..., Services], said: list[str]
) -> None:
    services = home(SLEEPS, SLEEPS, SLEEPS)
    with services.held() as parent_pipe:
        up._attend(services, parent_pipe)
        until(lambda: all(map(is_up, services.members)))
        for service in services.members[1:]:
            with service.log.open("a") as log:
                log.write("WARNING module net.py is not offered: no Python [worker=w-1]\nmore")
        for _ in range(3):
            up._attend(services, parent_pipe)
    assert said == ["Module net.py is not offered: no Python"]


def test_the_news_of_a_log_are_whole_lines_also_when_it_begins_anew(
    home: Callable[..., Services],
) -> None:
    (service,) = home(DIES).members
    assert service.news() == []
    service.log.write_text("first\nsec")
    assert service.news() == ["first"]
    service.log.write_text("first\nsecond\n")
    assert service.news() == ["second"]
    service.log.write_text("new\n")
    assert service.news() == ["new"]


def test_the_end_of_a_log_is_read_alone(home: Callable[..., Services]) -> None:
    (service,) = home(DIES).members
    with service.log.open("wb") as log:
        log.truncate(1 << 40)  # more than could be read whole
        log.seek(0, os.SEEK_END)
        log.write(b"\nfirst\nl\xc3\xa4st\n")
    assert service.tail(2) == "    first\n    l\u00e4st"


def test_the_words_before_a_turn_are_found(home: Callable[..., Services]) -> None:
    (service,) = home(DIES).members
    aside_of(service.log).write_text("why I died\n")
    service.log.write_text("")
    assert service.tail() == "    why I died"
    service.log.write_text("later\n")
    assert service.tail() == "    later"


def test_a_service_that_starts_keeps_no_log_of_the_one_before(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("old")
    aside_of(log).write_text("older")
    up._fresh(log)
    assert [path.name for path in tmp_path.iterdir()] == ["api.log"]
    assert log.read_text() == ""
