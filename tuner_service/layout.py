"""Where the parts lie that this package does not import: the workers and the migrations.

In a checkout both are folders beside `tuner_service`. A wheel carries them inside of it, so that
`tuner_service` is the only name of ours in site-packages: `workers` and `migrations` are names that
other distributions have, too. Processes that run workers get their folder first on the module path.

    PYTHONPATH=$(python -m tuner_service.layout) celery -A workers.celery_app worker
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE / "bundled"


def workers_path() -> Path:
    """Return the directory in which the package `workers` lies."""
    return _BUNDLED if _BUNDLED.is_dir() else _PACKAGE.parent


def migrations_directory() -> Path:
    """Return the directory of the Alembic migrations."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "migrations"


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that runs workers: ours come before any others.

    What such a process starts inherits it, so trainers and training loops need not know.
    """
    before = environment.get("PYTHONPATH")
    path = os.pathsep.join([str(workers_path()), *([before] if before else [])])
    return {**environment, "PYTHONPATH": path}


if __name__ == "__main__":
    sys.stdout.write(f"{workers_path()}\n")
