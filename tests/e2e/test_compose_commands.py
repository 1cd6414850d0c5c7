"""What the containers of docker-compose.yml run, run by hand against private servers.

The commands, the environment and the health checks are the file's own; replaced are the servers'
addresses, the data directory and the port, and the address to listen on is loopback.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.e2e.service import until
from tests.servers import PostgresServer, RedisServer, free_port
from tests.unit.packaging.test_compose import ROOT, interpolate

pytestmark = pytest.mark.timeout(600)

KEY = "a-key-of-this-test-0123456789"
STUDY = """
name: composed
dataset: {name: iris}
network: {type: mlp, hidden_units: 8}
objective: {metric: val_accuracy}
parameters: {learning_rate: {type: float, low: 1e-3, high: 1e-1, log: true}}
sampler: {type: random, seed: 0}
training: {epochs: 2}
budget: {trials: 4}
"""


class Containers:
    """Runs the services of the compose file as processes."""

    def __init__(self, services: Any, replacements: dict[str, str], directory: Path) -> None:
        self.services = services
        self.replacements = replacements
        self.directory = directory
        self.running: dict[str, psutil.Popen] = {}

    def environment(self, name: str) -> dict[str, str]:
        """Return a service's environment, as compose would set it."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNER_")}
        own = {key: self.replaced(str(v)) for key, v in self.services[name]["environment"].items()}
        return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **own}

    def replaced(self, text: str) -> str:
        """Put this test's addresses for the network's."""
        for old, new in self.replacements.items():
            text = text.replace(old, new)
        return text

    def command(self, name: str) -> list[str]:
        """Return what a service runs; the image's entry point is `tuner`."""
        return ["tuner", *map(self.replaced, self.services[name]["command"])]

    def run(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a service's environment."""
        return subprocess.run(
            command,
            env=self.environment(name),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def up(self, name: str) -> None:
        """Start a service and wait for its health check."""
        with (self.directory / f"{name}.log").open("wb") as log:
            self.running[name] = psutil.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: self.is_healthy(name), seconds=180.0, what=f"the health of {name}")

    def is_healthy(self, name: str) -> bool:
        """Run a service's health check."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        if self.running[name].poll() is not None:
            raise RuntimeError((self.directory / f"{name}.log").read_text()[-3000:])
        return self.run(name, *map(self.replaced, test)).returncode == 0

    def down(self, name: str) -> int:
        """Stop a service as `docker stop` does, and return its exit code."""
        process = self.running.pop(name)
        family = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = int(process.wait(30.0))
        _, left = psutil.wait_procs(family, timeout=5.0)
        assert not left
        return code

    def kill(self) -> None:
        """End whatever is left."""
        for process in self.running.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [*process.children(recursive=True), process]:
                    one.kill()


@pytest.fixture
def containers(
    postgres: PostgresServer, redis_private: RedisServer, tmp_path: Path
) -> Iterator[Containers]:
    text = interpolate((ROOT / "docker-compose.yml").read_text(), {"TUNER_API_KEY": KEY})
    services = yaml.safe_load(text)["services"]
    modules = tmp_path / "modules"
    modules.mkdir()
    database = services["api"]["environment"]["TUNER_DATABASE_URL"]
    replacements = {
        database: postgres.url(postgres.create_database()),
        services["api"]["environment"]["TUNER_BROKER_URL"]: redis_private.url,
        "/data": str(tmp_path / "files"),
        "/modules": str(modules),
        "0.0.0.0": "127.0.0.1",  # nobody else shall reach it
        "8000": str(free_port()),
    }
    containers = Containers(services, replacements, tmp_path)
    yield containers
    containers.kill()


def test_the_containers_commands_run_a_study(containers: Containers, tmp_path: Path) -> None:
    migrated = containers.run("migrate", *containers.command("migrate"))
    assert migrated.returncode == 0, migrated.stderr
    containers.up("api")
    containers.up("worker")
    url = f"http://127.0.0.1:{containers.replacements['8000']}"
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    done = containers.run("api", "tuner", "submit", str(study), "--watch", "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = containers.run("api", "tuner", "list", "--url", url, "--api-key", "wrong")
    assert wrong.returncode != 0
    assert "key" in wrong.stderr
    assert containers.down("worker") == 0
    # uvicorn shuts down in order, and then ends by the signal it was sent.
    assert containers.down("api") in (0, -signal.SIGTERM)
