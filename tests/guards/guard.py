"""What a guard is: a piece of source that keeps a promise, and the tests that miss it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.guards.mutation import Mutation, marks, mutated

Dialect = Literal["sqlite", "postgresql"]

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("tuner_service", "workers")
BOTH: tuple[Dialect, ...] = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Edit:
    """A mark in the source, `# guard: name`, and what takes the marked piece out."""

    mark: str
    mutation: Mutation

    def apply(self, root: Path) -> None:
        """Take the guard out of the copy of the source under `root`.

        Raises:
            ValueError: The mark is not there once, or the mutation does not fit the marked line.
        """
        found = [file for file in files(root) if self.mark in marks(file.read_text())]
        if len(found) != 1:
            raise ValueError(
                f"the mark `# guard: {self.mark}` must stand once in the source, but stands in "
                f"{len(found)} files"
            )
        found[0].write_text(mutated(found[0].read_text(), self.mark, self.mutation))


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard of one invariant.

    Attributes:
        edits: What takes it out; several where one stands behind the other.
        caught_by: Node ids without parameters; each of them must fail without the guard.
        on: The databases on which they must; empty for tests that know no database.
    """

    invariant: str
    what: str
    edits: tuple[Edit, ...]
    caught_by: tuple[str, ...]
    on: tuple[Dialect, ...] = BOTH

    @property
    def names(self) -> list[str]:
        """The tests' names without their files."""
        return [test.rpartition("::")[2] for test in self.caught_by]


def files(root: Path) -> list[Path]:
    """Return the product's source files."""
    return [file for package in PRODUCT for file in sorted((root / package).rglob("*.py"))]
