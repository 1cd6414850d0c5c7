"""Who may come in beside whom."""

import pytest

from workers.protocol.messages import RunId
from workers.training.engine.on_board import OnBoard


@pytest.mark.parametrize(
    ("inside", "trial", "exclusive", "admitted"),
    [
        ([], 1, True, True),
        ([(1, False)], 2, False, True),
        ([(1, False)], 2, True, False),
        ([(1, True)], 2, False, False),
        ([(1, True)], 1, True, True),  # another fold of the same trial
        ([(1, False), (2, False)], 1, True, False),
    ],
)
def test_an_exclusive_trial_has_no_other_beside_it(inside, trial, exclusive, admitted):
    board = OnBoard()
    for run, (other, alone) in enumerate(inside, start=10):
        board.add(RunId(run), RunId(other), exclusive=alone)
    assert board.admits(RunId(trial), exclusive=exclusive) is admitted
    for run, _ in enumerate(inside, start=10):
        board.remove(RunId(run))
    assert board.admits(RunId(trial), exclusive=exclusive)


def test_a_trial_is_on_board_until_its_last_fold_ended():
    board = OnBoard()
    for run in (10, 11):
        board.add(RunId(run), RunId(1), exclusive=True)
    board.remove(RunId(10))
    assert not board.admits(RunId(2), exclusive=False)
    board.remove(RunId(11))
    assert board.admits(RunId(2), exclusive=False)
