"""Our tables beside Optuna's, and the transactions that write both."""

from tuner_service.storage.database import Database
from tuner_service.storage.migrate import check_file, check_schema, migrate

__all__ = ["Database", "check_file", "check_schema", "migrate"]
