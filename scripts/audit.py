"""Ask the OSV database whether installed packages have known vulnerabilities; at most once a day.

Where the database cannot be reached it says so and passes: an audit must not stop work on a plane.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRESH_SECONDS = 24 * 3600.0
SOCKET_SECONDS = 3
MOST_SECONDS = 120.0
AUDIT = [
    sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json",
    "--local", "--skip-editable", "--progress-spinner", "off", "--timeout", str(SOCKET_SECONDS),
]  # fmt: skip
NETWORK_ERRORS = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError")


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
        return None, f"ReadTimeout: no answer within {MOST_SECONDS:g} s"
    complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return (json.loads(output.read_text()) if output.exists() else None), complaint


def main(environment: Path) -> int:
    """Audit the packages this Python has; return 1 for a finding, or if the audit itself fails."""
    stamp = environment / ".audited"
    if is_fresh(stamp, environment / ".stamp"):
        return 0
    with tempfile.TemporaryDirectory() as name:
        answer, complaint = run(Path(name) / "audit.json")
    if answer is not None:
        found = list(findings(answer))
        sys.stderr.writelines(f"audit: {line}\n" for line in found)
        if not found:
            stamp.touch()
        return 1 if found else 0
    name = complaint.partition(":")[0]
    if name.endswith(NETWORK_ERRORS):
        sys.stderr.write(f"audit: not done, the OSV database cannot be reached ({name})\n")
        return 0
    sys.stderr.write(f"audit: failed: {complaint}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else sys.prefix)))
