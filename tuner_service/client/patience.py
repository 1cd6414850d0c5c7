"""Bearing with a service that is away while somebody waits for a study."""

import time
from collections.abc import Callable
from typing import TypeVar

from tuner_service.client.errors import (
    GATEWAY_STATUSES,
    AddressError,
    ClientError,
    ConnectionFailedError,
    ServiceError,
    WaitTimeoutError,
)

OUTAGE_SECONDS = 120.0  # how long a waiting client bears with a service that is away
OUTAGE_PAUSE_SECONDS = 1.0

Answer = TypeVar("Answer")
OnOutage = Callable[[ClientError | None], None]


def deadline_of(timeout: float | None) -> float | None:
    """Return the monotonic time at which a timeout is over."""
    return None if timeout is None else time.monotonic() + timeout


def is_away(error: ClientError) -> bool:
    """Return whether an error says that the service is away: then waiting may help."""
    if isinstance(error, ServiceError):
        return error.status in GATEWAY_STATUSES
    return isinstance(error, ConnectionFailedError) and not isinstance(error, AddressError)


class OutageRetry:
    """Asks again while the service is away.

    Args:
        name: The study's, for the message.
        deadline: The monotonic time until which the caller waits at all.
        on_outage: Is told the error once when the service is away, and None when it is back.
    """

    def __init__(
        self, name: str, *, deadline: float | None = None, on_outage: OnOutage | None = None
    ) -> None:
        self._name = name
        self._deadline = deadline
        self._tell = on_outage or (lambda _: None)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer to a question that may be asked any number of times.

        Raises:
            ConnectionFailedError, ServiceError: The service has been away for `OUTAGE_SECONDS`.
            ClientError: Any other; at once.
            WaitTimeoutError: The deadline came first.
        """
        given_up = time.monotonic() + OUTAGE_SECONDS
        told = False
        while True:
            try:
                answer = question()
            except ClientError as error:
                if not is_away(error):
                    raise
                if not told:
                    self._tell(error)
                    told = True
                self._give_up(error, given_up)
                time.sleep(OUTAGE_PAUSE_SECONDS)
                continue
            if told:
                self._tell(None)
            return answer

    def _give_up(self, error: ClientError, given_up: float) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise WaitTimeoutError(
                f"The time to wait for study {self._name!r} is over, and the service is away: "
                f"{error} The study goes on."
            ) from error
        if now > given_up:
            raise error
