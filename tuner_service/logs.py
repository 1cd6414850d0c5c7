"""Log lines: one event each, readable on a terminal, JSON in containers."""

import json
import logging
import sys
from datetime import UTC, datetime

_FIELDS = ("study", "trial", "slot", "worker", "trainer")


def configure(*, level: str, as_json: bool) -> logging.Handler:
    """Set up the root logger of a process, and return its handler; only entry points call this."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    return handler


class LineFormatter(logging.Formatter):
    """`12:00:01 info supervisor: message study=… trial=… slot=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback below it where there is one."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        name = record.name.rpartition(".")[2]
        line = f"{time}Z {record.levelname.lower():7} {name}: {record.getMessage()}"
        extra = " ".join(f"{key}={value}" for key, value in _extra(record).items())
        line = f"{line} [{extra}]" if extra else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    found = {name: getattr(record, name, None) for name in _FIELDS}
    return {name: value for name, value in found.items() if value is not None}
