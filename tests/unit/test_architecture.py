"""The source is as docs/architecture.md says: known words, no circles, no crowded folder."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tuner_service.definition.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
PACKAGES = ("tuner_service", "workers")
FILES = [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]
MESSAGES = {Path("workers/protocol/messages.py"), Path("workers/protocol/user_loop.py")}
MOST_MODULES = 24  # of a folder: more are not overlooked

# What a class may be without standing in the table of words: plain English, or the field's own.
# The nouns of docs/architecture.md's table come on top. A new word belongs into one of the two.
ORDINARY = frozenset(
    """
    activation address among answer area auth average
    background backoff binding block bucket budget buffer busy
    cache caller cell change channel check chosen chunk claimed client cnn code codec collection
    column command comparison compile compiled condition connection constraint content context copy
    count coverage curve
    dashboard data database dataset date deadline decision definition description device dimension
    directory domain dropout
    eager edge encoder engine entry epoch error event example
    factory fail failure fault feature feed file finding finish flushed fold folder formatter found
    fusing
    gauge gradient graph guard
    handle header health history holder host hyper
    image importance input installed interval item
    job
    keeper key kind
    layout library limit line loader log loss
    mean member memory message method metric mlp model more
    name network node norm number
    optimizer option order outage
    page part patch path patience phase place plan point policy pool port position precompiler
    prepared problem process profile progress proposal protocol public
    queue
    range rate read reader readiness receiver reconciled record recurrent registry report request
    resnet resource response restarter result retry ringer round row rule
    scale scaling schedule score scorer search section seed selector sequence server service set
    setting shape side size source space span spec speed split stack stamp start state status
    stopping store stream struct summary sync
    table template tensor test text thread threshold time total tpe traced training transaction
    transformer transport tree
    unwatched update upload user
    verifier version view
    waiter watchable weight whole work writer
    """.split()  # noqa: SIM905 - a list of words reads as text
)


def classes() -> Iterator[tuple[str, str]]:
    """Yield the file and the name of each class that other modules may name.

    A message is named by what is to be done or has happened (`Stop`, `Stopped`), which is no noun.
    """
    for file in FILES:
        if file.relative_to(ROOT) in MESSAGES:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield str(file.relative_to(ROOT)), node.name


def noun(name: str) -> str:
    """Return the word that says what a class is: the last one, without a plural's s."""
    word = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z0-9]+", name)[-1].lower()
    return re.sub(r"(?<=[^su])s$", "", re.sub("ies$", "y", word))


def table() -> set[str]:
    """Return the words that the documentation explains."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.partition("## Words")[2].partition("## Layers")[0].splitlines()
    heads = (row.split("|")[1] for row in rows if row.startswith("| "))
    return {word for head in heads for word in map(noun, re.findall(r"[a-z]+", head))}


def test_every_noun_is_in_the_table_of_words_or_needs_no_explanation() -> None:
    # The catalogue describes what is in it: `Lion` needs no other explanation.
    entries = {name.replace("_", "") for kind in CATALOGUE.values() for name in kind}
    known = ORDINARY | table() | entries
    coined = {(file, name) for file, name in classes() if noun(name) not in known}
    assert coined == set(), "explain the word in docs/architecture.md, or choose the field's own"


def modules() -> dict[str, Path]:
    """Return all modules by their dotted name; a package is its `__init__`."""
    names = {}
    for file in FILES:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """Return the modules of ours that a module imports, at its top, in a function or for types."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{name.name}" for name in node.names} & known
            found |= below or {node.module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {n.value for n in node.args if isinstance(n, ast.Constant)}
    return found & known


def test_nothing_imports_in_a_circle() -> None:
    known = modules()
    graph = {
        name: imported(ast.parse(file.read_text(encoding="utf-8")), set(known))
        for name, file in known.items()
    }
    assert sum(map(len, graph.values())) > 500
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_folder_is_crowded() -> None:
    folders = {file.parent for file in FILES}
    counts = {
        str(folder.relative_to(ROOT)): len([f for f in folder.glob("*.py") if f.stem != "__init__"])
        for folder in folders
    }
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}
