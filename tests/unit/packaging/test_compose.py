"""docker-compose.yml: valid by the compose schema, safe, and made of commands that exist.

Docker itself is not needed; what the containers run is run without it by the end-to-end tests.
"""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from tuner_service.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
OURS = ("migrate", "api", "worker", "worker-gpu")
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def compose(text: str) -> Any:
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def services(compose: Any) -> Any:
    return compose["services"]


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Fill in `${NAME:-default}` and `${NAME:?message}` as compose does."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    return VARIABLE.sub(value, text)


def compose_schema() -> Any:
    schema = get_builtin_schema("vendor.compose-spec")
    return jsonschema.validators.validator_for(schema)(schema)


def test_the_file_is_valid_by_the_compose_schema(text: str) -> None:
    filled = yaml.safe_load(interpolate(text, {"TUNER_API_KEY": "secret"}))
    compose_schema().validate(filled)


def test_the_schema_would_find_a_mistake(compose: Any) -> None:
    broken = json.loads(json.dumps(compose))
    broken["services"]["api"]["depend_on"] = {}
    assert not compose_schema().is_valid(broken)


def test_the_api_key_is_refused_when_missing_and_only_the_api_has_it(
    text: str, services: Any
) -> None:
    with pytest.raises(KeyError, match="TUNER_API_KEY"):
        interpolate(text, {})
    with_key = {name for name in OURS if "TUNER_API_KEY" in services[name]["environment"]}
    assert with_key == {"api"}


def test_only_the_api_is_published_and_on_loopback(services: Any) -> None:
    published = {name: one["ports"] for name, one in services.items() if "ports" in one}
    assert published == {"api": ["${TUNER_PUBLISH:-127.0.0.1:8000}:8000"]}


@pytest.mark.parametrize("name", ["postgres", "redis", *OURS])
def test_nothing_runs_as_root_or_gains_privileges(services: Any, name: str) -> None:
    service = services[name]
    assert service["user"] not in ("root", "0", 0)
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", ["postgres", "redis", "api", "worker", "worker-gpu"])
def test_what_runs_on_has_a_health_check(services: Any, name: str) -> None:
    assert services[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", ["api", "worker", "worker-gpu"])
def test_services_wait_for_healthy_servers_and_the_migration(services: Any, name: str) -> None:
    conditions = {to: need["condition"] for to, need in services[name]["depends_on"].items()}
    assert conditions == {
        "postgres": "service_healthy",
        "redis": "service_healthy",
        "migrate": "service_completed_successfully",
    }


def test_the_migration_runs_once(services: Any) -> None:
    assert services["migrate"]["restart"] == "no"


def test_volumes_and_networks_are_declared(compose: Any) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            assert interpolate(mount, {}).split(":")[0] in compose["volumes"]
        assert set(service["networks"]) <= set(compose["networks"])
    assert compose["networks"]["backend"]["internal"] is True


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_workers_read_modules_where_they_are_mounted_and_cannot_change_them(
    services: Any, name: str
) -> None:
    folder = services[name]["environment"]["TUNER_MODULES_DIR"]
    mounts = [
        interpolate(one, {"TUNER_MODULES_DIR": "./mine"}) for one in services[name]["volumes"]
    ]
    assert f"./mine:{folder}:ro" in mounts
    assert "files:/data" in mounts


def test_the_api_answers_to_the_hosts_that_are_named(services: Any) -> None:
    hosts = services["api"]["environment"]["TUNER_ALLOWED_HOSTS"]
    named = interpolate(hosts, {"TUNER_ALLOWED_HOSTS": "tuner.example"})
    for text, expected in ((named, ("tuner.example",)), (interpolate(hosts, {}), ())):
        assert Settings(allowed_hosts=text).allowed_hosts == expected  # type: ignore[arg-type]


def test_the_profile_gpu_reserves_a_device(services: Any) -> None:
    gpu = services["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert all("profiles" not in one for name, one in services.items() if name != "worker-gpu")


def test_health_checks_run_modules_that_exist(services: Any) -> None:
    for name in ("worker", "worker-gpu"):
        command = services[name]["healthcheck"]["test"]
        assert command[:3] == ["CMD", "python", "-m"]
        assert importlib.util.find_spec(command[3]) is not None
    code = services["api"]["healthcheck"]["test"][-1]
    compile(code, "healthcheck", "exec")


def test_the_image_finds_the_workers_where_its_wheel_has_them() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)-", text, re.MULTILINE))
    (path,) = re.findall(r"^ENV PYTHONPATH=(.+)$", text, re.MULTILINE)
    packages = f"/opt/tuner/lib/python{version}/site-packages"
    (place,) = (
        Path(target).parent
        for folder, target in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"][
            "build"
        ]["targets"]["wheel"]["force-include"].items()
        if folder == "workers"
    )
    assert path == f"{packages}/{place}"


def test_the_image_is_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["tuner"]
    assert any("useradd --uid 10001 --create-home tuner" in line for line in lines)


def test_the_image_holds_what_the_build_copies() -> None:
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name in " ".join(copied).split():
        assert name in allowed
        assert (ROOT / name).exists()
