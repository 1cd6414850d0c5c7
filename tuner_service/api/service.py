"""What every request needs, built once per process and handed to the routers."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Request

from tuner_service.access.keys import any_key_made, hash_of, valid_hashes, verify_key
from tuner_service.api.background import BackgroundThread, Reconciler, Remover, Sweeper
from tuner_service.api.chart_cache import ChartCache, ListVersion
from tuner_service.api.http.rates import KeyVerifier, Rates
from tuner_service.api.http.responses import StudyAnswer
from tuner_service.api.key_rule import KeyRule
from tuner_service.api.readiness import ReadyChecks
from tuner_service.api.routes.metrics import Metrics
from tuner_service.api.waiting import RevisionWaiters, SharedReads
from tuner_service.broker.ring import Ringer
from tuner_service.datasets import DatasetStore
from tuner_service.errors import TunerError
from tuner_service.files import check_writable
from tuner_service.reads.studies import get_study
from tuner_service.settings import Settings
from tuner_service.storage import Database, check_schema


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of the running service."""

    settings: Settings
    db: Database
    ringer: Ringer
    reconciler: Reconciler
    sweeper: Sweeper
    remover: Remover
    waiters: RevisionWaiters
    reads: SharedReads
    metrics: Metrics
    datasets: DatasetStore
    rates: Rates
    ready: ReadyChecks
    attempts: KeyVerifier
    key_rule: KeyRule
    charts: ChartCache
    list_version: ListVersion

    @property
    def background(self) -> tuple[BackgroundThread, ...]:
        """What runs beside the requests, in the order in which it is stopped."""
        return self.sweeper, self.reconciler, self.remover

    @classmethod
    def open(cls, settings: Settings) -> "Service":
        """Open the database and put the parts together; nothing runs yet.

        Raises:
            SchemaVersionError: The database was not migrated to this version.
            UnavailableError: The database cannot be reached.
        """
        db = Database.open(settings.resolved_database_url)
        try:
            check_schema(db)
        except TunerError:
            db.close()
            raise
        ringer = Ringer(settings)
        metrics = Metrics(db)
        reads = SharedReads(lambda ref: StudyAnswer.of(get_study(db, ref)))
        waiters = RevisionWaiters(db, reads.get)
        metrics.watch_waiting(waiters.__len__)
        return cls(
            settings=settings,
            db=db,
            ringer=ringer,
            reconciler=Reconciler(db, ringer, metrics, settings=settings),
            sweeper=Sweeper(db, settings=settings),
            remover=Remover(db, settings=settings),
            waiters=waiters,
            reads=reads,
            metrics=metrics,
            datasets=DatasetStore.of(settings),
            rates=Rates(settings),
            ready=ReadyChecks(
                {
                    "database": partial(_ask, db),
                    "schema": partial(check_schema, db),
                    "broker": ringer.ping,
                    "files": partial(check_writable, settings.data_dir),
                }
            ),
            attempts=_attempts(db, settings.api_key.get_secret_value()),
            key_rule=KeyRule(settings, partial(any_key_made, db)),
            charts=ChartCache(db),
            list_version=ListVersion(db),
        )


def _ask(db: Database) -> None:
    if db.damage is not None:
        raise db.damage
    with db.read() as connection:
        db.now(connection)


def _attempts(db: Database, configured: str) -> KeyVerifier:
    also = {hash_of(configured)} if configured else set()
    return KeyVerifier(
        partial(verify_key, db, configured=configured), lambda: valid_hashes(db) | also
    )


async def _service(request: Request) -> Service:  # not async, it would cost a thread each time
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
