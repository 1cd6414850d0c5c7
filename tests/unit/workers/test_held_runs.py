"""A run's way through its phases, and who may change it."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from tests.unit.workers.test_blame import run
from workers.supervisor import held_runs
from workers.supervisor.held_runs import LeasedTrial, Phase


def in_phase(phase: Phase) -> LeasedTrial:
    one = run()
    one.phase = phase
    return one


MOVES = {
    "starting": {Phase.HELD},
    "ready": {Phase.HELD, Phase.STARTING},
    "sent": {Phase.READY},
    "send_again": {Phase.SENT},
    "lose": {Phase.SENT},
}
ALL = [(move, phase) for move in MOVES for phase in Phase]


@pytest.mark.parametrize(("move", "phase"), ALL)
def test_a_run_moves_only_where_its_phase_leads(move: str, phase: Phase) -> None:
    one = in_phase(phase)
    arguments = (1.0,) if move == "sent" else ()
    if phase in MOVES[move]:
        getattr(one, move)(*arguments)
        assert one.phase is not phase
    else:
        with pytest.raises(RuntimeError, match=f"but it is {phase.value}"):
            getattr(one, move)(*arguments)
        assert one.phase is phase


def test_a_run_that_goes_again_has_not_begun() -> None:
    one = in_phase(Phase.READY)
    sendings = one.sendings
    one.sent(5.0)
    one.begun(6.0)
    one.send_again()
    assert (one.started_at, one.sendings, one.sent_at) == (None, sendings + 1, 5.0)


def test_no_other_module_of_the_supervisor_writes_a_runs_fields() -> None:
    names = {field.name for field in fields(LeasedTrial)}
    folder = Path(inspect.getfile(held_runs)).parent
    written = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if node.attr in names and not own:
                written.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert written == []
