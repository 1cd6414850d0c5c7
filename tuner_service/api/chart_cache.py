"""Charts and statistics of studies, each computed once per revision however many pages ask."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel

from tuner_service.reads.columns import ColumnCache, TrialColumns
from tuner_service.reads.studies import list_version
from tuner_service.storage import Database

MOST_ANSWERS: Final = 256
Make = Callable[[TrialColumns], BaseModel]


class ChartCache:
    """Serialised answers by study, question and revision. Any thread may ask."""

    def __init__(self, db: Database) -> None:
        self.columns = ColumnCache(db)
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, str], tuple[int, bytes]] = OrderedDict()

    def get(self, ref: str, question: str, make: Make) -> tuple[int, bytes]:
        """Return the revision of an answer, and the answer as JSON.

        Args:
            question: What tells it from the study's other answers.

        Raises:
            NotFoundError: There is no such study.
        """
        columns = self.columns.get(ref)
        key = columns.study, question
        with columns.lock:  # the second of two who ask at once takes what the first has made
            kept = self._answers.get(key)
            if kept is None or kept[0] != columns.revision:
                kept = columns.revision, make(columns).model_dump_json().encode()
                self._keep(key, kept)
        return kept

    def _keep(self, key: tuple[str, str], answer: tuple[int, bytes]) -> None:
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > MOST_ANSWERS:
                self._answers.popitem(last=False)


class ListVersion:
    """What changes when any study does, read a few times a second however many ask."""

    def __init__(self, db: Database, *, fresh_seconds: float = 0.4) -> None:
        self._db = db
        self._fresh_seconds = fresh_seconds
        self._lock = threading.Lock()
        self._read_at = -fresh_seconds
        self._version = ""

    def get(self) -> str:
        """Return the version; of two lists that differ the versions do.

        Raises:
            UnavailableError: The database cannot be reached.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= self._fresh_seconds:
                self._version = list_version(self._db)
                self._read_at = time.monotonic()
            return self._version
