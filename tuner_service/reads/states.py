"""A study's states, and the time it has used."""

from typing import Final

from tuner_service.storage.postgres import Row

ACTIVE: Final = ("queued", "running")


FINAL: Final = ("completed", "cancelled", "failed")


TIMEOUT: Final = "timeout"  # the reason of a study that its own timeout ended


def worked_seconds(study: Row, now: float) -> float:
    """Return the wall time since the first trial, without pauses."""
    if study["started_at"] is None:
        return 0.0
    until = now
    if study["state"] == "paused":
        until = study["paused_at"]
    elif study["state"] in FINAL:
        until = study["finished_at"]
    return float(max(0.0, until - study["started_at"] - study["paused_seconds"]))


def paused_seconds(study: Row, now: float) -> float:
    """Return how long the study stood still since its first trial, with a pause that lasts yet."""
    lasting = now - study["paused_at"] if study["paused_at"] is not None else 0.0
    return float(study["paused_seconds"] + (lasting if study["started_at"] is not None else 0.0))


def timed_out(study: Row, now: float) -> bool:
    """Return whether the study's time is used up."""
    limit = study["timeout_seconds"]
    return limit is not None and worked_seconds(study, now) >= limit
