"""The same study through this service and through the script that one would write oneself.

Digits, MLP 2 x 32, batch 16, 10 epochs, 64 trials, TPE over learning rate, optimizer and momentum:
through `POST /v1/studies` to the last row in the database here, `study.optimize` in two processes
there (`benchmarks.usual`). The service's clock runs from the request to the answer that the study
is completed; the baseline's leaves out its imports and the loading of data.

Also measured: the time from `POST` to the first trial's first report in the database, on a warm
worker.

    python -m benchmarks.main_job [--rounds 3] [--trials 64] [--broker filesystem redis]
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import usual
from benchmarks.rounds import Figure, describe, interleave, median_ratio, report
from tests.e2e.service import Service, running
from tests.servers import MissingServerError, redis_server

LATENCY_GOALS = {"filesystem": 1.0, "redis": 0.3}
LATENCY_SAMPLES = 10
WORKERS = 2


def definition(trials: int) -> dict[str, Any]:
    """Return the study, the same as the baseline's."""
    return {
        "name": "main-job",
        "dataset": {"name": "digits", "split": {"validation": 0.1, "test": 0.2, "seed": 0}},
        "network": {
            "type": "mlp",
            "hidden_layers": 2,
            "hidden_units": usual.HIDDEN_UNITS,
            "activation": "relu",
        },
        "objective": {"metric": "val_accuracy", "direction": "maximize"},
        "parameters": {
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
            "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
            "momentum": {
                "type": "float",
                "low": 0.0,
                "high": 0.99,
                "when": {"optimizer": ["sgd"]},
            },
        },
        "sampler": {"type": "tpe"},
        "training": {"epochs": usual.EPOCHS, "batch_size": usual.BATCH_SIZE, "seed": 0},
        "budget": {"trials": trials},
    }


def run_study(service: Service, study_definition: dict[str, Any]) -> float:
    """Return the trials per second of one study, from the request to its completion."""
    trials = study_definition["budget"]["trials"]
    start = time.perf_counter()
    study = service.submit(study_definition)
    seen = service.study(study)
    while seen["state"] in ("queued", "running"):
        etag = {"If-None-Match": f'"{seen["revision"]}"'}
        seen = service.request("GET", f"/v1/studies/{study}?wait=20", headers=etag) or seen
    seconds = time.perf_counter() - start
    if seen["state"] != "completed" or seen["progress"]["done"] != trials:
        raise SystemExit(f"the study ended as {seen['state']}: {seen['progress']}")
    return float(trials / seconds)


def throughput(service: Service, trials: int) -> float:
    """Return the trials per second of the main job."""
    return run_study(service, definition(trials))


def first_report(service: Service) -> float:
    """Return the seconds from a request to its first report in the database."""
    start = time.perf_counter()
    study = service.submit(definition(1))
    while not any(trial["last_step"] for trial in service.trials(study)):
        if time.perf_counter() - start > 60.0:
            raise SystemExit(f"main_job: no report within a minute\n{service.logs()}")
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    service.wait(study)
    return seconds


@contextlib.contextmanager
def service_on(broker: str) -> Iterator[Service]:
    """Run a service on SQLite and the broker, as `tuner up` does on two cores."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-job-")))
        url = stack.enter_context(redis_server()).url if broker == "redis" else ""
        service = Service(directory, f"sqlite:///{directory / 'tuner.db'}", url)
        yield stack.enter_context(running(service, workers=WORKERS))


def latency(service: Service, broker: str) -> Figure:
    """Measure the time to the first report on a warm worker."""
    first_report(service)
    samples = [first_report(service) for _ in range(LATENCY_SAMPLES)]
    print(
        f"POST to first report, {broker}: median {statistics.median(samples):.3f} s, "
        f"worst of {len(samples)} {max(samples):.3f} s"
    )
    return Figure(
        f"POST to first report, warm worker, {broker}",
        statistics.median(samples),
        LATENCY_GOALS[broker],
        "s",
        at_least=False,
    )


def speed(service: Service, *, rounds: int, trials: int) -> Figure:
    """Measure the study through the service against the usual script."""
    cold = throughput(service, trials)
    results = interleave(
        {
            "service": partial(throughput, service, trials),
            "usual script": partial(usual.run, trials),
        },
        rounds,
    )
    print(f"digits, MLP 2x32, batch 16, 10 epochs, {trials} trials, {rounds} rounds:")
    print("\n".join(describe(results, "trials/s")))
    print(f"  {'service, first study, cold':<28} {cold:9.2f} trials/s")
    ratio = median_ratio(results, "service", "usual script")
    # The request for this first benchmark names no goal; 1 is where the service would cost time.
    return Figure(f"main job, {trials} trials over REST", ratio, 1.0, "x usual")


def figures(brokers: list[str], *, rounds: int = 3, trials: int = 64) -> list[Figure]:
    """Measure what can be measured here; throughput on the first broker only."""
    found = []
    for number, broker in enumerate(brokers):
        try:
            with service_on(broker) as service:
                found.append(latency(service, broker))
                if number == 0:
                    found.append(speed(service, rounds=rounds, trials=trials))
        except MissingServerError as missing:
            print(f"{broker}: not measured ({missing})", file=sys.stderr)
    return found


def quick() -> list[Figure]:
    """Measure for `make bench`."""
    return figures(list(LATENCY_GOALS), rounds=1)


def main() -> None:
    """Print trials per second of both, their ratio, and the latency."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument(
        "--broker", nargs="+", choices=list(LATENCY_GOALS), default=list(LATENCY_GOALS)
    )
    arguments = parser.parse_args()
    report(figures(arguments.broker, rounds=arguments.rounds, trials=arguments.trials))


if __name__ == "__main__":
    main()
