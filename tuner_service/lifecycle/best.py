"""A study's best trial, and which models are worth keeping."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Double, and_, bindparam, or_, select, update

from tuner_service.lifecycle.results import Result
from tuner_service.reads.stored import stored_definition
from tuner_service.storage.postgres import DEFERRED, Row
from tuner_service.storage.schema import studies, trials

_OLD_SCORE: Final = bindparam("sign", type_=Double) * studies.c.best_value
_SCORE: Final = bindparam("score", type_=Double)
_BETTER: Final = (
    update(studies)
    .where(
        studies.c.id == bindparam("b_id"),
        or_(
            studies.c.best_trial_id.is_(None),
            _SCORE < _OLD_SCORE,  # guard: best-compared
            and_(
                _SCORE == _OLD_SCORE, bindparam("trial") < studies.c.best_trial_id
            ),  # guard: best-ties
        ),
    )
    .values(best_trial_id=bindparam("trial"), best_value=bindparam("value"))
)


def keep_best(connection: Connection, study: Row, ended: Sequence[Result]) -> list[str]:
    """Note a better trial among those that just ended, and drop models that are outdone.

    Of equal trials the one with the lower number is the better, whichever ends first: workers rank
    by the same rule, so the best has left its model. With several objectives no trial is the best,
    and models are kept by the first objective.

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
    scored = [(sign * r.values[0], r.trial_id) for r in ended if r.state == "COMPLETE" and r.values]
    if not scored:
        return
    score, trial_id = min(scored)
    connection.execute(
        _BETTER,
        {"b_id": study_id, "sign": sign, "score": score, "trial": trial_id, "value": sign * score},
        execution_options=DEFERRED,
    )


def _drop_outdone(connection: Connection, study_id: int, keep: int, sign: float) -> list[str]:
    """Drop the models beyond the `keep` best; a pruned trial's comes after every complete one's."""
    rows = connection.execute(
        select(trials.c.trial_id, trials.c.state, trials.c.value, trials.c.model_path).where(
            trials.c.study_id == study_id, trials.c.model_path.is_not(None)
        )
    ).all()
    ranked = sorted(
        rows,
        key=lambda r: (
            r.state != "COMPLETE",  # guard: models-complete
            r.value is None,
            sign * (r.value or 0.0),
            r.trial_id,
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
