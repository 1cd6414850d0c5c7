"""The audit of dependencies, with a stand-in for pip-audit: what it answers decides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "audit.py"
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
LEAKY = {"name": "leaky", "version": "2.0", "vulns": [{"id": "GHSA-1", "fix_versions": ["2.1"]}]}
UNREACHABLE = "requests.exceptions.ConnectionError: Failed to resolve 'api.osv.dev'"


def audit(directory: Path, *, answer: object = None, complaint: str = "") -> tuple[int, str]:
    """Run the script with a pip-audit that writes `answer`, or complains."""
    directory.mkdir(exist_ok=True)
    (directory / "pip_audit.py").write_text(
        "import pathlib, sys\n"
        f"if {answer is not None}:\n"
        "    output = pathlib.Path(sys.argv[sys.argv.index('--output') + 1])\n"
        f"    output.write_text({json.dumps(answer)!r})\n"
        f"sys.exit({complaint!r} or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory)],
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


def test_a_known_vulnerability_fails_the_check_and_is_named(tmp_path: Path) -> None:
    code, said = audit(tmp_path, answer={"dependencies": [SOUND, LEAKY]})
    assert code == 1
    assert said == "audit: leaky 2.0: GHSA-1, fixed in 2.1\n"
    assert audit(tmp_path, answer={"dependencies": [LEAKY]})[0] == 1  # until it is gone


def test_what_was_found_sound_is_asked_again_once_something_is_installed(tmp_path: Path) -> None:
    assert audit(tmp_path, answer={"dependencies": [SOUND]}) == (0, "")
    assert audit(tmp_path, answer={"dependencies": [LEAKY]}) == (0, "")  # not asked again today
    (tmp_path / ".stamp").touch()  # what `make setup` does
    assert audit(tmp_path, answer={"dependencies": [LEAKY]})[0] == 1


@pytest.mark.parametrize(
    ("complaint", "code", "words"),
    [
        (UNREACHABLE, 0, "not done, the OSV database cannot be reached"),
        ("ValueError: a change in pip-audit", 1, "failed: ValueError: a change in pip-audit"),
    ],
)
def test_only_an_unreachable_database_is_let_pass_and_said(
    tmp_path: Path, complaint: str, code: int, words: str
) -> None:
    found, said = audit(tmp_path, complaint=complaint)
    assert found == code
    assert words in said
    assert not (tmp_path / ".audited").exists()
