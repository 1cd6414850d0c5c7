"""One frozen settings object, read from `TUNER_*` environment variables at an entry point.

Nothing happens at import. Entry points build one `Settings` and pass it down.
"""

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tuner_service.data_directory import DataDirectory
from tuner_service.errors import SettingsError

_QUOTED = str.maketrans({mark: f"%{ord(mark):02X}" for mark in "%?#{}'\\\""})
"""What would end a path in a URL or a text around it; braces are a template to Optuna."""

KeyLimit = Literal["key_studies", "key_open_slots", "key_requests_per_second"]


def default_data_dir() -> Path:
    """Return `$XDG_DATA_HOME/tuner`, or `~/.local/share/tuner`."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "tuner"


def _absolute(value: object) -> object:
    return Path(value).expanduser().absolute() if isinstance(value, (str, Path)) else value


def _listed(separator: str) -> Callable[[object], object]:
    def split(value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(separator) if part.strip())

    return split


def _all_absolute(value: object) -> object:
    return tuple(map(_absolute, value)) if isinstance(value, (tuple, list)) else value


class Settings(BaseSettings):
    """Everything that can be set. Times are seconds, as the names say.

    Attributes:
        data_dir: Files (SQLite database, models, logs, data sets, broker spool); kept at 0700.
        database_url: SQLAlchemy URL (`sqlite:///…` or `postgresql+psycopg://…`); empty means
            `data_dir/tuner.db`.
        broker_url: Celery broker (`redis://…`, or `filesystem://`); empty means
            `filesystem://` under `data_dir/broker`.
        dataset_dirs: Further directories, read-only, in which data files of definitions may lie;
            in the environment separated as in `PATH`.
        lease_seconds: How long a worker may keep a slot without renewing its lease.
        flush_seconds: The longest a report may wait in a worker before it is written.
        max_dataset_bytes: The largest file that may be uploaded, and the most it may unpack to.
        api_key: A key that this process accepts beside those in the database; 16 characters at
            least.
        require_keys: Whether callers from this machine need a key, too; by default as soon as keys
            are in use (docs/security.md).
        max_attempts: Blamed attempts of one slot before it fails.
        key_studies: Studies that one API key may have under way (`key_…`: each for one key; callers
            without one, on loopback, are limited only by what is set explicitly).
        key_open_slots: Open slots of those studies together.
        key_requests_per_second: Requests, with bursts of twice as many.
    """

    model_config = SettingsConfigDict(env_prefix="TUNER_", frozen=True, extra="ignore")

    data_dir: Annotated[Path, BeforeValidator(_absolute)] = Field(default_factory=default_data_dir)
    database_url: SecretStr = SecretStr("")
    broker_url: SecretStr = SecretStr("")
    dataset_dirs: Annotated[
        tuple[Path, ...],
        NoDecode,  # or the environment's text would have to be JSON
        BeforeValidator(_all_absolute),
        BeforeValidator(_listed(os.pathsep)),
    ] = ()

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed(","))] = ()
    api_key: SecretStr = SecretStr("")
    require_keys: bool | None = None

    lease_seconds: float = Field(default=30.0, gt=0, le=3600)
    flush_seconds: float = Field(default=0.25, gt=0)
    reconcile_seconds: float = Field(default=2.0, gt=0)
    ring_expires_seconds: float = Field(default=10.0, gt=0)
    grace_seconds: float = Field(default=10.0, gt=0)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    progress_timeout_seconds: float = Field(default=600.0, gt=0)
    retry_backoff_seconds: float = Field(default=1.0, ge=0)
    max_attempts: int = Field(default=3, ge=1)
    grid_cap: int = Field(default=100_000, ge=1)
    slots_cap: int = Field(default=100_000, ge=1)
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    key_studies: int = Field(default=1_000, ge=1)
    key_open_slots: int = Field(default=1_000_000, ge=1)
    key_requests_per_second: float = Field(default=100.0, gt=0)
    max_dataset_bytes: int = Field(default=4 << 30, ge=1)

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.flush_seconds * 4 > self.lease_seconds:
            raise SettingsError(
                "flush_seconds * 4 <= lease_seconds must hold, but got "
                f"(flush_seconds={self.flush_seconds}, lease_seconds={self.lease_seconds})"
            )
        return self

    def key_limit(self, name: KeyLimit, owner: str) -> float | None:
        """Return a limit as it holds for an API key, or, with an empty `owner`, without one."""
        limit: float = getattr(self, name)
        return limit if owner or name in self.model_fields_set else None

    @property
    def resolved_database_url(self) -> str:
        """The SQLAlchemy URL in force; holds the password, so never log it."""
        path = str(self.directory.database).translate(_QUOTED)
        return self.database_url.get_secret_value() or f"sqlite:///{path}"

    @property
    def resolved_broker_url(self) -> str:
        """The Celery broker URL in force; may hold a password, so never log it."""
        return self.broker_url.get_secret_value() or "filesystem://"

    @property
    def is_loopback(self) -> bool:
        """Whether `host` can be reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys_reason(self) -> str:
        """Why every caller needs an API key; empty if nothing that is set asks for one."""
        if not self.is_loopback:
            return f"others can reach {self.host}"
        if self.require_keys is not None:
            return "TUNER_REQUIRE_KEYS is set" if self.require_keys else ""
        if self.allowed_hosts:
            return "TUNER_ALLOWED_HOSTS is set"
        return "TUNER_API_KEY is set" if self.api_key.get_secret_value() else ""

    @property
    def directory(self) -> DataDirectory:
        """Return where everything lies under `data_dir`."""
        return DataDirectory(self.data_dir)
