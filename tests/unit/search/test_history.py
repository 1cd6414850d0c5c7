"""The mirror: merged from the database in any order, told at once what this worker does."""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.unit.search.builders import stored
from tuner_service.search.history import History, MirroredTrial, Reader

SPACE = {"x": FloatDistribution(0, 1), "c": CategoricalDistribution(("a", "b"))}


def trial(trial_id: int, state="COMPLETE", x=0.5, **more):
    more.setdefault("value", 1.0 if state == "COMPLETE" else None)
    return stored(trial_id, {"x": x, "c": "a"}, state, distributions=SPACE, **more)


def finished_ids(history: History) -> list[int]:
    return [one.trial_id for one in history.finished]


def test_merging_twice_changes_nothing() -> None:
    history = History(SPACE)
    trials = [trial(1), trial(2, "RUNNING"), trial(3, "FAIL"), trial(4, "PRUNED")]
    history.merge(trials)
    history.merge(reversed(trials))
    assert finished_ids(history) == [1, 4]
    assert [one.trial_id for one in history.running] == [2]
    assert history.unfinished == {2}
    assert history.last_trial_id == 4


def test_a_running_trial_of_another_worker_is_read_until_it_ends() -> None:
    history = History(SPACE)
    history.merge([trial(7, "RUNNING", intermediate_values={1: 0.5})])
    history.merge([trial(7, "RUNNING", intermediate_values={1: 0.5, 2: 0.25})])
    assert history[7].last_step == 2
    history.merge([trial(7, value=0.125, intermediate_values={1: 0.5, 2: 0.25})])
    assert history.unfinished == set()
    assert history[7].values == (0.125,)


def test_own_reports_stay_ahead_of_what_is_written() -> None:
    history = History(SPACE)
    history.start(5, {"x": 0.5, "c": "a"})
    history.report(5, 1, 0.9)
    history.report(5, 2, 0.8)
    history.merge([trial(5, "RUNNING", intermediate_values={1: 0.9})])
    assert history[5].intermediate_values == {1: 0.9, 2: 0.8}
    assert history.last_trial_id == 5


def test_started_trials_do_not_hide_earlier_ones_of_other_workers() -> None:
    history = History(SPACE)
    history.merge([trial(1)])
    history.start(9, {"x": 0.5, "c": "a"})
    assert history.last_trial_id == 1


def test_a_retry_carries_its_curve_on() -> None:
    history = History(SPACE)
    history.start(6, {"x": 0.5, "c": "a"})
    history.report(6, 3, 0.3)
    history.merge([trial(6, "RUNNING", intermediate_values={1: 0.1, 2: 0.2})])
    assert history[6].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


def test_a_finished_trial_is_told_once() -> None:
    history = History(SPACE)
    history.start(5, {"x": 0.5, "c": "a"})
    history.finish(5, "COMPLETE", (1.0,))
    history.finish(5, "FAIL", None)
    history.merge([trial(5, "FAIL")])
    assert history[5].state == "COMPLETE"
    assert finished_ids(history) == [5]


def test_a_forgotten_trial_is_read_again() -> None:
    history = History(SPACE)
    history.start(5, {"x": 0.5, "c": "a"})
    history.finish(5, "COMPLETE", (1.0,))
    history.forget(5)
    assert finished_ids(history) == []
    assert history.unfinished == {5}
    history.merge([trial(5, "FAIL")])
    assert history[5].state == "FAIL"
    history.forget(404)


def test_handed_out_parameters_wait_for_their_trial() -> None:
    history = History(SPACE)
    first, second = {"x": 0.1, "c": "a"}, {"x": 0.2, "c": "a"}
    for params in (first, second, first):
        history.handed_out(params)
    before = history.pending
    history.start(3, second)
    assert list(history.pending.values()) == [first, first]
    history.withdraw(first)
    assert list(history.pending.values()) == [first]
    history.withdraw({"x": 0.7})
    assert set(history.pending) < set(before)
    assert min(before) > 10**12


def test_what_does_not_fit_the_space_is_left_out() -> None:
    foreign = {
        "x": FloatDistribution(0, 100),
        "c": CategoricalDistribution(("b", "z")),
        "other": IntDistribution(1, 9),
    }
    history = History(SPACE)
    history.merge(
        [
            stored(1, {"x": 50.0, "c": "z", "other": 3}, distributions=foreign, value=1.0),
            stored(2, {"x": 0.5, "c": "b", "other": 3}, distributions=foreign, value=1.0),
        ]
    )
    assert [one.params for one in history.finished] == [{}, {"x": 0.5, "c": "b"}]


def test_a_foreign_running_trial_may_gain_parameters() -> None:
    history = History(SPACE)
    history.merge([stored(1, {"x": 0.5}, "RUNNING", distributions=SPACE, own=False)])
    history.merge([trial(1, "RUNNING", own=False)])
    assert history[1].params == {"x": 0.5, "c": "a"}


def test_waiting_trials_are_watched_but_do_not_run() -> None:
    history = History(SPACE)
    history.merge([stored(1, {}, "WAITING", distributions=SPACE)])
    assert (history.running, history.unfinished) == ([], {1})
    history.merge([trial(1, "RUNNING")])
    assert history.running[0].params == {"x": 0.5, "c": "a"}


def test_only_violated_constraints_make_a_trial_infeasible() -> None:
    history = History(SPACE)
    history.merge([trial(1, constraints={"a": 2.0, "b": -5.0, "c": 1.5}), trial(2)])
    assert [one.violation for one in history.finished] == [3.5, 0.0]


def test_a_reader_hands_over_each_finished_trial_once() -> None:
    read: list[int] = []

    def add(one: MirroredTrial) -> None:
        read.append(one.trial_id)

    history, reader = History(SPACE), Reader(read.clear, add)
    history.merge([trial(1), trial(2, "PRUNED")])
    reader.catch_up(history)
    reader.catch_up(history)
    history.merge([trial(3)])
    reader.catch_up(history)
    assert read == [1, 2, 3]
    history.forget(2)
    reader.catch_up(history)
    assert read == [1, 3]
