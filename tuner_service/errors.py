"""The error tree.

TunerError                      everything this software raises on purpose
├── DefinitionError             a study definition is wrong; carries every fault at once  (422)
├── InputError                  another request is wrong (cursor, filter, name)           (422)
├── NotFoundError               no such study, trial, dataset                             (404)
│   └── NotKeptError            the trial's weights were not kept                         (404)
├── ConflictError               the state does not allow it                               (409)
│   └── IdempotencyError        the key was used with another body                        (422)
├── AuthenticationError         no key, or an unknown one                                 (401)
├── PermissionDeniedError       a key without the scope                                   (403)
├── LimitError                  too large                                                 (413)
├── RateError                   the key asks too often                                    (429)
│   └── QuotaError              the key has too much under way                            (429)
├── UnavailableError            database or broker cannot be reached                      (503)
│   └── DamagedError            the database's file is not whole                          (503)
├── SettingsError               a setting is wrong or unsafe
├── SchemaVersionError          the database's schema is not this software's
├── MissingExtraError           a part of this software is not installed here
└── DataError                   data that cannot be read or does not fit the definition
"""

from dataclasses import dataclass
from typing import Any, ClassVar


class TunerError(Exception):
    """Base of every error this software raises on purpose.

    Attributes:
        code: Stable machine-readable name, part of the API.
        status: HTTP status the API answers with.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a definition.

    Attributes:
        pointer: JSON pointer (RFC 6901) to the value at fault.
        detail: A sentence that names the value and the rule, and says what to change.
        code: Stable machine-readable name of the rule.
    """

    pointer: str
    detail: str
    code: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fault as it stands in a problem+json answer."""
        return {"pointer": self.pointer, "detail": self.detail, "code": self.code}


class DefinitionError(TunerError):
    """A study definition is wrong; `faults` lists everything that is, not only the first."""

    code = "invalid_definition"
    status = 422

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{f.pointer or '/'}: {f.detail}" for f in faults))


class InputError(TunerError):
    """A request other than a definition is wrong."""

    code = "invalid_input"
    status = 422


class NotFoundError(TunerError):
    """What was asked for does not exist."""

    code = "not_found"
    status = 404


class NotKeptError(NotFoundError):
    """The trial is there, but its weights were not kept."""

    code = "not_kept"


class ConflictError(TunerError):
    """The present state does not allow what was asked."""

    code = "conflict"
    status = 409


class IdempotencyError(ConflictError):
    """The idempotency key was used before with another body."""

    code = "idempotency_key_reused"
    status = 422


class AuthenticationError(TunerError):
    """No API key was given, or an unknown one."""

    code = "unauthenticated"
    status = 401


class PermissionDeniedError(TunerError):
    """The API key lacks the scope this needs."""

    code = "forbidden"
    status = 403


class LimitError(TunerError):
    """A size limit was passed."""

    code = "limit"
    status = 413


class RateError(TunerError):
    """An API key asks too often.

    Attributes:
        retry_after: Seconds after which to ask again.
    """

    code = "too_many_requests"
    status = 429

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class QuotaError(RateError):
    """An API key has too much under way."""

    code = "quota_exceeded"

    def __init__(self, message: str, *, retry_after: int = 60) -> None:
        super().__init__(message, retry_after=retry_after)


class UnavailableError(TunerError):
    """The database or the broker cannot be reached just now.

    Attributes:
        public: The message without its cause, which names hosts, users and paths: for logs and
            the operator's terminal, not for callers of the API.
    """

    code = "unavailable"
    status = 503

    def __init__(self, message: str, *, cause: str = "") -> None:
        self.public = message
        super().__init__(f"{message}: {cause}" if cause else message)


class DamagedError(UnavailableError):
    """The database's file is not whole: nothing helps but to restore a backup."""


class SchemaMovedError(UnavailableError):
    """The database was migrated under a running process, which therefore writes nothing more."""

    code = "schema_version"


class SettingsError(TunerError):
    """A setting is wrong or unsafe; the message names the setting and the value."""

    code = "invalid_settings"


class SchemaVersionError(TunerError):
    """The database's schema is older or newer than this software; the message has the command."""

    code = "schema_version"
    status = 503


class DataError(TunerError):
    """Data cannot be read, or does not fit the definition."""

    code = "data"
    status = 422


class MissingExtraError(TunerError):
    """A part of this software is not installed here; the message has the command that does it."""

    code = "not_installed"
