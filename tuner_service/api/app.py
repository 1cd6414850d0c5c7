"""The FastAPI application: routers, layers around them, and what runs beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner_service import __version__
from tuner_service.api.auth import BasicAuth
from tuner_service.api.http import openapi, problems
from tuner_service.api.http.access_log import AccessLog
from tuner_service.api.http.host_guard import HostGuard
from tuner_service.api.routes import (
    catalogue,
    charts,
    datasets,
    events,
    health,
    pages,
    refit,
    session,
    studies,
    trial_files,
    trials,
)
from tuner_service.api.service import Service
from tuner_service.dashboard import Dashboard, owns
from tuner_service.settings import Settings

_DESCRIPTION = """Hyperparameter studies of PyTorch networks: submit a definition, wait, get the \
best trial.

Every error is an RFC 9457 problem (application/problem+json) with a stable `code`; a bad \
definition lists everything that is wrong with it. Lists come in pages: pass `next_cursor` on as \
`cursor`. Wherever a study's id stands, its name does too."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application on a migrated database.

    Its lifespan runs the threads of `background`, and closes everything at the end.

    Args:
        settings: By default those of the environment.

    Raises:
        SchemaVersionError: The database was not migrated to this version.
        UnavailableError: The database cannot be reached.
    """
    service = Service.open(settings or Settings())
    dashboard = Dashboard(service.db)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for thread in service.background:
            thread.start()
        yield
        service.waiters.release()
        for thread in service.background:
            await run_in_threadpool(thread.stop)
        dashboard.close()
        service.ringer.close()
        service.db.close()

    app = FastAPI(
        title="tuner",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page takes Swagger UI from another site; ours does not
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(AccessLog, metrics=service.metrics),
            Middleware(HostGuard, settings=service.settings),
            Middleware(_Areas, dashboard=dashboard, service=service),
        ],
    )
    app.state.service = service
    problems.install(app)
    openapi.install(app, service.settings)
    for module in (
        studies,
        trials,
        charts,
        events,
        trial_files,
        datasets,
        catalogue,
        health,
        pages,
        session,
        refit,
    ):
        app.include_router(module.router)
    return app


class _Areas:
    """Sends the dashboard's addresses there, and puts authentication before it and `/docs`.

    The page itself is the same for everybody, and asks the API for all that it shows.
    """

    def __init__(self, app: ASGIApp, dashboard: Dashboard, service: Service) -> None:
        self._app = app
        self._pages = BasicAuth(app, service)
        self._dashboard = BasicAuth(dashboard, service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif owns(scope["path"]):
            scope["tuner_area"] = "dashboard"
            await self._dashboard(scope, receive, send)
        elif scope["path"] in ("/docs", "/openapi.json") or scope["path"].startswith("/docs/"):
            await self._pages(scope, receive, send)
        else:
            await self._app(scope, receive, send)
