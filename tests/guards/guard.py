"""What a guard is: a piece of source that keeps a promise, and the tests that miss it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Dialect = Literal["sqlite", "postgresql"]

ROOT = Path(__file__).resolve().parents[2]
BOTH: tuple[Dialect, ...] = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that occurs once in a file, and what stands there without the guard."""

    file: str
    text: str
    without: str

    def apply(self, root: Path) -> None:
        """Take the guard out of the copy of the source under `root`.

        Raises:
            ValueError: The text is not there, or more than once.
        """
        path = root / self.file
        source = path.read_text()
        found = source.count(self.text)
        if found != 1:
            raise ValueError(
                f"a guard's text must occur once in {self.file}, but occurs {found} times: "
                f"{self.text!r}; bring the table up to date"
            )
        path.write_text(source.replace(self.text, self.without))


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
