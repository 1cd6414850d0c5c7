"""Taking out a marked piece of source: found by a comment, changed as a syntax tree.

A guard is marked where it stands, `# guard: name` at the end of its line, so that renaming and
moving take the mark along. What is marked is the outermost piece of a kind that a mutation can
change and that ends on that line; a mutation that fits none is an error, never another edit.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

_MARK = re.compile(r"# guard: ([a-z0-9-]+(?:, [a-z0-9-]+)*)")
_BEFORE_ELEMENT = frozenset({"", "and", "or", "if", "("})
_LISTS = ("args", "keywords", "elts", "values", "ifs")

Place = tuple[ast.AST, str, int | None]  # a parent, its field, and where in a list


def marks(source: str) -> dict[str, int]:
    """Return the lines of all marks in a source.

    Raises:
        ValueError: A mark stands there twice.
    """
    found: dict[str, int] = {}
    if "# guard: " not in source:
        return found
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (match := _MARK.search(token.string)):
            for name in match[1].split(", "):
                if name in found:
                    raise ValueError(f"the mark `# guard: {name}` stands twice in one file")
                found[name] = token.start[0]
    return found


class Mutation:
    """A way to take a marked piece out."""

    def apply(self, marked: "Marked") -> None:
        """Change the tree.

        Raises:
            ValueError: There is no such piece on the marked line.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Drop(Mutation):
    """Leave out a statement, an operand, an argument, an element, or a call at a chain's end."""

    def apply(self, marked: "Marked") -> None:
        """Change the tree."""
        parent, field, at = marked.dropped()
        value = getattr(parent, field)
        if at is None:  # a chain: what the last method was called on stays
            setattr(parent, field, value.func.value)
        elif isinstance(value[at], ast.stmt):
            value[at] = ast.copy_location(ast.Pass(), value[at])
        elif isinstance(parent, ast.Call) and marked.is_chain(value[at]):
            value[at] = value[at].func.value
        elif isinstance(parent, ast.Dict):
            del parent.keys[at], parent.values[at]
        else:
            del value[at]


@dataclass(frozen=True, slots=True)
class Force(Mutation):
    """Make a condition, of a statement, an expression or a comprehension, always the same."""

    to: bool

    def apply(self, marked: "Marked") -> None:
        """Change the tree."""
        parent, field, at = marked.condition()
        constant = ast.Constant(self.to)
        if at is None:
            setattr(parent, field, constant)
        else:
            getattr(parent, field)[at] = constant


@dataclass(frozen=True, slots=True)
class KeepFirst(Mutation):
    """Leave of `a and b`, `a + b` or `(a, b)` only the first."""

    def apply(self, marked: "Marked") -> None:
        """Change the tree."""
        parent, field, at = marked.composed()
        node = getattr(parent, field) if at is None else getattr(parent, field)[at]
        if isinstance(node, ast.BoolOp):
            first = node.values[0]
        elif isinstance(node, ast.BinOp):
            first = node.left
        else:
            first = ast.Tuple(node.elts[:1], ast.Load())
        if at is None:
            setattr(parent, field, first)
        else:
            getattr(parent, field)[at] = first


@dataclass(frozen=True, slots=True)
class Become(Mutation):
    """Put another expression in the place of a value, what is iterated over, or an element."""

    expression: str

    def apply(self, marked: "Marked") -> None:
        """Change the tree."""
        parent, field, at = marked.value()
        new = ast.parse(self.expression, mode="eval").body
        if at is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[at] = new


def mutated(source: str, mark: str, mutation: Mutation) -> str:
    """Return a source without its guard, and without its comments.

    Raises:
        ValueError: The mark is not there, or the mutation does not fit the marked line.
    """
    marked = Marked(source, mark)
    mutation.apply(marked)
    text = ast.unparse(ast.fix_missing_locations(marked.tree))
    ast.parse(text)
    if text == ast.unparse(ast.parse(source)):
        raise ValueError(f"{mutation} changes nothing at `# guard: {mark}`")
    return text + "\n"


