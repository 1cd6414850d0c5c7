"""Every guard of the invariants I1–I9, and the tests that fail without it.

`docs/reliability.md` shows this table; `python -m tests.guards` takes each guard out. What stands
behind another guard, so that no test could miss it alone, is taken out together with the other.
"""

from typing import Final

from tests.guards.guard import BOTH, Dialect, Edit, Guard

CLAIM: Final = "tuner_service/lifecycle/claim.py"
CLAIMABLE: Final = "tuner_service/lifecycle/claimable.py"
ATTEMPTS: Final = "tuner_service/lifecycle/attempts.py"
ENDING: Final = "tuner_service/lifecycle/ending.py"
FLUSH: Final = "tuner_service/lifecycle/flush.py"
RECONCILE: Final = "tuner_service/lifecycle/reconcile.py"
STARTS: Final = "tuner_service/lifecycle/starts.py"
STUDIES: Final = "tuner_service/lifecycle/change.py"
SUBMIT: Final = "tuner_service/lifecycle/submit.py"
UNIT: Final = "tuner_service/lifecycle/flush_transaction.py"
BEST: Final = "tuner_service/lifecycle/best.py"
TALLY: Final = "tuner_service/lifecycle/counters.py"
SLOTROWS: Final = "tuner_service/lifecycle/slot_rows.py"
TRIALS: Final = "tuner_service/reads/trials.py"
QUOTAS: Final = "tuner_service/access/quotas.py"
OPTUNA: Final = "tuner_service/storage/optuna_rows.py"
DATABASE: Final = "tuner_service/storage/database.py"
BOOKS: Final = "workers/supervisor/database_sync.py"
LISTENER: Final = "workers/supervisor/trainer_events.py"

SQLITE: Final[tuple[Dialect, ...]] = ("sqlite",)
POSTGRES: Final[tuple[Dialect, ...]] = ("postgresql",)
NONE: Final[tuple[Dialect, ...]] = ()

_LIFECYCLE: Final = "tests/integration/lifecycle"
_FILES: Final = {
    "slot": f"{_LIFECYCLE}/test_lifecycle.py",
    "ends": f"{_LIFECYCLE}/test_ends.py",
    "claims": f"{_LIFECYCLE}/test_claiming.py",
    "races": f"{_LIFECYCLE}/test_races.py",
    "people": f"{_LIFECYCLE}/test_races_of_people.py",
    "reading": f"{_LIFECYCLE}/test_reading.py",
    "rows": "tests/integration/storage/test_optuna_rows.py",
    "database": "tests/integration/storage/test_database.py",
    "pipeline": "tests/integration/storage/test_pipeline.py",
    "serve": "tests/unit/workers/test_serve.py",
    "reconciler": "tests/unit/api/test_reconciler.py",
}


def guard(
    invariant: str,
    what: str,
    file: str,
    text: str,
    without: str,
    *tests: str,
    on: tuple[Dialect, ...] = BOTH,
    behind: tuple[Edit, ...] = (),
) -> Guard:
    """Return a guard of one edit, and of those that stand behind it; tests are `file: name`."""
    caught_by = tuple(f"{_FILES[test.split(': ')[0]]}::{test.split(': ')[1]}" for test in tests)
    return Guard(invariant, what, (Edit(file, text, without), *behind), caught_by, on)


