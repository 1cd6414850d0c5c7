"""What the dashboard shows of a failure; apart, since to import the dashboard takes seconds."""

import optuna
from optuna_dashboard import get_note

from tests.integration.lifecycle.hands import Hand, plain_optuna, submitted
from tuner_service.reads.views import Failure
from tuner_service.storage import Database


def test_failures_are_notes_in_the_dashboard(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    failure = Failure(kind="user_code", message="boom", step=3, traceback="line\n" * 2000)
    hand.fail(lease, trial_id, failure=failure)
    with plain_optuna(db.url) as storage:
        plain = optuna.load_study(study_name=study.name, storage=storage)
        trial = optuna.trial.Trial(plain, trial_id)
        note = get_note(trial)
        assert plain.trials[0].user_attrs["failure"] == "user_code"
        assert "learning_rate" in get_note(plain)
    assert note.startswith("**user_code** at step 3: boom")
    assert note.rstrip("`\n").endswith("line")
