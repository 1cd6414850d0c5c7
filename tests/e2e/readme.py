"""The README's blocks, and those of other pages, and where each may run.

The word after the language says what a block is: nothing, a command that ends; `service`, one that
runs on; `scaled`, one for PostgreSQL and Redis; `docker`, one that needs Docker; `not-here`, one
that no test can run; a file's name, what belongs into that file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def is_service(self) -> bool:
        """Whether the command runs on until it is stopped."""
        return "service" in self.marks

    @property
    def is_scaled(self) -> bool:
        """Whether it is for PostgreSQL and Redis."""
        return "scaled" in self.marks

    @property
    def needs_docker(self) -> bool:
        """Whether it needs Docker."""
        return "docker" in self.marks

    @property
    def cannot_run_here(self) -> bool:
        """Whether no test can run it."""
        return bool(self.marks) and self.marks[0].startswith("not-here")


def blocks(page: str = "README.md") -> list[Block]:
    """Return a page's blocks, in order."""
    found = FENCE.findall((ROOT / page).read_text())
    return [Block(language, tuple(marks.split()), text) for language, marks, text in found]
