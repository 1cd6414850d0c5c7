"""Ask the OSV database whether installed packages have known vulnerabilities; at most once a day.

What is found is named. With `--strict` it is an error; without, as in `make check`, it is not: what
others publish tonight must not turn the tests of unchanged code red tomorrow. Where no answer is to
be had it says so, and why: an audit must not stop work on a plane.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRESH_SECONDS = 24 * 3600.0
SOCKET_SECONDS = 3
MOST_SECONDS = 20.0
AUDIT = [
    sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json",
    "--local", "--skip-editable", "--progress-spinner", "off", "--timeout", str(SOCKET_SECONDS),
]  # fmt: skip


def is_fresh(stamp: Path, installed: Path) -> bool:
    """Return whether the last audit passed within a day, and nothing was installed since."""
    if not stamp.exists():
        return False
    passed = stamp.stat().st_mtime
    since = installed.stat().st_mtime if installed.exists() else 0.0
    return time.time() - passed < FRESH_SECONDS and passed > since


def findings(answer: dict[str, Any]) -> Iterator[str]:
    """Return a line for each known vulnerability."""
    for package in answer["dependencies"]:
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            yield f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}"


def run(output: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the audit's answer, if it gave one, and the last line of its complaints."""
    try:
        done = subprocess.run(
            [*AUDIT, "--output", str(output)],
            check=False, capture_output=True, text=True, timeout=MOST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"no answer within {MOST_SECONDS:g} s"
    complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return (json.loads(output.read_text()) if output.exists() else None), complaint


def main(environment: Path, *, strict: bool) -> int:
    """Audit the packages this Python has; return 1 for a finding, or for no answer, if strict."""
    stamp = environment / ".audited"
    if is_fresh(stamp, environment / ".dev-stamp"):
        return 0
    with tempfile.TemporaryDirectory() as name:
        answer, complaint = run(Path(name) / "audit.json")
    if answer is None:
        sys.stderr.write(f"audit: not done: {textwrap.shorten(complaint, 110)}\n")
        return int(strict)
    found = list(findings(answer))
    sys.stderr.writelines(f"audit: {line}\n" for line in found)
    if not found:
        stamp.touch()
    return int(strict and bool(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, nargs="?", default=Path(sys.prefix))
    parser.add_argument(
        "--strict", action="store_true", help="a finding, or no answer, is an error"
    )
    options = parser.parse_args()
    sys.exit(main(options.environment, strict=options.strict))
