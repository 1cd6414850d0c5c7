"""Every guard of the invariants I1–I9, and the tests that fail without it.

`docs/reliability.md` shows this table; `python -m tests.guards` takes each guard out. In the source
each is marked where it stands, `# guard: name`. What stands behind another guard, so that no test
could miss it alone, is taken out together with the other.
"""

from typing import Final

from tests.guards.guard import BOTH, Dialect, Edit, Guard
from tests.guards.mutation import Become, Drop, Force, KeepFirst, Mutation

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
    "serve": "tests/unit/workers/test_supervisor.py",
    "reconciler": "tests/unit/api/test_reconciler.py",
}


DROP: Final = Drop()
FIRST: Final = KeepFirst()
NEVER: Final = Force(False)
ALWAYS: Final = Force(True)


def guard(
    invariant: str,
    what: str,
    mark: str,
    mutation: Mutation,
    *tests: str,
    on: tuple[Dialect, ...] = BOTH,
    behind: tuple[Edit, ...] = (),
) -> Guard:
    """Return a guard of one edit, and of those that stand behind it; tests are `file: name`."""
    caught_by = tuple(f"{_FILES[test.split(': ')[0]]}::{test.split(': ')[1]}" for test in tests)
    return Guard(invariant, what, (Edit(mark, mutation), *behind), caught_by, on)


