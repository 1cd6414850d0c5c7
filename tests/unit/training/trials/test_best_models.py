"""Which models a trainer writes: those of the best trials it knows of, in an order all agree on."""

import itertools
import math
from pathlib import Path

import pytest

from tests.unit.training.builders import start
from workers.protocol.messages import TrialStart
from workers.training.trials.best_models import ModelKeeper
from workers.training.trials.runs import Direction


def started(number: int, *, keep: int = 1, study: int = 1) -> TrialStart:
    return start(1, folder=Path(), number=number, study=study, keep_models=keep)


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_of_equal_values_the_earlier_trial_keeps_its_model_whichever_ends_first(
    order: tuple[int, ...],
) -> None:
    keeper = ModelKeeper()
    kept = [trial for trial in order if keeper.ranks(started(trial), 0.9, "maximize")]
    assert kept[-1] == 1
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize(
    ("direction", "values", "kept"),
    [
        ("maximize", [0.5, 0.9, 0.7, 0.6, 0.8], [0, 1, 2, 4]),
        ("minimize", [0.5, 0.9, 0.7, 0.6, 0.4], [0, 1, 2, 3, 4]),
        ("minimize", [0.1, 0.2, 0.3], [0, 1]),
    ],
)
def test_the_best_two_of_those_seen_so_far_rank(
    direction: Direction, values: list[float], kept: list[int]
) -> None:
    keeper = ModelKeeper()
    ranked = [keeper.ranks(started(n, keep=2), value, direction) for n, value in enumerate(values)]
    assert [n for n, ranks in enumerate(ranked) if ranks] == kept


def test_no_model_is_kept_of_a_value_that_is_no_number_or_where_none_is_wanted() -> None:
    keeper = ModelKeeper()
    assert not keeper.ranks(started(1), math.nan, "minimize")
    assert not keeper.ranks(started(2, keep=0), 0.1, "minimize")
    assert keeper.ranks(started(3), 0.1, "minimize")


def test_studies_do_not_rank_against_each_other_and_forgetting_starts_anew() -> None:
    keeper = ModelKeeper()
    assert keeper.ranks(started(1), 0.9, "maximize")
    assert keeper.ranks(started(2, study=2), 0.1, "maximize")
    assert not keeper.ranks(started(3), 0.5, "maximize")
    keeper.forget(1)
    assert keeper.ranks(started(4), 0.5, "maximize")
