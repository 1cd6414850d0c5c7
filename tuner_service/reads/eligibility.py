"""Which workers can run which studies: the device of their queue, and the modules they have."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, and_, func, insert, or_, select

from tuner_service.definition import StudyDefinition, required_modules
from tuner_service.reads.workers import is_live
from tuner_service.storage.schema import (
    modules,
    refused_modules,
    studies,
    study_modules,
    workers,
)


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """What a live worker can run.

    Attributes:
        queue: `cpu` or `cuda`.
        modules: The names of its modules.
        refused: The files that it does not offer as modules.
    """

    queue: str
    modules: frozenset[str]
    refused: frozenset[str] = frozenset()


def insert_required(connection: Connection, study_id: int, definition: StudyDefinition) -> None:
    """Note which modules a new study needs."""
    rows = [{"study_id": study_id, "name": name} for name in required_modules(definition)]
    if rows:
        connection.execute(insert(study_modules), rows)


def has_modules(worker_id: Any) -> ColumnElement[bool]:
    """Of a query over studies: the worker (an id or a column) has every module they need."""
    had = select(modules.c.name).where(
        modules.c.worker_id == worker_id, modules.c.name == study_modules.c.name
    )
    return ~(
        select(study_modules.c.name)
        .where(
            study_modules.c.study_id == studies.c.id,
            ~had.correlate(study_modules, workers).exists(),
        )
        .correlate(studies, workers)
        .exists()
    )


def some_worker(queue: str, now: float | ColumnElement[Any]) -> ColumnElement[bool]:
    """Of a query over studies: a live worker of the queue has every module they need."""
    able = select(workers.c.id).where(can_run(queue, now))
    return able.correlate(studies).exists()


def can_run(queue: str, now: float | ColumnElement[Any]) -> ColumnElement[bool]:
    """Of a query over studies and workers: a live worker of the queue that has their modules."""
    return and_(workers.c.queue == queue, is_live(now), has_modules(workers.c.id))


def is_user_loop() -> ColumnElement[bool]:
    """Of a query over studies: their trials are training loops, which bring their own data."""
    data: ColumnElement[str | None] = studies.c.definition["dataset"].as_string()
    return data.is_(None)


def able_workers(
    connection: Connection,
    study_ids: Collection[int],
    queue: str,
    now: float,
    *,
    idle: bool = False,
) -> dict[int, int]:
    """Return how many live workers of a queue, or idle ones, can run each of these studies."""
    able = can_run(queue, now)
    rows = connection.execute(
        select(studies.c.id, func.count())
        .join(workers, and_(able, workers.c.state == "idle") if idle else able)
        .where(studies.c.id.in_(study_ids))
        .group_by(studies.c.id)
    )
    return {study_id: count for study_id, count in rows}


def on_queue(queue: str, now: float | ColumnElement[Any]) -> ColumnElement[bool]:
    """Of a query over studies: they go to this queue; `auto` to CUDA where that can run them."""
    if queue == "cuda":
        return studies.c.device.in_(("cuda", "auto"))
    return or_(
        studies.c.device == queue,
        and_(studies.c.device == "auto", ~some_worker("cuda", now)),
    )


# -- what a study waits for -----------------------------------------------------------------


def live_now(connection: Connection, now: float) -> list[LiveWorker]:
    """Return every live worker."""
    rows = connection.execute(select(workers.c.id, workers.c.queue).where(is_live(now)))
    queues = {worker_id: queue for worker_id, queue in rows}
    names = _by_worker(connection, modules.c.worker_id, modules.c.name, queues)
    files = _by_worker(connection, refused_modules.c.worker_id, refused_modules.c.file, queues)
    return [LiveWorker(queue, names[i], files[i]) for i, queue in queues.items()]


def _by_worker(
    connection: Connection, worker: Column[str], value: Column[str], ids: Collection[str]
) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {worker_id: set() for worker_id in ids}
    for worker_id, one in connection.execute(select(worker, value).where(worker.in_(ids))):
        found[worker_id].add(one)
    return {worker_id: frozenset(values) for worker_id, values in found.items()}


def needed_modules(connection: Connection, study_ids: Collection[int]) -> dict[int, set[str]]:
    """Return the modules that each of these studies needs; those that need none are left out."""
    needed: dict[int, set[str]] = {}
    rows = connection.execute(select(study_modules).where(study_modules.c.study_id.in_(study_ids)))
    for study_id, name in rows:
        needed.setdefault(study_id, set()).add(name)
    return needed


def would_wait(connection: Connection, definition: StudyDefinition, now: float) -> str | None:
    """Return what worker a study would lack if it were submitted now; None: there is one."""
    live = live_now(connection, now)
    return waits_for(definition.resources.device, required_modules(definition), live)


def waits_for(device: str, needed: Collection[str], live: Sequence[LiveWorker]) -> str | None:
    """Return what worker a study lacks, in a sentence; None: there is one that can run it."""
    fitting = [one for one in live if device in ("auto", one.queue)]
    if any(one.modules.issuperset(needed) for one in fitting):
        return None
    wanted = [] if device == "auto" else [_DEVICES[device]]
    known = frozenset[str]().union(*(one.modules for one in fitting))
    # Each there, but with no one worker: then all of them are what one must have.
    missing = sorted(set(needed) - known) or sorted(needed)
    if missing:
        plural = "s" if len(missing) > 1 else ""
        wanted.append(f"the module{plural} {', '.join(missing)}")
        files = frozenset[str]().union(*(one.refused for one in fitting))
        broken = [file for name in missing for file in (f"{name}.py", name) if file in files]
        why = f"; not offered: {', '.join(broken)}, see `tuner catalogue networks`" * bool(broken)
        return f"waiting for a worker with {' and '.join(wanted)} {_HOW}{why}"
    return f"waiting for a worker with {wanted[0]}" if wanted else "waiting for a worker"


_HOW = "(--modules DIR, or its package installed)"
_DEVICES = {"cuda": "CUDA", "cpu": "a CPU"}
