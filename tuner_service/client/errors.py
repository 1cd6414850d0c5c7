"""What goes wrong between a script and the service.

ClientError
├── ConnectionFailedError       the service cannot be reached
│   └── AddressError            what was given is no address of a service
├── WaitTimeoutError            the study did not end in the time given
├── NoResultError               the study has no finished trial to speak of
└── ApiError                    the service answered, and refused
    ├── InvalidInputError       400, 413, 415, 422; `errors` has one entry per fault
    ├── AccessError             401, 403
    ├── NotFoundError           404
    ├── ConflictError           409
    └── ServiceError            5xx
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tuner_service.errors import TunerError

GATEWAY_STATUSES = frozenset({502, 503, 504})
"""What a proxy in front of the API answers while the API is away."""


class ClientError(TunerError):
    """Base of everything the client raises, but a `DefinitionError` for a file that is not YAML."""


class ConnectionFailedError(ClientError):
    """The service cannot be reached."""

    code = "connection_failed"


class AddressError(ConnectionFailedError):
    """What was given is no address of a service."""

    code = "bad_address"


class WaitTimeoutError(ClientError):
    """The study did not end in the time given; it goes on."""

    code = "wait_timeout"


class NoResultError(ClientError):
    """The study has no finished trial to speak of."""

    code = "no_result"


class ApiError(ClientError):
    """The service refused.

    Attributes:
        status: HTTP status.
        code: Stable machine-readable name of the problem.
        detail: What happened, in a sentence.
        errors: One mapping per fault with `pointer`, `detail` and `code`; empty for most problems.
    """

    def __init__(
        self, status: int, code: str, detail: str, errors: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        # The class has both as well, as the base has; an instance knows its own.
        self.status = status  # type: ignore[misc]
        self.code = code  # type: ignore[misc]
        self.detail = detail
        self.errors = [dict(error) for error in errors]
        super().__init__(_sentence(detail, self.errors))


class InvalidInputError(ApiError):
    """What was sent is wrong."""


class AccessError(ApiError):
    """No API key, an unknown one, or one without the scope."""


class NotFoundError(ApiError):
    """There is no such study, or trial."""


class ConflictError(ApiError):
    """The study's state does not allow it."""


class ServiceError(ApiError):
    """The service cannot do it now (503), or is at fault itself."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidInputError,
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidInputError,
    415: InvalidInputError,
    422: InvalidInputError,
}


def api_error(status: int, body: object) -> ApiError:
    """Return the error for an answer of this status.

    Args:
        body: The JSON of the answer; anything else than a problem came from a proxy or from
            another program at this address.
    """
    kind = _BY_STATUS.get(status, ServiceError if status >= 500 else ApiError)
    if not isinstance(body, Mapping) or "code" not in body:
        return kind(status, "not_a_problem", _by_another(status))
    return kind(status, str(body["code"]), str(body.get("detail", "")), body.get("errors") or ())


def _by_another(status: int) -> str:
    if status in GATEWAY_STATUSES:
        return f"A proxy answered HTTP {status}: it does not reach the tuner service behind it."
    return f"The answer was HTTP {status}, and not by a tuner service: is the URL right?"


def _sentence(detail: str, errors: Sequence[Mapping[str, Any]]) -> str:
    if len(errors) < 2:
        return detail
    lines = (f"\n  {error.get('pointer') or '/'}: {error.get('detail')}" for error in errors)
    return detail + "".join(lines)
