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
from tuner_service.up import services as household_module
from tuner_service.up import up
from tuner_service.up.machine import default_workers, free_port, only_one, visible_gpus
from tuner_service.up.services import Child, Services, aside_of

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
    """Returns a household of children that run these programs."""

    def make(*programs: str, grace_seconds: float = 30.0) -> Services:
        children = [
            Child(f"Child {i}", [sys.executable, "-c", code], dict(os.environ), tmp_path / f"{i}")
            for i, code in enumerate(programs)
        ]
        return Services(children, said.append, grace_seconds)

    return make


def is_up(child: Child) -> bool:
    return child.log.exists() and "up" in child.log.read_text()


def test_children_start_and_are_stopped(home: Callable[..., Services]) -> None:
    household = home(SLEEPS, SLEEPS)
    with household.running() as lifeline:
        household.restart_ended(lifeline)
        processes = [child.process for child in household.children]
        until(lambda: all(map(is_up, household.children)))
    assert [process.returncode for process in processes if process] == [-signal.SIGTERM] * 2


def test_a_child_that_dies_is_started_again_ever_more_slowly(
    home: Callable[..., Services], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(household_module, "FIRST_PAUSE_SECONDS", 0.01)
    household = home(DIES)
    (child,) = household.children
    child.pause = 0.01
    with household.running() as lifeline:
        until(lambda: household.restart_ended(lifeline) or len(said) == 4)  # type: ignore[func-returns-value]
    starts = [f"Child 0 ended with exit code 7; starting it again in {p} s." for p in
              ("0.01", "0.02", "0.04", "0.08")]  # fmt: skip
    assert [line.partition(" The end")[0] for line in said] == starts
    assert "why I died" in said[0]


def test_a_child_that_cannot_be_started_is_tried_again(
    home: Callable[..., Services], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    household = home(SLEEPS)
    (child,) = household.children
    child.pause = 0.01
    popen, failures = subprocess.Popen, [OSError(11, "no process to be had"), OSError(12, "nor")]

    def scarce(*arguments: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return popen(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", scarce)
    with household.running() as lifeline:
        until(lambda: household.restart_ended(lifeline) or is_up(child))  # type: ignore[func-returns-value]
    assert [line.partition("; trying")[2] for line in said] == [
        " again in 0.01 s.",
        " again in 0.02 s.",
    ]
    assert "Child 0 cannot be started: [Errno 11] no process to be had" in said[0]


def test_the_pause_is_short_again_after_a_steady_time(home: Callable[..., Services]) -> None:
    (child,) = home(DIES).children
    child.pause = 16.0
    reading, writing = os.pipe()
    child.start(reading, now=0.0)
    assert child.process is not None
    child.process.wait()
    child.ended(now=household_module.STEADY_SECONDS + 1)
    os.close(reading)
    os.close(writing)
    assert child.pause == 2 * household_module.FIRST_PAUSE_SECONDS


def test_a_child_that_does_not_stop_is_killed(
    home: Callable[..., Services], said: list[str]
) -> None:
    household = home(STUBBORN, grace_seconds=0.3)
    with household.running() as lifeline:
        household.restart_ended(lifeline)
        process = household.children[0].process
        until(lambda: is_up(household.children[0]))
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert said == ["Child 0 does not stop; killing it"]


def test_a_second_request_hurries(home: Callable[..., Services]) -> None:
    household = home(STUBBORN, grace_seconds=1000.0)
    with household.running() as lifeline:
        household.restart_ended(lifeline)
        until(lambda: is_up(household.children[0]))
        household.request_stop()
        household.request_stop()
    assert household.children[0].process is not None  # and we are here: nobody waited


def test_what_a_child_has_started_does_not_stay(
    home: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(household_module, "ORPHAN_SECONDS", 0.1)
    household = home(HAS_A_CHILD)
    (child,) = household.children
    with household.running() as lifeline:
        household.restart_ended(lifeline)
        until(lambda: child.log.exists() and child.log.read_text().count("up") == 2)
        assert child.process is not None
        (grandchild,) = psutil.Process(child.process.pid).children()
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


LIFELINE = (
    "import signal, sys, time\n"
    "from tuner_service.up.parent_watch import hold\n"
    "if IGNORES: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "hold(int(sys.argv[1]), grace_seconds=0.2)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(("ignores", "code"), [(False, -signal.SIGTERM), (True, -signal.SIGKILL)])
def test_the_end_of_the_lifeline_ends_the_child(ignores: bool, code: int) -> None:
    reading, writing = os.pipe()
    program = LIFELINE.replace("IGNORES", str(ignores))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(reading)], pass_fds=[reading]
    ) as child:
        os.close(reading)
        os.close(writing)
        assert child.wait(60) == code


def test_an_api_that_does_not_start_is_told_with_its_log(
    home: Callable[..., Services], tmp_path: Path
) -> None:
    household = home(DIES)
    settings = Settings(data_dir=tmp_path, port=1)
    with (
        pytest.raises(up.StartError, match=r"(?s)The API does not start.*why I died"),
        household.running() as lifeline,
    ):
        up._await_api(household, settings, lifeline)


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
    [("", []), ("GPU 0: H200 (UUID: x)\nGPU 1: H200 (UUID: y)\n", ["0", "1"])],
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
    monkeypatch.setattr(household_module, "LOG_BYTES", 1000)
    household = home(
        "import time; print('x' * 1000, flush=True); time.sleep(0.2)\n"
        "while True: print('later', flush=True); time.sleep(0.05)"
    )
    (child,) = household.children
    aside = child.log.with_name(f"{child.log.name}.1")
    with household.running() as lifeline:
        household.restart_ended(lifeline)
        child.log.chmod(0o600)
        until(lambda: child.log.stat().st_size > 1000)
        household.restart_ended(lifeline)
        assert aside.read_text().startswith("x" * 1000)
        assert aside.stat().st_mode & 0o777 == 0o600
        until(lambda: "later" in child.log.read_text())
    assert child.log.read_bytes().startswith(b"later")  # no hole of zeros before it


def test_a_module_that_workers_refuse_is_told_once(
    home: Callable[..., Services], said: list[str]
) -> None:
    household = home(SLEEPS, SLEEPS, SLEEPS)
    with household.running() as lifeline:
        up._attend(household, lifeline)
        until(lambda: all(map(is_up, household.children)))
        for child in household.children[1:]:
            with child.log.open("a") as log:
                log.write("WARNING module net.py is not offered: no Python [worker=w-1]\nmore")
        for _ in range(3):
            up._attend(household, lifeline)
    assert said == ["Module net.py is not offered: no Python"]


def test_the_news_of_a_log_are_whole_lines_also_when_it_begins_anew(
    home: Callable[..., Services],
) -> None:
    (child,) = home(DIES).children
    assert child.news() == []
    child.log.write_text("first\nsec")
    assert child.news() == ["first"]
    child.log.write_text("first\nsecond\n")
    assert child.news() == ["second"]
    child.log.write_text("new\n")
    assert child.news() == ["new"]


def test_the_end_of_a_log_is_read_alone(home: Callable[..., Services]) -> None:
    (child,) = home(DIES).children
    with child.log.open("wb") as log:
        log.truncate(1 << 40)  # more than could be read whole
        log.seek(0, os.SEEK_END)
        log.write(b"\nfirst\nl\xc3\xa4st\n")
    assert child.tail(2) == "    first\n    l\u00e4st"


def test_the_words_before_a_turn_are_found(home: Callable[..., Services]) -> None:
    (child,) = home(DIES).children
    aside_of(child.log).write_text("why I died\n")
    child.log.write_text("")
    assert child.tail() == "    why I died"
    child.log.write_text("later\n")
    assert child.tail() == "    later"


def test_a_service_that_starts_keeps_no_log_of_the_one_before(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("old")
    aside_of(log).write_text("older")
    up._fresh(log)
    assert [path.name for path in tmp_path.iterdir()] == ["api.log"]
    assert log.read_text() == ""
