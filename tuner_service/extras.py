"""What an installation lacks of an extra: the distribution's own metadata says what belongs to it.

`pip install tuner-service` brings the client and the command line; the service and the workers are
the extras `server` and `worker`. Nothing of theirs is imported here.
"""

import re
from importlib import metadata

from tuner_service.errors import MissingExtraError

DISTRIBUTION = "tuner-service"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*;.*extra == ['\"](?P<extra>[\w-]+)['\"]")


def install_command(extra: str) -> str:
    """Return what installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing(extra: str) -> list[str]:
    """Return the distributions of an extra that are not installed here.

    Empty, too, where this software runs without having been installed: nobody knows then.
    """
    return [name for name in _named(extra) if not _is_installed(name)]


def require(extra: str, what: str) -> None:
    """Refuse what cannot work without an extra.

    Args:
        what: What needs it, for the message.

    Raises:
        MissingExtraError: Something of the extra is not installed.
    """
    names = missing(extra)
    if names:
        raise MissingExtraError(
            f"{what} needs what is not installed here ({', '.join(names)}): "
            f"{install_command(extra)}"
        )


def _named(extra: str) -> list[str]:
    try:
        lines = metadata.requires(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        return []
    found = filter(None, map(_REQUIREMENT.match, lines))
    return [one["name"] for one in found if one["extra"] == extra]


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
