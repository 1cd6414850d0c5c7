"""The Python client: submit a study, wait for it, read its best trial.

    from tuner_service.client import TunerClient

    with TunerClient("http://127.0.0.1:8000") as client:
        study = client.submit("study.yaml")
        study.wait(progress=True)
        print(study.best_trial.params)

It needs httpx2 and the standard library; a YAML file also needs the definition's reader, a bar
tqdm, and `trials_dataframe` pandas. They are imported when they are used.
"""

import base64
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from tuner_service.client.answers import Progress, StudyStatus, Trial
from tuner_service.client.errors import (
    AccessError,
    AddressError,
    ApiError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    InvalidInputError,
    NoResultError,
    NotFoundError,
    ServiceError,
    WaitTimeoutError,
)
from tuner_service.client.study import StudyHandle
from tuner_service.client.transport import Transport

__all__ = [
    "AccessError",
    "AddressError",
    "ApiError",
    "ClientError",
    "ConflictError",
    "ConnectionFailedError",
    "InvalidInputError",
    "NoResultError",
    "NotFoundError",
    "Progress",
    "ServiceError",
    "StudyHandle",
    "StudyStatus",
    "Trial",
    "TunerClient",
    "WaitTimeoutError",
]

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 10.0
PAGE = 100

Definition = Mapping[str, Any] | str | Path


class TunerClient:
    """A connection to a tuner service. Use it as a context manager, or `close` it.

    Args:
        url: The service's address; by default `TUNER_URL`, else http://127.0.0.1:8000.
        api_key: By default `TUNER_API_KEY`; none is needed on the service's own machine.
        timeout: Seconds an answer may take.
        retry_seconds: How long to try again when the service is away; 0 tries once.
        transport: Another way to send requests, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(
            url or os.environ.get("TUNER_URL") or DEFAULT_URL,
            api_key=api_key or os.environ.get("TUNER_API_KEY"),
            timeout=timeout,
            retry_seconds=retry_seconds,
            transport=transport,
        )

    @property
    def url(self) -> str:
        """The service's address."""
        return self._transport.url

    def __repr__(self) -> str:
        return f"TunerClient({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def ping(self) -> None:
        """Ask once whether the service is there; the other calls try for `retry_seconds`.

        Raises:
            ConnectionFailedError: It is not.
        """
        self._transport.ping()

    def submit(self, definition: Definition, *, idempotency_key: str | None = None) -> StudyHandle:
        """Submit a study, once, however often it has to be sent.

        Args:
            definition: A mapping, or the path of a YAML (or JSON) file.
            idempotency_key: Makes two submits of the same definition one; by default a new key.

        Raises:
            InvalidInputError: The definition is wrong; `errors` has every fault.
            DefinitionError: The file is not YAML.
        """
        key = idempotency_key or str(uuid.uuid4())
        headers = {"Idempotency-Key": key}
        answer = self._transport.post("/studies", read_definition(definition), headers=headers)
        return self._handle(answer)

    def validate(self, definition: Definition) -> dict[str, Any]:
        """Check a definition and say what it would do, storing nothing.

        Raises:
            InvalidInputError: The definition is wrong; `errors` has every fault.
            DefinitionError: The file is not YAML.
        """
        return dict(self._transport.post("/studies/validate", read_definition(definition)))

    def study(self, ref: str) -> StudyHandle:
        """Return the study of this name or id.

        Raises:
            NotFoundError: There is none.
        """
        return self._handle(self._transport.get(f"/studies/{quote(ref, safe='')}").json())

    def studies(self, *, state: str | None = None, tag: str | None = None) -> list[StudyHandle]:
        """Return the studies, the newest first.

        Args:
            state: Only those in this state.
            tag: Only those with this tag, as `key` or `key=value`.
        """
        return list(self._studies(state, tag))

    def _studies(self, state: str | None, tag: str | None) -> Iterator[StudyHandle]:
        cursor = None
        while True:
            query = {"cursor": cursor, "limit": str(PAGE), "state": state, "tag": tag}
            page = self._transport.get("/studies", query).json()
            yield from (self._handle(item) for item in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def upload_dataset(self, name: str, path: str | Path) -> dict[str, Any]:
        """Upload a file, so that studies can train on it as `dataset: {name: NAME}`.

        Args:
            path: A table (CSV, Parquet), NumPy arrays (.npz), or images (.zip).

        Returns:
            What the service found in it: format, rows, columns, size, SHA-256, and `warnings` of
            what is likely a mistake.

        Raises:
            InvalidInputError: The name is taken by a built-in, or the file is refused.
            OSError: It cannot be read.
        """
        file = Path(path)
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").digest()
        headers = {"Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:"}
        address = f"/datasets/{quote(name, safe='')}"
        return dict(self._transport.put_file(address, file, headers=headers))

    def datasets(self) -> list[dict[str, Any]]:
        """Return the data sets there are, built-in and uploaded."""
        return list(self._transport.get("/datasets").json()["items"])

    def remove_dataset(self, name: str) -> None:
        """Delete an uploaded data set.

        Raises:
            NotFoundError: There is none.
            ConflictError: A study that has not ended uses it.
        """
        self._transport.delete(f"/datasets/{quote(name, safe='')}")

    def workers(self) -> list[dict[str, Any]]:
        """Return the workers heard of lately, with what they are at."""
        return list(self._transport.get("/workers").json()["items"])

    def catalogue(self, kind: str) -> list[dict[str, Any]]:
        """Return what a definition may name of a kind, such as `networks` or `optimizers`.

        Raises:
            NotFoundError: There is no such kind.
        """
        return list(self._transport.get(f"/{quote(kind, safe='')}").json()["items"])

    def refused_modules(self) -> list[dict[str, Any]]:
        """Return the module files that workers do not offer: `file`, `reason`, `workers`."""
        return list(self._transport.get("/networks").json().get("refused") or ())

    def _handle(self, data: Mapping[str, Any]) -> StudyHandle:
        return StudyHandle(self._transport, StudyStatus.of(data))


def read_definition(definition: Definition) -> Any:
    """Return a definition as it goes on the wire, reading it if it is the path of a file.

    Raises:
        DefinitionError: The file is not YAML, or not a mapping.
        OSError: It cannot be read.
    """
    if isinstance(definition, Mapping):
        return dict(definition)
    from tuner_service.definition import load_study  # noqa: PLC0415 - pydantic, only for files

    return load_study(Path(definition).read_text(encoding="utf-8"))
