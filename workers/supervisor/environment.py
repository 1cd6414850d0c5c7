"""What of a worker's environment its trainer may see: user code runs there, secrets do not."""

import re
from collections.abc import Mapping

# The trainer gets its settings as arguments. `TUNER_*` holds the database and broker URLs and the
# API key, `PG*` libpq's password, and the rest are the usual names of other people's secrets.
_SECRET_PREFIXES = ("TUNER_", "PG", "CELERY_", "REDIS_")
_SECRET_WORDS = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|DATABASE_URL"
    r"|BROKER_URL|DSN)",
    re.IGNORECASE,
)
COMPILE_PROCESSES = 4
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def scrubbed(environ: Mapping[str, str], *, threads: int) -> dict[str, str]:
    """Return the environment for a trainer: without secrets, with its thread counts set."""
    kept = {name: value for name, value in environ.items() if not is_secret(name)}
    for name in _THREAD_SETTINGS:
        kept.setdefault(name, str(threads))
    # On a GPU inductor starts a process per core, up to 32, in every trainer and compiling child.
    kept.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(COMPILE_PROCESSES))
    return kept


def is_secret(name: str) -> bool:
    """Return whether a variable of this name may hold a secret."""
    return name.startswith(_SECRET_PREFIXES) or _SECRET_WORDS.search(name) is not None
