"""Submitting: the definition, its slots, its Optuna study and its idempotency key, at once."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from tuner_service.access.quotas import check_quota
from tuner_service.definition import (
    StudyDefinition,
    fusing,
    parallel_trials,
    space_of,
    total_slots,
    warnings_of,
)
from tuner_service.errors import (
    DefinitionError,
    Fault,
    IdempotencyError,
    NotFoundError,
    UnavailableError,
)
from tuner_service.lifecycle.slot_rows import insert_slots, slot_rows
from tuner_service.reads.eligibility import insert_required, would_wait
from tuner_service.reads.studies import study_view
from tuner_service.reads.views import Plan, StudyView
from tuner_service.settings import Settings
from tuner_service.storage import Database, optuna_rows
from tuner_service.storage.schema import idempotency_keys, studies

# Where Optuna keeps what its dashboard calls the objectives.
_METRIC_NAMES: Final = "study:metric_names"
NOTE_PIECE: Final = 2045  # characters that one system attribute of the dashboard holds
TRIES: Final = 30  # every round lets one of those through that fight over a name


def plan(db: Database, definition: StudyDefinition, *, settings: Settings) -> Plan:
    """Say what a definition would do; nothing is stored.

    Raises:
        DefinitionError: It has more slots than the service allows.
    """
    count = _slot_count(definition, settings)
    with db.read() as connection:
        waits = would_wait(connection, definition, db.now(connection))
    groups = fusing(definition)
    return Plan(
        slots=count,
        grid_size=count if definition.sampler.entry.budget_from_grid else None,
        parallel_trials=parallel_trials(definition),
        parameters=[name for name, _ in space_of(definition).parameters],
        fusible=groups.free,
        fusible_on_cpu=groups.free_on_cpu,
        structural=groups.splitting,
        warnings=[*warnings_of(definition), *([f"it would be {waits}"] if waits else [])],
    )


def submit(
    db: Database,
    definition: StudyDefinition,
    *,
    settings: Settings,
    asked: StudyDefinition | None = None,
    idempotency_key: str | None = None,
    owner: str = "",
) -> tuple[StudyView, bool]:
    """Store a study with its slots, ready to be claimed.

    Args:
        asked: What the idempotency key stands for: the definition before it was pinned to the
            present version of its data. By default the definition itself.

    Returns:
        The study, and whether it is new (False: the idempotency key was used for it before). A
        taken name gets `-2`, `-3`, …, which the view's warnings say.

    Raises:
        DefinitionError: It has more slots than the service allows.
        IdempotencyError: The key was used with another definition.
        QuotaError: The owner has too much under way.
    """
    count = _slot_count(definition, settings)
    if idempotency_key is not None:
        with db.read() as connection:
            known = _known(connection, owner, idempotency_key, asked or definition)
            if known is not None:
                return _again(db, connection, known, definition), False
    rows = list(slot_rows(definition, first=0, count=count))
    for _ in range(TRIES):
        try:
            with db.write() as connection:
                return _submit(
                    db,
                    connection,
                    definition,
                    rows,
                    key=idempotency_key,
                    owner=owner,
                    asked=asked or definition,
                    settings=settings,
                )
        except (
            IntegrityError,  # guard: submit-again
            NotFoundError,
        ):
            # Another submit took the name or the key a moment before, or the key's study was
            # deleted: look again.
            continue
    raise UnavailableError(f"the name {definition.name!r} is fought over; try again")


def _submit(
    db: Database,
    connection: Connection,
    definition: StudyDefinition,
    rows: Sequence[Mapping[str, Any]],
    *,
    key: str | None,
    owner: str,
    asked: StudyDefinition,
    settings: Settings,
) -> tuple[StudyView, bool]:
    if key is not None:
        known = _known(connection, owner, key, asked)  # guard: key-known
        if known is not None:
            return _again(db, connection, known, definition), False
    check_quota(connection, owner, settings, slots=len(rows), study=True)
    now = db.now(connection)
    name = _free_name(connection, definition.name)
    study_id = _insert_study(connection, definition.with_name(name), owner, now)
    insert_required(connection, study_id, definition)
    insert_slots(connection, study_id, rows)
    if key is not None:
        row = {"owner": owner, "key": key, "body_hash": _hash(asked), "study_id": study_id}
        connection.execute(insert(idempotency_keys).values(**row, created_at=now))
    return _again(db, connection, study_id, definition), True


def _again(
    db: Database, connection: Connection, study_id: int, definition: StudyDefinition
) -> StudyView:
    """Return the study with the warnings that its definition gave, the same every time."""
    view = study_view(connection, study_id, now=db.now(connection))
    warnings = list(warnings_of(definition))
    if view.name != definition.name:
        warnings.insert(0, f"the name {definition.name!r} is taken; the study is {view.name!r}")
    return view.model_copy(update={"warnings": warnings})


def _slot_count(definition: StudyDefinition, settings: Settings) -> int:
    count = total_slots(definition)
    grid = definition.sampler.entry.budget_from_grid
    cap = settings.grid_cap if grid else settings.slots_cap
    if count > cap:
        pointer, what = ("/parameters", "grid_cap") if grid else ("/budget/trials", "slots_cap")
        detail = f"trials <= {what} must hold, but got (trials={count}, {what}={cap})"
        raise DefinitionError([Fault(pointer, detail, "too_many_slots")])
    return count


def _hash(definition: StudyDefinition) -> str:
    body = json.dumps(definition.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


def _known(connection: Connection, owner: str, key: str, definition: StudyDefinition) -> int | None:
    """Return the id of the study that the key was used for; None: it is new."""
    row = connection.execute(
        select(idempotency_keys).where(
            idempotency_keys.c.owner == owner,  # guard: key-owner
            idempotency_keys.c.key == key,
        )
    ).first()
    if row is None:
        return None
    if row.body_hash != _hash(definition):  # guard: body-hash
        raise IdempotencyError(f"the idempotency key {key!r} was used with another definition")
    return int(row.study_id)


def _free_name(connection: Connection, name: str) -> str:
    taken = set(
        connection.execute(
            select(optuna_rows.STUDIES.c.study_name).where(
                optuna_rows.STUDIES.c.study_name.startswith(name, autoescape=True)
            )
        ).scalars()
    )
    if name not in taken:
        return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def _insert_study(
    connection: Connection, definition: StudyDefinition, owner: str, now: float
) -> int:
    stored = definition.model_dump(mode="json", exclude_none=True)
    total = total_slots(definition)
    optuna_id = optuna_rows.create_study(
        connection,
        definition.name,
        [objective.direction for objective in definition.objective],
        user_attrs={"definition": stored},
        system_attrs={
            **_note(stored),
            _METRIC_NAMES: [objective.metric for objective in definition.objective],
        },
    )
    budget = definition.budget
    return int(
        connection.execute(
            insert(studies)
            .values(
                public_id="st_" + secrets.token_hex(8),
                name=definition.name,
                optuna_study_id=optuna_id,
                definition=stored,
                state="queued",
                device=definition.resources.device,
                priority=definition.priority,
                parallel_trials=parallel_trials(definition),
                budget_trials=total,
                max_failures=budget.max_failures,
                timeout_seconds=budget.timeout,
                trial_timeout_seconds=budget.trial_timeout,
                tags=dict(definition.tags),
                owner=owner or None,
                created_at=now,
                slots_open=total,
            )
            .returning(studies.c.id)
        ).scalar_one()
    )


def _note(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the system attributes that the dashboard shows as the study's note."""
    body = "```json\n" + json.dumps(stored, indent=2, ensure_ascii=False) + "\n```"
    pieces = [body[i : i + NOTE_PIECE] for i in range(0, len(body), NOTE_PIECE)]
    note = {f"dashboard:note_str:{i}": piece for i, piece in enumerate(pieces)}
    return {"dashboard:note_ver": 1, **note}
