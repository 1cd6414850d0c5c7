"""Prometheus metrics: this process's requests; workers and studies as the database has them."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from tuner_service.lifecycle.counters import study_counts
from tuner_service.reads.workers import list_workers
from tuner_service.storage import Database

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The registry of one process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tuner_http_requests",
            "Requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tuner_http_request_seconds", "Seconds per request.", ["route"], registry=self.registry
        )
        self._waiting = Gauge(
            "tuner_requests_waiting", "Requests held by ?wait.", registry=self.registry
        )
        self._reaped = Counter(
            "tuner_leases_reaped", "Expired leases this process reaped.", registry=self.registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Take the number of held requests from here."""
        self._waiting.set_function(count)

    def reaped(self, count: int) -> None:
        """Count leases that a reconciliation reaped."""
        self._reaped.inc(count)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format; workers and studies are read just now."""
        momentary = CollectorRegistry()
        momentary.register(_WorkerGauges(self._db))
        momentary.register(_StudyGauges(self._db))
        return generate_latest(self.registry) + generate_latest(momentary)


class _WorkerGauges:
    def __init__(self, db: Database) -> None:
        self._db = db

    def describe(self) -> list[Metric]:
        return []  # so that registering does not read the database

    def collect(self) -> Iterator[Metric]:
        workers = list_workers(self._db)
        count = GaugeMetricFamily("tuner_workers", "Live workers.", labels=["queue", "state"])
        for key in sorted({(w.queue, w.state) for w in workers}):
            count.add_metric(key, sum((w.queue, w.state) == key for w in workers))
        yield count
        trials = GaugeMetricFamily("tuner_trials_running", "Trials on workers.", labels=["queue"])
        for queue in sorted({w.queue for w in workers}):
            running = sum(len(w.current_trials) for w in workers if w.queue == queue)
            trials.add_metric([queue], running)
        yield trials


class _StudyGauges:
    def __init__(self, db: Database) -> None:
        self._db = db

    def describe(self) -> list[Metric]:
        return []  # so that registering does not read the database

    def collect(self) -> Iterator[Metric]:
        counts = study_counts(self._db)
        studies = GaugeMetricFamily("tuner_studies", "Studies, by state.", labels=["state"])
        for state, (number, _) in counts.items():
            studies.add_metric([state], number)
        yield studies
        slots = GaugeMetricFamily("tuner_slots_open", "Trials to be run.", labels=["state"])
        for state, (_, open_slots) in counts.items():
            slots.add_metric([state], open_slots)
        yield slots