GUARDS: Final = (
    # -- I1: at most one result for each slot ------------------------------------------------
    guard(
        "I1",
        "only RUNNING trials are ended",
        "end-running-only",
        DROP,
        "rows: test_an_ended_trial_is_not_ended_again",
    ),
    guard(
        "I1",
        "a lease speaks for its slot's present trial only",
        "lease-of-trial",
        FIRST,
        "ends: test_a_lease_speaks_for_its_own_trial_only",
    ),
    guard(
        "I1",
        "a slot that is done takes no second result",
        "result-once",
        ALWAYS,
        "slot: test_a_flush_sent_twice_counts_once",
        "races: test_the_same_finish_sent_twice_at_once",
    ),
    guard(
        "I1",
        "a start that is sent again gets the trial it got",
        "start-again",
        NEVER,
        "slot: test_a_flush_sent_twice_counts_once",
        "races: test_the_same_start_sent_twice_at_once",
    ),
    # -- I2: a result is written once; a zombie's write changes nothing ----------------------
    guard(
        "I2",
        "a claim raises the slot's fencing token",
        "claim-token",
        FIRST,
        "ends: test_an_old_lease_of_a_slot_does_not_spoil_its_new_one",
        "races: test_reap_against_claim",
    ),
    guard(
        "I2",
        "a flush compares the fencing token",
        "lease-token",
        Become('next(k for k in keys if k[0] == row["id"])'),
        "ends: test_an_old_lease_of_a_slot_does_not_spoil_its_new_one",
    ),
    guard(
        "I2",
        "a flush compares the worker: a lease that was reaped is nobody's",
        "lease-worker",
        FIRST,
        "races: test_finish_against_reap",
        "ends: test_a_lease_is_its_own_workers",
    ),
    guard(
        "I2",
        "each UPDATE of a leased slot carries the fencing token, behind the locks",
        "update-token",
        FIRST,
        "ends: test_no_update_of_a_slot_goes_by_what_was_read",
    ),
    guard(
        "I2",
        "and finds it leased",
        "update-leased",
        DROP,
        "ends: test_no_update_of_a_slot_goes_by_what_was_read",
    ),
    guard(
        "I2",
        "a reaper looks under the lock at which leases ran out",
        "reap-expired",
        DROP,
        "races: test_heartbeat_against_reap",
    ),
    guard(
        "I2",
        "a trial that plain Optuna has ended stands",
        "ended-stands",
        NEVER,
        "ends: test_a_trial_ended_by_plain_optuna_stands",
    ),
    guard(
        "I2",
        "a flush locks the trials' rows, as plain Optuna does",
        "lock-optuna-trials",
        DROP,
        "races: test_finish_against_plain_optunas_tell",
        on=POSTGRES,
    ),
    guard(
        "I2",
        "a writer is alone on SQLite from its first statement",
        "sqlite-writer",
        NEVER,
        "races: test_claim_against_claim",
        "races: test_heartbeat_against_reap",
        on=SQLITE,
    ),
    guard(
        "I2",
        "what could not be written is kept and sent again",
        "kept-batch",
        DROP,
        "serve: test_training_goes_on_while_the_database_is_away",
        on=NONE,
    ),
    guard(
        "I2",
        "what the trainer says of a run whose lease is lost is not written",
        "lost-run",
        NEVER,
        "serve: test_a_ghosts_model_goes_with_it",
        on=NONE,
    ),
    guard(
        "I2",
        "the best trial is compared in the UPDATE that notes it",
        "best-compared",
        Become("_SCORE != _OLD_SCORE"),
        "races: test_the_last_two_finishes",
    ),
    guard(
        "I2",
        "of equal trials the lower number is the best, whichever ends first",
        "best-ties",
        DROP,
        "ends: test_of_equal_trials_the_lowest_number_is_best_and_keeps_its_model",
    ),
    guard(
        "I2",
        "and of models the best trials' are kept, those of pruned ones last",
        "models-complete",
        DROP,
        "ends: test_a_pruned_trials_model_gives_way_to_every_complete_one",
    ),
    guard(
        "I2",
        "a retry takes over Optuna's curve up to its checkpoint, and no further",
        "copied-values",
        DROP,
        "ends: test_a_retry_takes_over_the_curve_up_to_its_checkpoint",
    ),
    guard(
        "I2",
        "and our records of its epochs",
        "copied-records",
        DROP,
        "ends: test_a_retry_takes_over_the_curve_up_to_its_checkpoint",
    ),
    guard(
        "I2",
        "what a worker says of a study that it has lost ends no study",
        "lost-word",
        FIRST,
        "ends: test_a_zombies_word_ends_no_study",
    ),
    guard(
        "I2",
        "after a commit that failed the connection is replaced",
        "spoilt-connection",
        DROP,
        "pipeline: test_a_commit_that_failed_leaves_no_statement_that_only_psycopg_thinks_prepared",
        on=NONE,
    ),
    # -- I3: the budget and the cap ----------------------------------------------------------
    guard(
        "I3",
        "blamed attempts are capped",
        "blamed-cap",
        DROP,
        "ends: test_blamed_attempts_use_up_the_cap",
    ),
    guard(
        "I3",
        "alone, two blamed attempts are the last",
        "alone-cap",
        NEVER,
        "ends: test_two_deaths_alone_fail_the_slot",
    ),
    guard(
        "I3",
        "of several that share a trainer's death none is blamed",
        "shared-death",
        Become("True"),
        "serve: test_a_death_with_several_on_board_blames_none_and_all_finish",
        on=NONE,
    ),
    guard(
        "I3",
        "leases lost without end fail the slot",
        "lost-leases",
        DROP,
        "ends: test_lost_workers_blame_nobody_but_not_for_ever",
    ),
    guard(
        "I3",
        "who moves slots locks their studies first",
        "lock-studies",
        DROP,
        "races: test_claim_against_claim",
        on=POSTGRES,
    ),
    guard(
        "I3",
        "a trial is numbered under the lock of Optuna's study, as plain Optuna does",
        "lock-optuna-study",
        DROP,
        "races: test_start_against_plain_optunas_ask",
        on=POSTGRES,
    ),
    guard(
        "I3",
        "a claim leaves a place for each trial that was handed back",
        "claim-place",
        ALWAYS,
        "claims: test_a_handed_back_trial_that_must_run_alone_keeps_its_place",
    ),
    guard(
        "I3",
        "a grid's budget is its points",
        "grid-budget",
        NEVER,
        "ends: test_a_grids_budget_cannot_be_raised",
    ),
    guard(
        "I3",
        "submits of one key wait for each other, so that its limits hold",
        "quota-turns",
        DROP,
        "people: test_submit_against_submit_at_a_keys_limit",
        on=POSTGRES,
    ),
    # -- I4: every slot reaches an end -------------------------------------------------------
    guard(
        "I4",
        "a flush ends studies that are through",
        "flush-ends",
        NEVER,
        "ends: test_a_final_value_that_is_no_number_ends_as_diverged",
    ),
    guard(
        "I4",
        "the reconciler ends studies that are through or out of time",
        "reconcile-ends",
        DROP,
        "ends: test_the_reconciler_ends_a_study_whose_time_is_up",
    ),
    guard(
        "I4",
        "a paused study whose last trial ends has ended",
        "paused-ends",
        FIRST,
        "people: test_pause_against_the_last_finish",
    ),
    guard(
        "I4",
        "the slot of a start that is refused has ended",
        "start-refused",
        NEVER,
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    guard(
        "I4",
        "slots that wait hide no study that has one ready",
        "claimable-ready",
        DROP,
        "claims: test_many_studies_whose_slots_all_wait_hide_none",
    ),
    guard(
        "I4",
        "a slot that must run alone comes first, and by itself",
        "exclusive-first",
        ALWAYS,
        "claims: test_a_slot_that_must_run_alone_is_claimed_by_itself",
    ),
    guard(
        "I4",
        "after two shared deaths a slot runs alone",
        "shared-alone",
        DROP,
        "ends: test_two_deaths_alone_fail_the_slot",
    ),
    guard(
        "I4",
        "a slot that was handed back waits for no clock",
        "handed-back-now",
        Become("unit.now"),
        "ends: test_a_clock_that_was_set_back_holds_no_handed_back_slot",
    ),
    guard(
        "I4",
        "a raised timeout opens the slots that it cancelled",
        "reopened",
        NEVER,
        "ends: test_a_raised_timeout_opens_the_cancelled_slots_again",
    ),
    # -- I5: a live lease behind every RUNNING trial -----------------------------------------
    guard(
        "I5",
        "leases that ran out are reaped",
        "reap-expired",
        Become("False"),
        "ends: test_retries_back_off",
    ),
    guard(
        "I5",
        "those that a clock set back made long are shortened",
        "reconcile-shortens",
        DROP,
        "ends: test_a_clock_that_was_set_back_strands_nothing",
    ),
    guard(
        "I5",
        "to a lease's time, in which a worker that lives renews its own",
        "shorten-to",
        Become("now - 1"),
        "ends: test_a_clock_that_was_set_back_takes_nothing_from_a_worker_that_lives",
    ),
    guard(
        "I5",
        "a reaped trial becomes FAIL",
        "reaped-fails",
        NEVER,
        "ends: test_a_clock_that_was_set_back_strands_nothing",
    ),
    guard(
        "I5",
        "a flush renews the leases that are held",
        "flush-renews",
        Become("()"),
        "slot: test_a_lease_is_renewed_once_a_part_of_it_is_over",
    ),
    guard(
        "I5",
        "a study that ends takes trials that were handed back along",
        "handed-back-end",
        Become("[]"),
        "ends: test_a_cancel_ends_handed_back_trials_at_once",
    ),
    guard(
        "I5",
        "a trial handed back after the cancel ends with its study",
        "hand-back-cancelled",
        NEVER,
        "people: test_cancel_against_hand_back",
    ),
    guard(
        "I5",
        "a worker that stops hands its trials back with a checkpoint",
        "drain-checkpoints",
        DROP,
        "serve: test_stopping_checkpoints_and_hands_back_everything",
        on=NONE,
    ),
    guard(
        "I5",
        "PostgreSQL ends a client that is silent in its transaction",
        "silent-client",
        DROP,
        "database: test_a_client_that_falls_silent_in_a_transaction_lets_go",
        on=NONE,
    ),
    guard(
        "I5",
        "a study that runs cannot be deleted",
        "delete-running",
        NEVER,
        "people: test_resume_against_delete",
    ),
    # -- I6: idempotency ---------------------------------------------------------------------
    guard(
        "I6",
        "the body's hash is compared",
        "body-hash",
        NEVER,
        "slot: test_submit_is_idempotent_by_key_and_names_are_made_free",
    ),
    guard(
        "I6",
        "the key is looked up in the transaction that would use it",
        "key-known",
        Become("None"),
        "people: test_submit_against_submit_with_one_key",
    ),
    guard(
        "I6",
        "a key is its owner's",
        "key-owner",
        DROP,
        "reading: test_a_submit_sent_again_gives_the_same_answer",
    ),
    guard(
        "I6",
        "a submit that lost a race looks again",
        "submit-again",
        DROP,
        "people: test_submit_against_submit_with_one_name",
        on=POSTGRES,
    ),
    # -- I7: no trial after a cancel ---------------------------------------------------------
    guard(
        "I7",
        "a start looks at the study's state under its lock",
        "start-active",
        ALWAYS,
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    guard(
        "I7",
        "a cancel closes the open slots",
        "cancel-closes",
        Become("False"),
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    guard(
        "I7",
        "a claim leaves out studies that are not active, in its query and under the lock",
        "claim-active",
        DROP,
        "slot: test_pause_hands_back_and_resume_continues_the_same_trial",
        behind=(Edit("claimable-active", DROP),),
    ),
    guard(
        "I7",
        "running trials are told that their study was cancelled",
        "told-cancelled",
        NEVER,
        "slot: test_after_a_cancel_no_trial_starts",
    ),
    # -- I8: the broker holds nothing --------------------------------------------------------
    guard(
        "I8",
        "each round finds the queues that have work",
        "reconcile-rings",
        Become("{}"),
        "claims: test_auto_goes_to_the_cpu_when_the_cuda_worker_is_gone",
    ),
    guard(
        "I8",
        "the API rings them, whatever the broker has lost",
        "rings-sent",
        Become("()"),
        "reconciler: test_outages_and_surprises_do_not_end_it",
        on=NONE,
    ),
    # -- I9: grids ---------------------------------------------------------------------------
    guard(
        "I9",
        "each point of the grid is one slot, fixed at submit",
        "grid-points",
        Become("next(grid_points(space))"),
        "slot: test_a_grid_covers_every_point_once",
    ),
    guard(
        "I9",
        "a slot's parameters are fixed once",
        "parameters-once",
        NEVER,
        "ends: test_a_slots_parameters_are_fixed_once",
    ),
    guard(
        "I9",
        "the coverage names failed points",
        "coverage-failed",
        Become("False"),
        "ends: test_blamed_attempts_use_up_the_cap",
    ),
)
