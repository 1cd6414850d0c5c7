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


def audit(
    directory: Path, *options: str, answer: object = None, complaint: str = ""
) -> tuple[int, str]:
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
        [sys.executable, str(SCRIPT), str(directory), *options],
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("options", "expected"), [((), 0), (("--strict",), 1)])
def test_a_known_vulnerability_is_named_and_an_error_where_that_is_asked(
    tmp_path: Path, options: tuple[str, ...], expected: int
) -> None:
    answer = {"dependencies": [SOUND, LEAKY]}
    named = "audit: leaky 2.0: GHSA-1, fixed in 2.1\n"
    assert audit(tmp_path, *options, answer=answer) == (expected, named)
    assert audit(tmp_path, *options, answer=answer) == (expected, named)  # until it is gone


def test_what_was_found_sound_is_asked_again_once_something_is_installed(tmp_path: Path) -> None:
    assert audit(tmp_path, answer={"dependencies": [SOUND]}) == (0, "")
    assert audit(tmp_path, answer={"dependencies": [LEAKY]}) == (0, "")  # not asked again today
    (tmp_path / ".dev-stamp").touch()  # what `make dev` does
    assert "leaky" in audit(tmp_path, answer={"dependencies": [LEAKY]})[1]


@pytest.mark.parametrize(
    "complaint",
    [
        "requests.exceptions.ConnectionError: Failed to resolve 'api.osv.dev'",
        "ERROR:pip_audit._cli:Tip: your network may be blocking this service.",
        "pip_audit._service.interface.ServiceError: 503",
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ],
)
def test_where_no_answer_is_to_be_had_it_is_said_why(tmp_path: Path, complaint: str) -> None:
    told = f"audit: not done: {complaint}\n"
    assert audit(tmp_path, complaint=complaint) == (0, told)
    assert audit(tmp_path, "--strict", complaint=complaint) == (1, told)
    assert not (tmp_path / ".audited").exists()
