"""The table of guards fits the source, the tests and the documentation."""

import ast
from collections import Counter

import pytest

from tests.guards.guard import ROOT, Edit, Guard
from tests.guards.run import table, unnoticed
from tests.guards.table import GUARDS

INVARIANTS = {f"I{number}" for number in range(1, 10)}


@pytest.mark.parametrize("guard", GUARDS, ids=[guard.what for guard in GUARDS])
def test_a_guards_text_is_there_once_and_is_missed_when_it_is_gone(guard: Guard) -> None:
    for edit in guard.edits:
        source = (ROOT / edit.file).read_text()
        assert source.count(edit.text) == 1, (edit.file, edit.text)
        if len(guard.edits) == 1:  # of several in one file, each alone may not parse
            ast.parse(source.replace(edit.text, edit.without))
        assert edit.text != edit.without


def test_the_tests_that_catch_exist() -> None:
    wanted = {test for guard in GUARDS for test in guard.caught_by}
    known = set()
    for file in {test.partition("::")[0] for test in wanted}:
        tree = ast.parse((ROOT / file).read_text())
        known |= {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert wanted <= known


def test_every_invariant_has_a_guard_and_no_guard_is_named_twice() -> None:
    assert {guard.invariant for guard in GUARDS} == INVARIANTS
    assert [what for what, count in Counter(g.what for g in GUARDS).items() if count > 1] == []


def test_the_documentation_has_the_table() -> None:
    assert table() in (ROOT / "docs" / "reliability.md").read_text(), (
        "put what `python -m tests.guards --table` prints into docs/reliability.md"
    )


def test_a_test_that_passes_without_its_guard_is_told() -> None:
    edit = Edit("file.py", "a", "b")
    guard = Guard("I1", "a guard", (edit,), ("tests/a.py::test_a", "tests/a.py::test_b"))
    failed = ["tests/a.py::test_a[sqlite-swapped]", "tests/a.py::test_a[postgresql]"]
    assert unnoticed(guard, failed) == ["tests/a.py::test_b passed"]
    assert unnoticed(guard, ["tests/a.py::test_b", failed[0]]) == [
        "tests/a.py::test_a passed on postgresql",
        "tests/a.py::test_b passed on sqlite",
        "tests/a.py::test_b passed on postgresql",
    ]