class Marked:
    """A source with one of its marks."""

    def __init__(self, source: str, mark: str) -> None:
        self.tree = ast.parse(source)
        self._mark = mark
        self._line = marks(source)[mark]
        self._lines = source.splitlines()

    def dropped(self) -> Place:
        """Return what is to go."""
        whole = [place for place in self._elements() if self._begins_line(self._node(place))]
        chains = [place for place in self._places() if self.is_chain(self._node(place))]
        mine = [place for place in whole if self._node(place).lineno == self._line]  # type: ignore[attr-defined]
        return self._outermost(mine or chains or whole)

    def condition(self) -> Place:
        """Return a condition that ends on the line."""
        found: list[Place] = []
        for node in ast.walk(self.tree):
            match node:
                case ast.If() | ast.While() if self._ends(node.test) or self._opens_body(node):
                    found.append((node, "test", None))
                case ast.IfExp() if self._ends(node.test) or self._ends(node):
                    found.append((node, "test", None))
                case ast.comprehension():
                    found += [(node, "ifs", i) for i, one in enumerate(node.ifs) if self._ends(one)]
        return self._outermost(found)

    def composed(self) -> Place:
        """Return something of several parts that ends on the line."""
        kinds = (ast.BoolOp, ast.BinOp, ast.Tuple)
        return self._outermost(
            [
                place
                for place in self._places()
                if isinstance(self._node(place), kinds) and self._ends(self._node(place))
            ]
        )

    def value(self) -> Place:
        """Return a value that ends on the line: assigned, passed, iterated over, or an element."""
        found: list[Place] = []
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Return, ast.keyword)):
                if node.value is not None and self._ends(node.value):
                    found.append((node, "value", None))
            elif isinstance(node, (ast.For, ast.comprehension)) and self._ends(node.iter):
                found.append((node, "iter", None))
            elif isinstance(node, ast.Dict):
                found += [(node, "values", i) for i, v in enumerate(node.values) if self._ends(v)]
        return self._outermost(found or list(self._elements()))

    def is_chain(self, node: ast.AST) -> bool:
        """Return whether this is a call whose last method stands on the line by itself."""
        return (
            isinstance(node, ast.Call)
            and self._ends(node)
            and isinstance(node.func, ast.Attribute)
            and (node.func.value.end_lineno or 0) < self._line
        )

    def _places(self) -> Iterator[Place]:
        for parent in ast.walk(self.tree):
            for field, value in ast.iter_fields(parent):
                if isinstance(value, ast.AST):
                    yield parent, field, None
                elif isinstance(value, list):
                    yield from ((parent, field, i) for i, v in enumerate(value) if v is not None)

    def _elements(self) -> Iterator[Place]:
        """Yield what ends on the line and can be left out of a list of such."""
        for place in self._places():
            node = self._node(place)
            of_list = place[1] in _LISTS and place[2] is not None
            if (of_list or isinstance(node, ast.stmt)) and self._ends(node):
                yield place

    def _node(self, place: Place) -> ast.AST:
        parent, field, at = place
        node: ast.AST = getattr(parent, field) if at is None else getattr(parent, field)[at]
        return node

    def _ends(self, node: ast.AST) -> bool:
        return getattr(node, "end_lineno", None) == self._line

    def _opens_body(self, node: ast.If | ast.While) -> bool:
        """Return whether the line is the one with the colon, behind a condition in brackets."""
        return (node.test.end_lineno or 0) < self._line < node.body[0].lineno

    def _begins_line(self, node: ast.AST) -> bool:
        before = self._lines[node.lineno - 1][: node.col_offset]  # type: ignore[attr-defined]
        return before.strip() in _BEFORE_ELEMENT

    def _outermost(self, places: list[Place]) -> Place:
        if not places:
            line = self._lines[self._line - 1].strip()
            raise ValueError(f"nothing there to mutate at `# guard: {self._mark}`: {line}")

        def size(place: Place) -> tuple[int, int]:
            node = self._node(place)
            return -node.lineno, -node.col_offset  # type: ignore[attr-defined]

        return max(places, key=size)
