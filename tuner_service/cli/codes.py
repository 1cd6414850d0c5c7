"""Exit codes, the same for every command."""

from tuner_service.client import (
    AddressError,
    InvalidInputError,
    NotFoundError,
    StudyStatus,
    WaitTimeoutError,
)
from tuner_service.errors import DefinitionError, InputError, SettingsError, TunerError
from tuner_service.errors import NotFoundError as NothingFoundError

DONE = 0
FAILED = 1
BAD_INPUT = 2
CANCELLED = 3
AWAY = 4  # the service, while a study was watched; the study goes on
TIMEOUT = 124  # as timeout(1)
DETACHED = 130  # as a shell has it for Ctrl-C

_BAD_INPUT = (
    AddressError,
    DefinitionError,
    InputError,
    InvalidInputError,
    NotFoundError,
    NothingFoundError,
    SettingsError,
)


def code_of(error: TunerError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, WaitTimeoutError):
        return TIMEOUT
    return BAD_INPUT if isinstance(error, _BAD_INPUT) else FAILED


def code_of_study(status: StudyStatus) -> int:
    """Return the exit code for a study that has ended; without a result it has failed."""
    if status.state == "cancelled":
        return CANCELLED
    return DONE if status.state == "completed" and status.progress.complete else FAILED
