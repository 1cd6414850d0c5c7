"""Does anybody who waits hold others up? 50 clients with `?wait` while 4 workers train.

A whole service of processes. Each client follows the study from revision to revision with
`?wait=30` until it has ended. Another process asks for `/healthz` and the study in turn, over one
connection, and notes how long each takes. No client may miss the end, and none may see a revision
fall. All of it shares the machine's cores, the clients too.

    python -m benchmarks.waiting [--clients 50] [--workers 4] [--backend sqlite|postgresql]
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rounds import Figure, report
from tests.e2e.service import FINAL, Service, running
from tests.e2e.studies import sampled
from tests.servers import postgres_server, redis_server

GOAL_SECONDS = 0.05
PAUSE_SECONDS = 0.005
TRIALS = 1500


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str
) -> dict[str, Any]:
    """Ask on a connection that is kept; by hand, since a client library costs what it measures."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if not head.startswith("http/1.1 200 "):
        raise SystemExit(f"waiting: {path}: {head}")
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    answer: dict[str, Any] = json.loads(await reader.readexactly(length))
    return answer


async def _follow_one(port: int, path: str) -> int:
    """Wait from revision to revision until the study's end; return how many there were."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    study = await _get(reader, writer, path)
    seen = 1
    while study["state"] not in FINAL:
        before = study["revision"]
        study = await _get(reader, writer, f"{path}?wait=30&revision={before}")
        if study["revision"] < before:
            raise SystemExit(f"waiting: revision {study['revision']} came after {before}")
        seen += 1
    writer.close()
    return seen


def follow(port: int, path: str, clients: int) -> int:
    """Let clients follow a study to its end; return how many answers they got together."""

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(_follow_one(port, path) for _ in range(clients)))

    return sum(asyncio.run(all_of_them()))


def probe(port: int, path: str) -> dict[str, list[float]]:
    """Ask until the study has ended; return the seconds of each request, by what was asked."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60.0)
    seconds: dict[str, list[float]] = {"/healthz": [], path: []}
    body = b"{}"
    while json.loads(body).get("state") not in FINAL:
        for what, times in seconds.items():
            time.sleep(PAUSE_SECONDS)
            begun = time.perf_counter()
            connection.request("GET", what)
            answer = connection.getresponse()
            body = answer.read()
            times.append(time.perf_counter() - begun)
            if answer.status != 200:
                raise SystemExit(f"waiting: {what}: {answer.status}")
    return seconds


@contextlib.contextmanager
def place(backend: str, directory: Path, workers: int) -> Iterator[Service]:
    """Run a service."""
    with contextlib.ExitStack() as stack:
        url, broker = f"sqlite:///{directory / 'tuner.db'}", ""
        if backend == "postgresql":
            postgres = stack.enter_context(postgres_server(durable=True))
            url = postgres.url(postgres.create_database())
            broker = stack.enter_context(redis_server()).url
        yield stack.enter_context(running(Service(directory, url, broker), workers=workers))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    spawning = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="bench-waiting-") as name,
        place(arguments.backend, Path(name), arguments.workers) as service,
        ProcessPoolExecutor(2, mp_context=spawning) as pool,
    ):
        study = service.submit(
            sampled("waited-for", "random", arguments.trials, training={"epochs": 50})
            | {"resources": {"parallel_trials": 64}}
        )
        path = f"/v1/studies/{study}"
        assert service.api is not None
        api = psutil.Process(service.api.pid)
        before = sum(api.cpu_times()[:2])
        begun = time.perf_counter()
        probing = pool.submit(probe, service.port, path)
        answers = pool.submit(follow, service.port, path, arguments.clients).result()
        seconds = time.perf_counter() - begun
        busy = sum(api.cpu_times()[:2]) - before
        asked = probing.result()
        done = service.done(study)
    print(
        f"{arguments.backend}: {arguments.clients} clients, {arguments.workers} workers, {done} of "
        f"{arguments.trials} trials in {seconds:.1f} s ({done / seconds:.1f} a second), {answers} "
        f"answers to those who waited, the API {busy:.1f} s of CPU time"
    )
    figures = []
    for what, label in (("/healthz", "/healthz"), (path, "a study")):
        times = asked[what]
        p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
        print(f"{label}: {len(times)} requests, median {1000 * statistics.median(times):.1f} ms")
        figures.append(Figure(f"p99 {label}", p99, GOAL_SECONDS, "s", at_least=False))
    report(figures)


if __name__ == "__main__":
    main()