GUARDS: Final = (
    # -- I1: at most one result for each slot ------------------------------------------------
    guard(
        "I1",
        "only RUNNING trials are ended",
        OPTUNA,
        ', TRIALS.c.state == TrialState.RUNNING)\n    .values(\n        state=bindparam("ended"',
        ')\n    .values(\n        state=bindparam("ended"',
        "rows: test_an_ended_trial_is_not_ended_again",
    ),
    guard(
        "I1",
        "a lease speaks for its slot's present trial only",
        UNIT,
        'return row is not None and row["trial_id"] == trial_id',
        "return row is not None",
        "ends: test_a_lease_speaks_for_its_own_trial_only",
    ),
    guard(
        "I1",
        "a slot that is done takes no second result",
        UNIT,
        'if row["state"] == "leased":',
        'if row["state"]:',
        "slot: test_a_flush_sent_twice_counts_once",
        "races: test_the_same_finish_sent_twice_at_once",
    ),
    guard(
        "I1",
        "a start that is sent again gets the trial it got",
        STARTS,
        'if row["trial_id"] is not None:',
        "if False:",
        "slot: test_a_flush_sent_twice_counts_once",
        "races: test_the_same_start_sent_twice_at_once",
    ),
    # -- I2: a result is written once; a zombie's write changes nothing ----------------------
    guard(
        "I2",
        "a claim raises the slot's fencing token",
        CLAIM,
        "fencing_token=slots.c.fencing_token + 1,",
        "fencing_token=slots.c.fencing_token,",
        "ends: test_an_old_lease_of_a_slot_does_not_spoil_its_new_one",
        "races: test_reap_against_claim",
    ),
    guard(
        "I2",
        "a flush compares the fencing token",
        UNIT,
        'key = (row["id"], row["fencing_token"])\n            if key not in keys',
        'key = next(k for k in keys if k[0] == row["id"])\n            if key not in keys',
        "ends: test_an_old_lease_of_a_slot_does_not_spoil_its_new_one",
    ),
    guard(
        "I2",
        "a flush compares the worker: a lease that was reaped is nobody's",
        UNIT,
        'if key not in keys or row["worker_id"] != self.worker_id:',
        "if key not in keys:",
        "races: test_finish_against_reap",
        "ends: test_a_lease_is_its_own_workers",
    ),
    guard(
        "I2",
        "each UPDATE of a leased slot carries the fencing token, behind the locks",
        UNIT,
        'match=("id", "fencing_token"), where={"state": "leased"}',
        'match=("id",), where={"state": "leased"}',
        "ends: test_no_update_of_a_slot_goes_by_what_was_read",
    ),
    guard(
        "I2",
        "and finds it leased",
        UNIT,
        'match=("id", "fencing_token"), where={"state": "leased"}',
        'match=("id", "fencing_token")',
        "ends: test_no_update_of_a_slot_goes_by_what_was_read",
    ),
    guard(
        "I2",
        "a reaper looks under the lock at which leases ran out",
        RECONCILE,
        "                slots.c.lease_expires_at < now,\n            )",
        "            )",
        "races: test_heartbeat_against_reap",
    ),
    guard(
        "I2",
        "a trial that plain Optuna has ended stands",
        UNIT,
        'if row["state"] in ENDED})',
        "if False})",
        "ends: test_a_trial_ended_by_plain_optuna_stands",
    ),
    guard(
        "I2",
        "a flush locks the trials' rows, as plain Optuna does",
        UNIT,
        ".order_by(optuna_rows.TRIALS.c.trial_id)\n    .with_for_update()",
        ".order_by(optuna_rows.TRIALS.c.trial_id)",
        "races: test_finish_against_plain_optunas_tell",
        on=POSTGRES,
    ),
    guard(
        "I2",
        "a writer is alone on SQLite from its first statement",
        DATABASE,
        'begin = "BEGIN IMMEDIATE" if writer else "BEGIN"',
        'begin = "BEGIN"',
        "races: test_claim_against_claim",
        "races: test_heartbeat_against_reap",
        on=SQLITE,
    ),
    guard(
        "I2",
        "what could not be written is kept and sent again",
        BOOKS,
        "shift.outbox.put_back(batch)",
        "pass",
        "serve: test_training_goes_on_while_the_database_is_away",
        on=NONE,
    ),
    guard(
        "I2",
        "what the trainer says of a run whose lease is lost is not written",
        LISTENER,
        "if run.phase is Phase.GHOST:\n                self._on_ghost(run, event)\n"
        "                continue",
        "",
        "serve: test_a_ghosts_model_goes_with_it",
        on=NONE,
    ),
    guard(
        "I2",
        "the best trial is compared in the UPDATE that notes it",
        BEST,
        "_SCORE < _OLD_SCORE,",
        "_SCORE != _OLD_SCORE,",
        "races: test_the_last_two_finishes",
    ),
    guard(
        "I2",
        "of equal trials the lower number is the best, whichever ends first",
        BEST,
        'and_(_SCORE == _OLD_SCORE, bindparam("trial") < studies.c.best_trial_id),',
        "",
        "ends: test_of_equal_trials_the_lowest_number_is_best_and_keeps_its_model",
    ),
    guard(
        "I2",
        "and of models the best trials' are kept, those of pruned ones last",
        BEST,
        '            r.state != "COMPLETE",\n',
        "",
        "ends: test_a_pruned_trials_model_gives_way_to_every_complete_one",
    ),
    guard(
        "I2",
        "a retry takes over Optuna's curve up to its checkpoint, and no further",
        OPTUNA,
        "INTERMEDIATE.c.trial_id == source, INTERMEDIATE.c.step <= up_to_step",
        "INTERMEDIATE.c.trial_id == source",
        "ends: test_a_retry_takes_over_the_curve_up_to_its_checkpoint",
    ),
    guard(
        "I2",
        "and our records of its epochs",
        STARTS,
        "epochs.c.trial_id == source, epochs.c.step <= step",
        "epochs.c.trial_id == source",
        "ends: test_a_retry_takes_over_the_curve_up_to_its_checkpoint",
    ),
    guard(
        "I2",
        "what a worker says of a study that it has lost ends no study",
        FLUSH,
        "if f.hopeless is not None and f.lease.key in unit.held",
        "if f.hopeless is not None",
        "ends: test_a_zombies_word_ends_no_study",
    ),
    guard(
        "I2",
        "after a commit that failed the connection is replaced",
        "tuner_service/storage/patient.py",
        "self.spoilt = True  #",
        "pass  #",
        "pipeline: test_a_commit_that_failed_leaves_no_statement_that_only_psycopg_thinks_prepared",
        on=NONE,
    ),
    # -- I3: the budget and the cap ----------------------------------------------------------
    guard(
        "I3",
        "blamed attempts are capped",
        ATTEMPTS,
        "blamed >= (cap or settings.max_attempts) or",
        "",
        "ends: test_blamed_attempts_use_up_the_cap",
    ),
    guard(
        "I3",
        "alone, two blamed attempts are the last",
        ATTEMPTS,
        'min(settings.max_attempts, BLAMED_ALONE) if attempt.slot["exclusive"] else None',
        "None",
        "ends: test_two_deaths_alone_fail_the_slot",
    ),
    guard(
        "I3",
        "of several that share a trainer's death none is blamed",
        "workers/supervisor/blame.py",
        "blamed=alone,",
        "blamed=True,",
        "serve: test_a_death_with_several_on_board_blames_none_and_all_finish",
        on=NONE,
    ),
    guard(
        "I3",
        "leases lost without end fail the slot",
        ATTEMPTS,
        " or lost >= LOST_LEASES:",
        ":",
        "ends: test_lost_workers_blame_nobody_but_not_for_ever",
    ),
    guard(
        "I3",
        "who moves slots locks their studies first",
        TALLY,
        '.where(among(studies.c.id, bindparam("ids")))\n    .order_by(studies.c.id)\n'
        "    .with_for_update()",
        '.where(among(studies.c.id, bindparam("ids")))\n    .order_by(studies.c.id)',
        "races: test_claim_against_claim",
        on=POSTGRES,
    ),
    guard(
        "I3",
        "a trial is numbered under the lock of Optuna's study, as plain Optuna does",
        UNIT,
        ".order_by(optuna_rows.STUDIES.c.study_id)\n    .with_for_update()",
        ".order_by(optuna_rows.STUDIES.c.study_id)",
        "races: test_start_against_plain_optunas_ask",
        on=POSTGRES,
    ),
    guard(
        "I3",
        "a claim leaves a place for each trial that was handed back",
        CLAIM,
        "taken = self._leased if running else self._leased + self._waiting",
        "taken = self._leased",
        "claims: test_a_handed_back_trial_that_must_run_alone_keeps_its_place",
    ),
    guard(
        "I3",
        "a grid's budget is its points",
        STUDIES,
        'if definition.sampler.type == "grid":',
        "if False:",
        "ends: test_a_grids_budget_cannot_be_raised",
    ),
    guard(
        "I3",
        "submits of one key wait for each other, so that its limits hold",
        QUOTAS,
        "connection.execute(select(func.pg_advisory_xact_lock(key)))",
        "pass",
        "people: test_submit_against_submit_at_a_keys_limit",
        on=POSTGRES,
    ),
    # -- I4: every slot reaches an end -------------------------------------------------------
    guard(
        "I4",
        "a flush ends studies that are through",
        FLUSH,
        "if settle(unit.connection, studies.values(), now=unit.now, hopeless=unit.hopeless):",
        "if False:",
        "ends: test_a_final_value_that_is_no_number_ends_as_diverged",
    ),
    guard(
        "I4",
        "the reconciler ends studies that are through or out of time",
        RECONCILE,
        "finished += settle(connection, lock_rows(connection, rows).values(), now=now)",
        "pass",
        "ends: test_the_reconciler_ends_a_study_whose_time_is_up",
    ),
    guard(
        "I4",
        "a paused study whose last trial ends has ended",
        ENDING,
        'if study["state"] not in ACTIVE and study["state"] != "paused":',
        'if study["state"] not in ACTIVE:',
        "people: test_pause_against_the_last_finish",
    ),
    guard(
        "I4",
        "the slot of a start that is refused has ended",
        STARTS,
        '("cancelled", "failed"):\n            _refuse(unit, start)',
        "():\n            _refuse(unit, start)",
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    guard(
        "I4",
        "slots that wait hide no study that has one ready",
        CLAIMABLE,
        "            slot.where(slots.c.study_id == studies.c.id).exists(),\n",
        "",
        "claims: test_many_studies_whose_slots_all_wait_hide_none",
    ),
    guard(
        "I4",
        "a slot that must run alone comes first, and by itself",
        CLAIM,
        "chosen = _deal(offers, wanted) if lone is None else [lone]",
        "chosen = _deal(offers, wanted)",
        "claims: test_a_slot_that_must_run_alone_is_claimed_by_itself",
    ),
    guard(
        "I4",
        "after two shared deaths a slot runs alone",
        ATTEMPTS,
        "or shared >= SHARED_DEATHS_BEFORE_ALONE",
        "",
        "ends: test_two_deaths_alone_fail_the_slot",
    ),
    guard(
        "I4",
        "a slot that was handed back waits for no clock",
        FLUSH,
        '"not_before": 0.0,',
        '"not_before": unit.now,',
        "ends: test_a_clock_that_was_set_back_holds_no_handed_back_slot",
    ),
    guard(
        "I4",
        "a raised timeout opens the slots that it cancelled",
        STUDIES,
        'again = _reopened(connection, row, change) if row["reason"] == TIMEOUT else 0',
        "again = 0",
        "ends: test_a_raised_timeout_opens_the_cancelled_slots_again",
    ),
    # -- I5: a live lease behind every RUNNING trial -----------------------------------------
    guard(
        "I5",
        "leases that ran out are reaped",
        RECONCILE,
        "slots.c.lease_expires_at < now,\n            )",
        "slots.c.lease_expires_at < 0,\n            )",
        "ends: test_retries_back_off",
    ),
    guard(
        "I5",
        "those that a clock set back made long are shortened",
        RECONCILE,
        "            _shorten(connection, rows, settings, now)\n",
        "",
        "ends: test_a_clock_that_was_set_back_strands_nothing",
    ),
    guard(
        "I5",
        "to a lease's time, in which a worker that lives renews its own",
        RECONCILE,
        ".values(lease_expires_at=now + settings.lease_seconds)",
        ".values(lease_expires_at=now - 1)",
        "ends: test_a_clock_that_was_set_back_takes_nothing_from_a_worker_that_lives",
    ),
    guard(
        "I5",
        "a reaped trial becomes FAIL",
        ATTEMPTS,
        'if e.slot["trial_id"] is not None',
        "if False",
        "ends: test_a_clock_that_was_set_back_strands_nothing",
    ),
    guard(
        "I5",
        "a flush renews the leases that are held",
        FLUSH,
        "for row in unit.held.values()\n            if not fresh",
        "for row in ()\n            if not fresh",
        "slot: test_a_lease_is_renewed_once_a_part_of_it_is_over",
    ),
    guard(
        "I5",
        "a study that ends takes trials that were handed back along",
        ENDING,
        "waiting = _handed_back(connection, study)",
        "waiting: list[Row] = []",
        "ends: test_a_cancel_ends_handed_back_trials_at_once",
    ),
    guard(
        "I5",
        "a trial handed back after the cancel ends with its study",
        FLUSH,
        'if unit.studies[row["study_id"]]["state"] in ("cancelled", "failed"):',
        "if False:",
        "people: test_cancel_against_hand_back",
    ),
    guard(
        "I5",
        "a worker that stops hands its trials back with a checkpoint",
        "workers/supervisor/supervisor.py",
        'self._shift.send({"type": "shutdown"})',
        "pass",
        "serve: test_stopping_checkpoints_and_hands_back_everything",
        on=NONE,
    ),
    guard(
        "I5",
        "PostgreSQL ends a client that is silent in its transaction",
        DATABASE,
        'cursor.execute(f"SET idle_in_transaction_session_timeout = {idle}")',
        "del idle",
        "database: test_a_client_that_falls_silent_in_a_transaction_lets_go",
        on=NONE,
    ),
    guard(
        "I5",
        "a study that runs cannot be deleted",
        "tuner_service/lifecycle/delete.py",
        'if row["state"] in ACTIVE:\n            raise ConflictError(',
        "if False:\n            raise ConflictError(",
        "people: test_resume_against_delete",
    ),
    # -- I6: idempotency ---------------------------------------------------------------------
    guard(
        "I6",
        "the body's hash is compared",
        SUBMIT,
        "if row.body_hash != _hash(definition):",
        "if False:",
        "slot: test_submit_is_idempotent_by_key_and_names_are_made_free",
    ),
    guard(
        "I6",
        "the key is looked up in the transaction that would use it",
        SUBMIT,
        "known = _known(connection, owner, key, asked)\n",
        "known = None\n",
        "people: test_submit_against_submit_with_one_key",
    ),
    guard(
        "I6",
        "a key is its owner's",
        SUBMIT,
        "idempotency_keys.c.owner == owner, ",
        "",
        "reading: test_a_submit_sent_again_gives_the_same_answer",
    ),
    guard(
        "I6",
        "a submit that lost a race looks again",
        SUBMIT,
        "except (IntegrityError, NotFoundError):",
        "except NotFoundError:",
        "people: test_submit_against_submit_with_one_name",
        on=POSTGRES,
    ),
    # -- I7: no trial after a cancel ---------------------------------------------------------
    guard(
        "I7",
        "a start looks at the study's state under its lock",
        STARTS,
        'elif study["state"] in ACTIVE and not timed_out(study, unit.now):',
        "elif True:",
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    guard(
        "I7",
        "a cancel closes the open slots",
        ENDING,
        '.where(slots.c.study_id == study["id"], slots.c.state == "open")\n'
        '        .values(state="cancelled"',
        '.where(slots.c.study_id == study["id"], slots.c.state == "")\n'
        '        .values(state="cancelled"',
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    guard(
        "I7",
        "a claim leaves out studies that are not active, in its query and under the lock",
        CLAIM,
        'row["state"] in ACTIVE\n        and row["slots_open"] > 0',
        'row["slots_open"] > 0',
        "slot: test_pause_hands_back_and_resume_continues_the_same_trial",
        behind=(Edit(CLAIMABLE, "studies.c.state.in_(ACTIVE),", ""),),
    ),
    guard(
        "I7",
        "running trials are told that their study was cancelled",
        FLUSH,
        'if study["state"] in ("cancelled", "failed"):\n        return "cancelled"',
        "",
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    # -- I8: the broker holds nothing --------------------------------------------------------
    guard(
        "I8",
        "each round finds the queues that have work",
        RECONCILE,
        "rings = workers_to_ring(connection, now)",
        "rings: dict[str, int] = {}",
        "claims: test_auto_goes_to_the_cpu_when_the_cuda_worker_is_gone",
    ),
    guard(
        "I8",
        "the API rings them, whatever the broker has lost",
        "tuner_service/api/reconciler.py",
        "for name, count in done.rings.items():",
        "for name, count in ():",
        "reconciler: test_outages_and_surprises_do_not_end_it",
        on=NONE,
    ),
    # -- I9: grids ---------------------------------------------------------------------------
    guard(
        "I9",
        "each point of the grid is one slot, fixed at submit",
        SLOTROWS,
        "parameters = next(points)",
        "parameters = next(grid_points(definition))",
        "slot: test_a_grid_covers_every_point_once",
    ),
    guard(
        "I9",
        "a slot's parameters are fixed once",
        STARTS,
        'if fixed[row["id"]] not in (None, start.parameters):',
        "if False:",
        "ends: test_a_slots_parameters_are_fixed_once",
    ),
    guard(
        "I9",
        "the coverage names failed points",
        TRIALS,
        'slots.c.study_id == study["id"], slots.c.state == "failed"',
        'slots.c.study_id == study["id"], slots.c.state == ""',
        "ends: test_blamed_attempts_use_up_the_cap",
    ),
)
