"""The source of a built-in network as one file, `network.py` in the model's bundle.

It is the code that trained the model, not another: the module that defines the network and those of
`workers.training.nets` that it imports, joined in the order in which they need each other.
"""

import ast
import functools
import inspect
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from workers.training.data import PreparedData
from workers.training.nets.networks import NETWORKS, Build, complete

Import = ast.Import | ast.ImportFrom

PACKAGE = "workers.training.nets."
PROJECT = ("workers", "tuner_service")

TITLE = '''"""The network of this model: the source that it was trained with.

    build(network={"type": …, …}, inputs=shape of a row, outputs=number)

It needs torch and NumPy.
"""'''


def built_in(network: Mapping[str, Any], data: PreparedData) -> dict[str, Any]:
    """Return what rebuilds a built-in network: its options, source and arguments."""
    network = complete(network)
    return {
        "network": network,
        "build": {"network": network, "inputs": data.shape, "outputs": data.outputs},
        "source": source_of(NETWORKS[str(network["type"])].build),
    }


@functools.cache
def source_of(network: Build) -> str:
    """Return the modules that a network's class is made of as one text, in which it is `build`.

    Raises:
        ValueError: One of them imports what cannot travel.
    """
    imports: list[Import] = []
    bodies = []
    for name in _needed(network.__module__):
        text = _text(name)
        tree = ast.parse(text)
        nodes = [node for node in tree.body if isinstance(node, Import)]
        imports += [node for node in nodes if not _is_ours(node)]
        notation = textwrap.indent(ast.get_docstring(tree) or "", "# ", lambda line: True)
        rest = text.splitlines()[nodes[-1].end_lineno :]
        bodies.append("\n".join([*map(str.rstrip, notation.splitlines()), *rest]))
    return "\n\n\n".join([TITLE, _merged(imports), *bodies, f"build = {network.__name__}\n"])


def _merged(imports: list[Import]) -> str:
    """Return the lines of imports, each name once."""
    names: dict[str, set[str]] = defaultdict(set)
    for node in imports:
        place = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
        names[place] |= {ast.unparse(alias) for alias in node.names}
    return "\n".join(f"{place}import {', '.join(sorted(names[place]))}" for place in sorted(names))


def _needed(module: str) -> list[str]:
    """Return a module after all those of the package that it imports, each once."""
    found: dict[str, None] = {}
    for node in ast.parse(_text(module)).body:
        if not isinstance(node, Import) or not _is_ours(node):
            continue
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(PACKAGE):
            raise ValueError(
                f"{module} travels with its models, so that it cannot {ast.unparse(node)}"
            )
        found.update(dict.fromkeys(_needed(str(node.module))))
    return [*found, module]


def _text(module: str) -> str:
    return inspect.getsource(sys.modules[module])


def _is_ours(node: Import) -> bool:
    names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
    return any(str(name).partition(".")[0] in PROJECT for name in names)
