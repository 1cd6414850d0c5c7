"""The blocks of docs/extend.md, and the package that they make, installed in a directory."""

import re
import tomllib
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
TOY_SAMPLERS = ("toy_sampler", "toy_greedy")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (the file that the first line names, the text) of every block."""
    found = re.findall(rf"^```{language}\n# (\S+).*?\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [(file, text) for file, text in found]


def code_of(file: str) -> str:
    """Return what the page has for a file, its blocks joined."""
    parts = [text for name, text in blocks("python") if name == file]
    if not parts:
        raise LookupError(f"docs/extend.md has no block for {file}")
    return "\n\n".join(parts)


def install(directory: Path) -> Path:
    """Write the page's package into a directory as pip would: its files and its metadata."""
    package = directory / "toy_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for file, text in blocks("python"):
        if file.startswith("toy_package/"):
            with (directory / file).open("a") as out:
                out.write(text)
    project = tomllib.loads(blocks("toml")[0][1])["project"]
    info = directory / f"toy_package-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return directory
