"""The wheel holds every file that the packages need, and its light installation works.

The image is built from it. It is installed here without a network: the distributions that the base
requirements name are taken, and only those, from the environment in which this test runs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
PLACES = {
    "tuner_service": "tuner_service",
    "workers": "tuner_service/bundled/workers",
    "migrations": "tuner_service/migrations",
}
BUILD = "import sys; from hatchling import build; build.build_wheel(sys.argv[1])"
HEAVY = ("torch", "sqlalchemy", "celery", "optuna", "pandas", "numpy", "fastapi", "psutil")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    for name in PLACES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(source / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (built,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_tracked_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of files to compare with")
    tracked = [name for name in listed.stdout.split() if (ROOT / name).exists()]
    folders = {name: name.partition("/") for name in tracked}
    wanted = {f"{PLACES[top]}/{rest}" for top, _, rest in folders.values()}
    assert "tuner_service/migrations/alembic.ini" in wanted
    assert "tuner_service/bundled/workers/py.typed" in wanted
    missing = wanted - set(wheel.namelist())
    assert not missing


def test_the_wheel_has_one_name_of_its_own_in_site_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tuner_service"}


def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "tuner = tuner_service.cli:main" in wheel.read(entry_points).decode()


def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    """Return what the wheel requires, with and without extras."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = metadata.PathDistribution(zipfile.Path(wheel, f"{name.rpartition('/')[0]}/")).requires
    return [Requirement(line) for line in lines or ()]


def closure(wanted: list[Requirement], extra: str = "") -> Iterator[metadata.Distribution]:
    """Yield the distributions that requirements name, and those that these name in turn."""
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        distribution = metadata.distribution(one.name)
        yield distribution
        inner = [Requirement(line) for line in distribution.requires or ()]
        for name in one.extras or {""}:
            yield from closure(inner, name)


@pytest.fixture(scope="module")
def light(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what its base requirements name."""
    home = tmp_path_factory.mktemp("light")
    venv.create(home, with_pip=False)
    (packages,) = (home / "lib").glob("python*/site-packages")
    wheel.extractall(packages)
    for distribution in {one.name: one for one in closure(requirements(wheel))}.values():
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(distribution.locate_file(file)), packages / file)
    return home


def run(light: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the light installation's Python, away from the checkout."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TUNER_") and name != "PYTHONPATH"
    }
    return subprocess.run(
        [str(light / "bin" / "python"), *arguments],
        cwd=light, env=kept, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def tuner(light: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(light, "-m", "tuner_service.cli", *arguments)


@pytest.mark.parametrize("name", HEAVY)
def test_the_light_installation_is_light(light: Path, name: str) -> None:
    assert run(light, "-c", f"import {name}").returncode == 1


def test_the_light_installation_has_the_client(light: Path) -> None:
    done = run(light, "-c", "from tuner_service.client import TunerClient; print(TunerClient('x'))")
    assert (done.stdout, done.stderr) == ("TunerClient('x')\n", "")


def test_the_light_installation_has_the_command_line(light: Path) -> None:
    assert re.fullmatch(r"tuner \d+\.\d+\.\d+\n", tuner(light, "--version").stdout)
    assert "--install-completion" in tuner(light, "--help").stdout
    study = ROOT / "examples" / "digits-tpe.yaml"
    done = tuner(light, "validate", str(study), "--url", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (0, f"{study} is a valid study: 50 trials.\n")
    assert "no tuner service at" in tuner(light, "list", "--url", "http://127.0.0.1:9").stderr


@pytest.mark.parametrize(
    ("command", "extra", "one"),
    [
        (["up"], "all", "torch"),
        (["serve"], "server", "fastapi"),
        (["worker"], "worker", "torch"),
        (["migrate"], "storage", "alembic"),
        (["keys", "list"], "storage", "sqlalchemy"),
        (["data", "fetch", "mnist"], "storage", "numpy"),
        (["validate", "--run", str(ROOT / "examples" / "digits-tpe.yaml")], "worker", "torch"),
    ],
)
def test_what_needs_an_extra_says_which(
    light: Path, command: list[str], extra: str, one: str
) -> None:
    done = tuner(light, *command)
    assert done.returncode == 1
    assert "is not installed here" in done.stderr
    assert one in done.stderr
    assert done.stderr.endswith(f": pip install 'tuner-service[{extra}]'\n")


def test_the_doctor_of_a_light_installation_names_what_is_missing(light: Path) -> None:
    done = tuner(light, "doctor", "--json", "--port", "0", "--data-dir", str(light / "data"))
    states = {one["name"]: one["state"] for one in json.loads(done.stdout)}
    absent = {name for name, state in states.items() if state == "absent"}
    assert absent == {"server", "worker", "torch", "database", "broker", "trial"}
    assert done.returncode == 0, "the client alone is a sound installation"
    assert not (light / "data").exists()


def test_an_extra_has_what_its_part_needs_and_no_more(wheel: zipfile.ZipFile) -> None:
    named: dict[str, set[str]] = {extra: set() for extra in ("storage", "server", "worker", "all")}
    for one in requirements(wheel):
        for extra, names in named.items():
            if one.marker is not None and one.marker.evaluate({"extra": extra}):
                names.add(one.name)
    server, worker = named["server"], named["worker"]
    assert server & worker == named["storage"]
    assert server | worker == named["all"]
    assert "torch" in worker - server
    assert "fastapi" in server - worker


def test_workers_run_beside_a_stranger_of_the_same_name(light: Path) -> None:
    """Another distribution's `workers` neither hides ours from workers nor is hidden by it."""
    (packages,) = (light / "lib").glob("python*/site-packages")
    stranger = packages / "workers"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("")
    try:
        ask = "import workers; print(workers.__file__)"
        assert run(light, "-c", ask).stdout.strip() == str(stranger / "__init__.py")
        in_a_worker = (
            "import subprocess, sys, os; from tuner_service.layout import worker_environment as e;"
            f"subprocess.run([sys.executable, '-P', '-c', {ask!r}], env=e(os.environ))"
        )
        ours = packages / "tuner_service" / "bundled" / "workers" / "__init__.py"
        assert run(light, "-c", in_a_worker).stdout.strip() == str(ours)
    finally:
        shutil.rmtree(stranger)
