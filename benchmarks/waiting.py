"""Does anybody who waits hold others up? 50 clients with `?wait` while 4 workers train.

A whole service of processes. Each client follows the study from revision to revision with
`?wait=30` until it has ended; meanwhile `/healthz` and the study are asked for again and again. No
client may miss the end, and none may see a revision fall.

    python -m benchmarks.waiting [--clients 50] [--workers 4] [--backend sqlite|postgresql]
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.rounds import Figure, report
from tests.e2e.service import FINAL, Service, running
from tests.e2e.studies import sampled
from tests.servers import postgres_server, redis_server

GOAL_SECONDS = 0.05
PAUSE_SECONDS = 0.02
TRIALS = 400


async def follow(client: httpx2.AsyncClient, path: str) -> int:
    """Wait from revision to revision until the study's end; return how many there were."""
    revision, seen = -1, 0
    while True:
        query = {"wait": "30", "revision": str(revision)} if seen else {}
        answer = await client.get(path, params=query)
        answer.raise_for_status()
        study = answer.json()
        if study["revision"] < revision:
            raise SystemExit(f"waiting: revision {study['revision']} came after {revision}")
        revision, seen = study["revision"], seen + 1
        if study["state"] in FINAL:
            return seen


async def ask(client: httpx2.AsyncClient, path: str, end: asyncio.Event) -> list[float]:
    """Return the seconds of each request, made until the end."""
    seconds = []
    while not end.is_set():
        begun = time.perf_counter()
        (await client.get(path)).raise_for_status()
        seconds.append(time.perf_counter() - begun)
        await asyncio.sleep(PAUSE_SECONDS)
    return seconds


async def measure(address: str, path: str, clients: int) -> dict[str, Any]:
    """Let clients wait for a study's end, and measure what others get meanwhile."""
    limits = httpx2.Limits(max_connections=clients + 10)
    end = asyncio.Event()
    async with httpx2.AsyncClient(base_url=address, timeout=60.0, limits=limits) as client:
        asked = {what: asyncio.create_task(ask(client, what, end)) for what in ("/healthz", path)}
        seen = await asyncio.gather(*(follow(client, path) for _ in range(clients)))
        end.set()
        return {"answers": sum(seen), **{what: await task for what, task in asked.items()}}


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
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-waiting-") as name,
        place(arguments.backend, Path(name), arguments.workers) as service,
    ):
        study = service.submit(
            sampled("waited-for", "random", TRIALS, training={"epochs": 50})
            | {"resources": {"parallel_trials": 64}}
        )
        path = f"/v1/studies/{study}"
        address = f"http://127.0.0.1:{service.port}"
        begun = time.perf_counter()
        found = asyncio.run(measure(address, path, arguments.clients))
        seconds = time.perf_counter() - begun
        done = service.done(study)
    print(
        f"{arguments.backend}: {arguments.clients} clients, {arguments.workers} workers, {done} of "
        f"{TRIALS} trials in {seconds:.1f} s, {found['answers']} answers to those who waited"
    )
    figures = []
    for what in ("/healthz", path):
        times = found[what]
        p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
        print(f"{what}: {len(times)} requests, median {1000 * statistics.median(times):.1f} ms")
        figures.append(Figure(f"p99 {what}", p99, GOAL_SECONDS, "s", at_least=False))
    report(figures)


if __name__ == "__main__":
    main()
