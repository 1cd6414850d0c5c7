"""The table of guards fits the source, the tests and the documentation."""

import ast
import builtins
from collections import Counter

import pytest

from tests.guards.guard import ROOT, Edit, Guard, files
from tests.guards.mutation import Become, Drop, Force, KeepFirst, Mutation, marks, mutated
from tests.guards.run import table, unnoticed
from tests.guards.table import GUARDS

INVARIANTS = {f"I{number}" for number in range(1, 10)}


EDITS = [edit for guard in GUARDS for edit in guard.edits]
MARKED = {mark: file for file in files(ROOT) for mark in marks(file.read_text())}


@pytest.mark.parametrize("edit", EDITS, ids=[f"{e.mark}-{e.mutation}" for e in EDITS])
def test_every_guard_can_be_taken_out(edit: Edit) -> None:
    source = MARKED[edit.mark].read_text()
    assert mutated(source, edit.mark, edit.mutation)
    if isinstance(edit.mutation, Become):  # else the tests would only notice a NameError
        known = {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
        assert _names(edit.mutation.expression) <= known | set(dir(builtins))


def test_every_mark_is_in_the_table_and_stands_in_one_file() -> None:
    assert set(MARKED) == {edit.mark for edit in EDITS}
    found = Counter(mark for file in files(ROOT) for mark in marks(file.read_text()))
    assert [mark for mark, count in found.items() if count > 1] == []


def _names(source: str) -> set[str]:
    """Return the names that a source uses, but for those that it only binds itself."""
    nodes = list(ast.walk(ast.parse(source)))
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return used - bound


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
    edit = Edit("a-mark", Drop())
    guard = Guard("I1", "a guard", (edit,), ("tests/a.py::test_a", "tests/a.py::test_b"))
    failed = ["tests/a.py::test_a[sqlite-swapped]", "tests/a.py::test_a[postgresql]"]
    assert unnoticed(guard, failed) == ["tests/a.py::test_b passed"]
    assert unnoticed(guard, ["tests/a.py::test_b", failed[0]]) == [
        "tests/a.py::test_a passed on postgresql",
        "tests/a.py::test_b passed on sqlite",
        "tests/a.py::test_b passed on postgresql",
    ]


MUTATIONS: list[tuple[str, Mutation, str]] = [
    ("x = 1  # guard: m", Drop(), "pass"),
    ("f(\n a,\n b,  # guard: m\n)", Drop(), "f(a)"),
    ("f(\n a,\n k=b,  # guard: m\n)", Drop(), "f(a)"),
    ("f(\n a,\n b == c,  # guard: m\n)", Become("False"), "f(a, False)"),
    ("x = (\n s(a)\n .t(b)\n .lock()  # guard: m\n)", Drop(), "x = s(a).t(b)"),
    ("x = (\n s(a)\n .t(b)  # guard: m\n .lock()\n)", Drop(), "x = s(a).lock()"),
    ("f(\n s()\n .lock()  # guard: m\n)", Drop(), "f(s())"),
    ("x = (\n a\n and b(c)  # guard: m\n or d\n)", Drop(), "x = a or d"),
    ("x = (\n a  # guard: m\n and b\n)", Drop(), "x = b"),
    ("if a or b:  # guard: m\n c()", Force(False), "if False:\n    c()"),
    ("if (\n a\n or b\n):  # guard: m\n c()", Force(True), "if True:\n    c()"),
    ("if a or b:  # guard: m\n c()", KeepFirst(), "if a:\n    c()"),
    ("x = [a for a in b if c]  # guard: m", Force(False), "x = [a for a in b if False]"),
    ("x = [a for a in b if c]  # guard: m", Become("()"), "x = ()"),
    ("x = [\n a\n for a in b  # guard: m\n]", Become("()"), "x = [a for a in ()]"),
    ("x = a if b else c  # guard: m", Force(True), "x = a if True else c"),
    ("f(\n k=a + 1,  # guard: m\n)", KeepFirst(), "f(k=a)"),
    ("f(\n k=(a, b),  # guard: m\n)", KeepFirst(), "f(k=(a,))"),
    ("x = {\n a: b,  # guard: m\n}", Become("c"), "x = {a: c}"),
    ("for a in b:  # guard: m\n c()", Become("()"), "for a in ():\n    c()"),
]


@pytest.mark.parametrize(("source", "mutation", "without"), MUTATIONS, ids=str)
def test_a_mutation_takes_out_what_is_marked(source: str, mutation: Mutation, without: str) -> None:
    assert mutated(f"{source}\nend()\n", "m", mutation) == f"{without}\nend()\n"


@pytest.mark.parametrize(
    ("source", "mutation"),
    [
        ("x = a  # guard: m", Force(True)),
        ("x = a  # guard: m", KeepFirst()),
        ("f(a, b)  # guard: other", Drop()),
        ("if True:  # guard: m\n c()", Force(True)),
    ],
    ids=str,
)
def test_a_mutation_that_does_not_fit_is_an_error(source: str, mutation: Mutation) -> None:
    with pytest.raises((ValueError, KeyError)):
        mutated(f"{source}\n", "m", mutation)
