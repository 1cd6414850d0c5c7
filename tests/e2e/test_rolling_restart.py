"""A rolling restart under load: every process is replaced in turn, and no caller notices."""

import contextlib
import dataclasses
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.e2e.service import Service, until
from tests.e2e.studies import sampled
from tests.invariants import check_invariants
from tests.servers import free_port
from tuner_service.settings import Settings
from tuner_service.storage import Database

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

TRIALS = 4
RETRIED = (502, 503, 504)
STOPPED = (0, -signal.SIGTERM)  # uvicorn stops in order, and then by the signal that it was sent


@dataclass
class Caller:
    """Knows two API processes; asks the other one, once, if the first does not answer."""

    ports: tuple[int, int]
    studies: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Return the answer's JSON; None, noted, where the retry fails as well."""
        tries = []
        for port in self.ports:
            url = f"http://127.0.0.1:{port}{path}"
            try:
                answer = httpx2.request(method, url, timeout=20.0, **more)
            except httpx2.HTTPError as error:
                tries.append(repr(error))
                continue
            if answer.status_code not in RETRIED:
                self.statuses[answer.status_code] += 1
                return answer.json()
            tries.append(str(answer.status_code))
        self.failures.append(f"{method} {path}: {' and '.join(tries)}")
        return None

    def submit_and_wait(self) -> None:
        """Submit a study, and wait until it changes."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        definition = sampled("rolling", "random", TRIALS, training={"epochs": 40})
        study = self.ask("POST", "/v1/studies", json=definition, headers=key)
        if study is not None:
            self.studies.append(study["id"])
            self.ask("GET", f"/v1/studies/{study['id']}?wait=5&revision={study['revision']}")
            self.ask("GET", f"/v1/studies/{study['id']}/trials")


@contextlib.contextmanager
def calling(work: Callable[[], None]) -> Iterator[None]:
    """Do the work over and over beside the block."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.3):
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60.0)
        assert not thread.is_alive()


@contextlib.contextmanager
def second_api(service: Service) -> Iterator[Service]:
    """Run another API process on the same database."""
    second = dataclasses.replace(service, api=None, workers=[], ended=[], port=free_port())
    second.start_api()
    try:
        yield second
    finally:
        second.close()


def replace_api(one: Service) -> int:
    """Stop an API process and start it anew; return the old one's exit code."""
    assert one.api is not None
    code = one.stop(one.api)
    one.start_api()
    return code


def replace_worker(service: Service) -> int:
    """Stop the oldest worker; return its exit code when a new one is listed."""
    code = service.stop(service.workers[0])
    service.scale(2)
    return code


def test_a_rolling_restart_loses_nothing_and_no_caller_notices(service: Service) -> None:
    service.scale(2)
    with second_api(service) as second, contextlib.ExitStack() as load:
        callers = [Caller((service.port, second.port)), Caller((second.port, service.port))]
        long = service.submit(sampled("long", "random", 8, training={"epochs": 2_000}))
        until(lambda: service.study(long)["progress"]["leased"], what="running trials")
        for caller in callers:
            load.enter_context(calling(caller.submit_and_wait))
        for replace in (replace_api, replace_worker):
            assert replace(service) in STOPPED
        assert replace_api(second) in STOPPED
        assert replace_worker(service) in STOPPED
        load.close()
        assert [failure for caller in callers for failure in caller.failures] == []
        studies = [study for caller in callers for study in caller.studies]
        assert len(studies) == len(set(studies)) >= 4
        for study in [long, *studies]:
            assert service.wait(study)["state"] == "completed"
            assert {trial["state"] for trial in service.trials(study)} == {"COMPLETE"}
    with contextlib.closing(Database.open(service.database_url)) as db:
        check_invariants(db, settings=Settings(data_dir=service.directory))
