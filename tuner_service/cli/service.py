"""Commands that run the service or look after it; they work on this machine's settings."""

import os
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tuner_service import extras, logs
from tuner_service.cli import show
from tuner_service.cli.options import AsJson, DataDir, Device, Modules
from tuner_service.errors import InputError, SettingsError, TunerError
from tuner_service.layout import worker_environment

keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

Host = Annotated[str | None, typer.Option(envvar="TUNER_HOST", help="Address to listen on.")]
Port = Annotated[
    int | None, typer.Option(envvar="TUNER_PORT", help="Port to listen on.", min=0, max=65535)
]
ParentPipe = Annotated[int | None, typer.Option(hidden=True)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    typer.Option(envvar="TUNER_LOG_LEVEL", help="How much to log."),
]

_TIMES = ("created_at", "expires_at", "revoked_at")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


# The imports within these functions bring FastAPI, SQLAlchemy or Optuna: a second that
# `tuner status` need not spend.


def up(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="By default one per GPU, or per core but at most 4."),
    ] = None,
    device: Device = "auto",
    modules: Modules = None,
    until_released: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run API, dashboard and workers on this machine until Ctrl-C."""
    extras.require("all", "`tuner up`")
    from tuner_service.up import up  # noqa: PLC0415

    if modules is not None:
        os.environ["TUNER_MODULES_DIR"] = str(modules.absolute())  # the workers read it
    up.up(
        settings_of(host=host, port=port, data_dir=data_dir),
        workers=workers,
        device=device,
        say=_say,
        until_released=until_released,
    )


def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    log_level: LogLevel = "info",
    log_json: Annotated[
        bool, typer.Option("--log-json", envvar="TUNER_LOG_JSON", help="Log as JSON.")
    ] = False,
    parent_pipe: ParentPipe = None,
) -> None:
    """Run the API and the dashboard alone; workers run elsewhere."""
    extras.require("server", "`tuner serve`")
    from tuner_service.api.server import serve as run  # noqa: PLC0415
    from tuner_service.up.parent_watch import hold  # noqa: PLC0415

    settings = settings_of(host=host, port=port, data_dir=data_dir)
    if parent_pipe is not None:
        hold(parent_pipe, grace_seconds=settings.grace_seconds)
    logs.configure(level=log_level, as_json=log_json)
    run(settings)


def worker(
    data_dir: DataDir = None,
    device: Device = "auto",
    modules: Modules = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads on a CPU.")] = None,
    loops: Annotated[
        int | None, typer.Option(min=1, help="Training loops of your own to run at once.")
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Run one worker; start one per GPU, or per core."""
    extras.require("worker", "`tuner worker`")
    options = ["--device", device, "--log-level", log_level]
    if threads is not None:
        options += ["--threads", str(threads)]
    if loops is not None:
        options += ["--loops", str(loops)]
    environment = worker_environment(os.environ)
    if data_dir is not None:
        environment["TUNER_DATA_DIR"] = str(data_dir.absolute())
    if modules is not None:
        environment["TUNER_MODULES_DIR"] = str(modules.absolute())
    # -P: a `workers` folder where the user happens to stand must not be taken for ours.
    command = [sys.executable, "-P", "-m", "workers", *options]
    os.execve(sys.executable, command, environment)  # noqa: S606 - becomes the worker


def migrate(data_dir: DataDir = None) -> None:
    """Create or upgrade the database's tables."""
    extras.require("storage", "`tuner migrate`")
    from tuner_service.storage import migrate as run  # noqa: PLC0415

    settings = settings_of(data_dir=data_dir)
    settings.directory.prepare()
    run(settings.resolved_database_url)
    show.err.print("The database is up to date.")


def storage_url(data_dir: DataDir = None) -> None:
    """Print the URL for optuna.load_study(storage=URL); it may hold a password."""
    show.out.print(settings_of(data_dir=data_dir).resolved_database_url)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose, or what for.")],
    scope: Annotated[list[str] | None, typer.Option(help="read or write; by default both.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends, as 12h or 30d.", metavar="TIME")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key; it is shown once."""
    extras.require("storage", "`tuner keys`")
    from tuner_service.access import keys as stored  # noqa: PLC0415

    seconds = None if expires is None else _seconds(expires)
    with _database(data_dir) as db:
        key_id, secret = stored.create_key(db, name, scope or stored.SCOPES, seconds)
        (made,) = (key for key in stored.list_keys(db) if key.id == key_id)
    if as_json:
        show.as_json({**made.model_dump(mode="json"), "key": secret})
        return
    show.err.print(f"Key {key_id}; it is not shown again. Give it as --api-key or TUNER_API_KEY.")
    show.err.print("From now on the service asks every caller for a key, on this machine too.")
    show.out.print(secret)


@keys.command("list")
def list_keys(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    extras.require("storage", "`tuner keys`")
    from tuner_service.access import keys as stored  # noqa: PLC0415

    with _database(data_dir) as db:
        found = [key.model_dump(mode="json") for key in stored.list_keys(db)]
    if as_json:
        show.as_json(found)
    elif found:
        show.table(
            ("id", "name", "scopes", "created", "expires", "revoked"),
            [
                [key["id"], key["name"], " ".join(key["scopes"]), *(_time(key[t]) for t in _TIMES)]
                for key in found
            ],
        )
    else:
        show.err.print("No keys. Create one with `tuner keys create NAME`.")


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `tuner keys list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke an API key; it is refused from now on."""
    extras.require("storage", "`tuner keys`")
    from tuner_service.access import keys as stored  # noqa: PLC0415

    with _database(data_dir) as db:
        done = stored.revoke_key(db, key_id)
    show.out.print(f"Revoked {key_id}." if done else f"{key_id} was revoked before.")


def settings_of(**given: Any) -> Any:
    """Return the settings: the environment's, overruled by the options that were given."""
    from pydantic import ValidationError  # noqa: PLC0415

    from tuner_service.settings import Settings  # noqa: PLC0415

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = (
            f"TUNER_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}, but got {e['input']!r}"
            for e in error.errors(include_url=False)
        )
        raise SettingsError("; ".join(faults)) from error


def _database(data_dir: Path | None) -> Any:
    from tuner_service.storage import Database, check_schema  # noqa: PLC0415

    settings = settings_of(data_dir=data_dir)
    settings.directory.prepare()
    db = Database.open(settings.resolved_database_url)
    try:
        check_schema(db)
    except TunerError:
        db.close()
        raise
    return closing(db)


def _say(line: str) -> None:
    # The terminal may be gone (SIGHUP); the children must be stopped all the same.
    with suppress(OSError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _seconds(text: str) -> float:
    try:
        return float(text[:-1]) * _UNITS[text[-1:]]
    except (KeyError, ValueError) as error:
        raise InputError(f"A time looks like 90s, 30m, 12h or 30d, but got {text!r}") from error


def _time(value: str | None) -> str:
    return "-" if value is None else f"{value[:16].replace('T', ' ')} UTC"
