"""A study's best trial, and which models are worth keeping."""

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, select, update

from tuner_service.lifecycle.results import Result
from tuner_service.lifecycle.stored import stored_definition
from tuner_service.storage.schema import studies, trials


def keep_best(connection: Connection, study: RowMapping, ended: Sequence[Result]) -> list[str]:
    """Note a better trial among those that just ended, and drop models that are outdone.

    Of equal trials the first to end stays the best, and of those that end together one that left
    its model: a worker leaves none for a value that it has seen before. With several objectives no
    trial is the best, and models are kept by the first objective.

    Returns:
        Paths of model files that no trial refers to any more.
    """
    definition = stored_definition(study["definition"])
    sign = -1.0 if definition.objective[0].direction == "maximize" else 1.0
    if len(definition.objective) == 1:
        note_best(connection, study["id"], ended, sign)
    if not any(result.model_path for result in ended):
        return []
    return _drop_outdone(connection, study["id"], definition.training.keep_models, sign)


def note_best(connection: Connection, study_id: int, ended: Sequence[Result], sign: float) -> None:
    """Note the best COMPLETE trial among those ended, if it beats the best so far.

    Args:
        sign: -1 where more is better, else 1.
    """
    scored = [
        (sign * r.values[0], r.model_path is None, r.trial_id)
        for r in ended
        if r.state == "COMPLETE" and r.values
    ]
    if not scored:
        return
    score, _, trial_id = min(scored)
    old = connection.execute(
        select(studies.c.best_value).where(studies.c.id == study_id)
    ).scalar_one()
    if old is None or score < sign * old:
        connection.execute(
            update(studies)
            .where(studies.c.id == study_id)
            .values(best_trial_id=trial_id, best_value=sign * score)
        )


def _drop_outdone(connection: Connection, study_id: int, keep: int, sign: float) -> list[str]:
    """Drop the models beyond the `keep` best; a pruned trial's comes after every complete one's."""
    best = connection.execute(
        select(studies.c.best_trial_id).where(studies.c.id == study_id)
    ).scalar_one()
    rows = connection.execute(
        select(trials.c.trial_id, trials.c.state, trials.c.value, trials.c.model_path)
        .where(trials.c.study_id == study_id, trials.c.model_path.is_not(None))
        .order_by(trials.c.number)
    ).all()
    ranked = sorted(
        rows,
        key=lambda r: (
            r.state != "COMPLETE",
            r.value is None,
            sign * (r.value or 0.0),
            r.trial_id != best,
        ),
    )
    outdone = ranked[keep:]
    if not outdone:
        return []
    connection.execute(
        update(trials)
        .where(trials.c.trial_id.in_([row.trial_id for row in outdone]))
        .values(model_path=None)
    )
    return [str(row.model_path) for row in outdone]
