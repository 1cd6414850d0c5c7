"""The README's commands do what it says: each block is run as a reader would run it.

They run in a directory that looks like a clone, one after another, in one shell's environment;
only the port and the servers' addresses are replaced by ones that are free.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.e2e.readme import ROOT, Block, blocks
from tests.e2e.service import until
from tests.servers import PostgresServer, RedisServer, free_port

pytestmark = pytest.mark.timeout(1200)

BIN = Path(sys.executable).parent
SHELL = [block for block in blocks() if block.language == "sh"]


@dataclass
class Reader:
    """Someone who follows the README in a clone of their own."""

    clone: Path
    replacements: dict[str, str]
    environment: dict[str, str]
    port: int
    services: list[psutil.Popen] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)

    def run(self, block: Block) -> str:
        """Run a block that ends and return what it printed."""
        text = self.adapted(block.text)
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", self.before + text],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        self.exports += [line for line in text.splitlines() if line.startswith("export ")]
        return done.stdout

    def start(self, block: Block) -> None:
        """Start a block that runs on."""
        log = self.clone / f"service-{len(self.services)}.log"
        with log.open("wb") as out:
            process = psutil.Popen(
                ["bash", "-c", self.before + "exec " + self.adapted(block.text).strip()],
                cwd=self.clone,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.services.append(process)

    def wait_until_ready(self) -> None:
        """Wait for the API and a worker."""

        def ready() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                url = f"http://127.0.0.1:{self.port}"
                key = self.environment.get("TUNER_API_KEY")
                headers = {} if key is None else {"X-API-Key": key}
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    answer = httpx2.get(f"{url}/v1/workers", headers=headers)
                    return bool(answer.raise_for_status().json()["items"])
            return False

        until(ready, seconds=180.0, what="the service of the README")

    def close(self) -> list[psutil.Process]:
        """Press Ctrl-C, and return what did not stop (it is killed)."""
        family = [
            process
            for service in self.services
            if service.is_running()
            for process in (service, *service.children(recursive=True))
        ]
        for service in self.services:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.pid, signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=40.0)
        for process in left:
            process.kill()
        return left

    @property
    def before(self) -> str:
        """What stands before a block: what earlier ones left in the shell."""
        return "\n".join(self.exports) + "\n"

    def adapted(self, text: str) -> str:
        """Put this run's addresses for the README's."""
        for old, new in self.replacements.items():
            text = text.replace(old, new)
        return text


def make_clone(directory: Path) -> Path:
    """Return a directory that looks like a clone with everything installed."""
    # Otherwise `make demo` would install the look-alike into the environment of these tests.
    current = subprocess.run(["make", "--question", "setup"], cwd=ROOT).returncode == 0
    if not current:
        pytest.fail("the installation is older than pyproject.toml: run `make setup` first")
    clone = directory / "clone"
    clone.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv"):
            (clone / path.name).symlink_to(path)
    (clone / ".venv").symlink_to(BIN.parent)
    return clone


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNER_")}
    port = free_port()
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **kept,
        "HOME": str(home),
        "PATH": f"{BIN}:{kept['PATH']}",
        "TUNER_PORT": str(port),
        "TUNER_URL": f"http://127.0.0.1:{port}",
    }
    environment.pop("XDG_DATA_HOME", None)
    reader = Reader(
        make_clone(tmp_path), {"127.0.0.1:8000": f"127.0.0.1:{port}"}, environment, port
    )
    yield reader
    left = reader.close()
    assert not left, f"still there after Ctrl-C: {left}"


def test_the_blocks_on_one_machine(reader: Reader) -> None:
    printed: dict[str, str] = {}
    for block in blocks():
        if block.language == "yaml":
            (reader.clone / block.marks[0]).write_text(block.text)
        if block.language == "python":
            printed["python"] = reader.run(Block("sh", (), f"python -c {shlex.quote(block.text)}"))
        if block.language != "sh" or block.is_scaled or block.needs_docker or block.cannot_run_here:
            continue
        if block.is_service:
            reader.start(block)
            reader.wait_until_ready()
        else:
            printed[block.text] = reader.run(block)
    output = {text.split("\n")[0]: out for text, out in printed.items()}
    assert "Best trial:" in output["make demo"]
    assert "50 trials" in output["make demo"]
    assert "learning_rate" in output["python"]
    plain = next(out for text, out in printed.items() if "optuna.load_study" in text)
    assert plain.rstrip().endswith(" 20")


def test_the_blocks_on_many_machines(
    reader: Reader, postgres: PostgresServer, redis_private: RedisServer, tmp_path: Path
) -> None:
    database = postgres.url(postgres.create_database())
    reader.replacements |= {
        "postgresql+psycopg://tuner:PASSWORD@DATABASE:5432/tuner": database,
        "redis://REDIS:6379/0": redis_private.url,
        "/srv/tuner": str(tmp_path / "files"),
    }
    for block in SHELL:
        if block.is_scaled and block.is_service:
            reader.start(block)
        elif block.is_scaled:
            printed = reader.run(block)
            if "keys create" in block.text:
                reader.environment["TUNER_API_KEY"] = printed.split()[0]
    reader.wait_until_ready()
    (study_file,) = (block for block in blocks() if block.language == "yaml")
    (reader.clone / "study.yaml").write_text(study_file.text)
    reader.run(Block("sh", (), "tuner submit study.yaml --watch"))


def test_only_docker_and_this_test_itself_are_left_out() -> None:
    left_out = [block.text for block in SHELL if block.needs_docker or block.cannot_run_here]
    assert left_out[0] == "make test\n"
    assert len(left_out) == 2
    assert all("docker compose" in line for line in left_out[1].splitlines()[1:])


def test_every_link_of_the_readme_leads_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    targets = {part.split(")")[0] for part in text.split("](")[1:]}
    missing = {t for t in targets if not t.startswith("http") and not (ROOT / t).exists()}
    assert not missing
