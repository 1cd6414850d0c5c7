"""Kombu's filesystem transport with whole messages: the broker that needs no server.

Kombu opens a message's file under its final name and then writes it, so that a reader may take an
empty file and fail in its consumer loop; and it moves what it takes through the system's temporary
directory, which need not be the same file system (a move is then a copy). Here a message appears
by a rename and is taken by a rename, both inside the spool. Likewise an exchange's file is empty
between its creation and its first line, which a second worker starting at that moment cannot
parse: one lock covers the whole of both.
"""

import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

from tuner_service.files import locked

LOOK_SECONDS = 0.2

closing = threading.Event()
"""Set when this process is to stop. Celery asks only between two waits of two seconds."""


class Channel(filesystem.Channel):  # type: ignore[misc]  # kombu is untyped
    """A channel whose messages are written and taken atomically."""

    def get_table(self, exchange: str) -> list[Any]:
        """Return an exchange's bindings, never while one is being added."""
        with self._control_lock():
            table: list[Any] = super().get_table(exchange)
        return table

    def _queue_bind(self, *binding: Any) -> None:
        with self._control_lock():
            super()._queue_bind(*binding)

    def _delete(self, *binding: Any, **options: Any) -> None:
        with self._control_lock():
            super()._delete(*binding, **options)

    @contextmanager
    def _control_lock(self) -> Iterator[None]:
        with locked(self.control_folder / ".lock"):
            yield

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        # The name sorts by time on this machine, as the reader takes the first.
        name = f"{time.monotonic_ns() // 1_000_000:015d}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        part = folder / f"{name}.part"
        try:
            part.write_text(dumps(payload), encoding="utf-8")
            part.rename(folder / name)
        except OSError as error:
            raise ChannelError(f"Cannot write a message to {str(folder)!r}: {error}") from error

    def _get(self, queue: str) -> dict[str, Any]:
        suffix = f".{queue}.msg"
        folder = Path(self.data_folder_in)
        for name in sorted(n for n in os.listdir(folder) if n.endswith(suffix)):
            taken = folder / f"{name}.taken"
            try:
                (folder / name).rename(taken)
            except OSError:
                continue  # another consumer was first
            payload: dict[str, Any] = loads(taken.read_text(encoding="utf-8"))
            taken.unlink(missing_ok=True)
            return payload
        raise Empty


class FileTransport(filesystem.Transport):  # type: ignore[misc]  # kombu is untyped
    """The `filesystem://` transport with the channel above."""

    Channel = Channel

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Wait for a message and deliver it; no longer once the process is `closing`.

        Raises:
            TimeoutError: None came.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                super().drain_events(connection, timeout=min(left, LOOK_SECONDS))
                return
            except TimeoutError:
                if closing.is_set() or time.monotonic() >= deadline:
                    raise
