"""When a key is needed, and what the key of the settings opens."""

from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import insert
from starlette.testclient import TestClient

from tests.integration.api.test_api import definition
from tuner_service.access.keys import create_key, hash_of, list_keys, revoke_key
from tuner_service.api import key_rule
from tuner_service.api.app import create_app
from tuner_service.api.http import rates
from tuner_service.api.key_rule import FORWARDING
from tuner_service.api.server import prepare
from tuner_service.errors import SettingsError
from tuner_service.settings import Settings
from tuner_service.storage import Database
from tuner_service.storage.schema import api_keys


def with_key(settings: Settings, secret: str, **more: Any) -> Settings:
    """Return the settings of a process that has this TUNER_API_KEY."""
    return settings.model_copy(update={"api_key": SecretStr(secret), **more})


def test_binding_off_loopback_needs_a_key(settings: Settings) -> None:
    open_settings = settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(SettingsError, match="needs an API key, since others can reach"):
        prepare(open_settings)
    with pytest.raises(SettingsError, match="at least 16 characters, but has 3"):
        prepare(with_key(open_settings, "abc"))
    with pytest.raises(SettingsError, match="REQUIRE_KEYS=false is for loopback only"):
        prepare(with_key(open_settings, "k" * 32, require_keys=False))
    prepare(with_key(open_settings, "k" * 32))
    with pytest.raises(SettingsError, match="needs an API key"):
        prepare(open_settings)  # that key was good for its process only


@pytest.mark.parametrize(
    "more",
    [
        {"api_key": SecretStr("k" * 32)},
        {"allowed_hosts": ("tuner.example",)},
        {"require_keys": True},
    ],
)
def test_whoever_sets_up_keys_or_a_proxy_is_asked_for_a_key_on_loopback_too(
    settings: Settings, more: dict[str, Any]
) -> None:
    db = Database.open(settings.resolved_database_url)
    secret = create_key(db, "one")[1]
    db.close()
    app = create_app(settings.model_copy(update=more))
    with TestClient(app, base_url="http://localhost") as client:
        refused = client.get("/v1/studies")
        assert refused.status_code == 401
        assert f"since TUNER_{next(iter(more)).upper()} is set" in refused.json()["detail"]
        assert client.get("/dashboard").status_code == 401
        assert client.get("/v1/studies", headers={"X-API-Key": secret}).status_code == 200


@pytest.mark.parametrize("header", FORWARDING)
def test_what_a_proxy_passes_on_needs_a_key(settings: Settings, header: str) -> None:
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/studies").status_code == 200
        for path in ("/v1/studies", "/docs", "/metrics"):
            refused = client.get(path, headers={header: "192.0.2.1"})
            assert refused.status_code == 401
            assert f"came through a proxy ({header})" in refused.json()["detail"]
        assert client.get("/healthz", headers={header: "192.0.2.1"}).status_code == 200


def test_the_first_key_closes_loopback_and_its_end_does_not_open_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_rule, "RECHECK_SECONDS", 0.0)
    db = Database.open(settings.resolved_database_url)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.get("/v1/studies").status_code == 200
        key_id, secret = create_key(db, "first")
        assert "has API keys" in client.get("/v1/studies").json()["detail"]
        assert client.get("/v1/studies", headers={"X-API-Key": secret}).status_code == 200
        revoke_key(db, key_id)
        assert client.get("/v1/studies").status_code == 401
        assert client.get("/dashboard").status_code == 401
    opened = create_app(settings.model_copy(update={"require_keys": False}))
    with TestClient(opened, base_url="http://localhost") as client:
        assert client.get("/v1/studies").status_code == 200
        assert client.get("/v1/studies", headers={"Via": "1.1 proxy"}).status_code == 200
    db.close()


def test_the_key_of_the_settings_is_good_where_it_is_set_and_only_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "WRONG_KEYS_PER_SECOND", 1e-3)  # however slow this machine is
    secret = "chosen-by-a-person"
    key = {"X-API-Key": secret}
    db = Database.open(settings.resolved_database_url)
    with TestClient(create_app(with_key(settings, secret)), base_url="http://localhost") as client:
        assert client.post("/v1/studies", json=definition(), headers=key).status_code == 202
        for _ in range(21):
            client.get("/v1/studies", headers={"X-API-Key": "guess"})
        assert client.get("/v1/studies", headers=key).status_code == 200
    assert list_keys(db) == []
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.get("/v1/studies", headers=key).status_code == 401
    db.close()


def test_the_key_of_the_settings_may_be_a_stored_one(settings: Settings) -> None:
    """As where clients and the server read the same variable; what is stored of it holds."""
    db = Database.open(settings.resolved_database_url)
    key_id, secret = create_key(db, "reader", ["read"])
    key = {"X-API-Key": secret}
    prepare(with_key(settings, secret))
    with TestClient(create_app(with_key(settings, secret)), base_url="http://localhost") as client:
        assert client.get("/v1/studies", headers=key).status_code == 200
        assert client.post("/v1/studies", json=definition(), headers=key).status_code == 403
        revoke_key(db, key_id)
        assert client.get("/v1/studies", headers=key).status_code == 401
    db.close()


def test_a_settings_key_that_was_stored_opens_no_more(settings: Settings) -> None:
    db = Database.open(settings.resolved_database_url)
    stored = {"id": "settings", "name": "TUNER_API_KEY", "hash": hash_of("k" * 32)}
    with db.write() as connection:
        connection.execute(insert(api_keys).values(**stored, scopes=["read"], created_at=0.0))
    prepare(settings)
    assert list_keys(db) == []
    db.close()


def test_a_key_that_reads_may_validate_and_the_log_names_it(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    db = Database.open(settings.resolved_database_url)
    key_id, secret = create_key(db, "reader", ["read"])
    db.close()
    caplog.set_level("INFO")
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        key = {"X-API-Key": secret}
        answer = client.post("/v1/studies/validate", json=definition(), headers=key)
        assert answer.status_code == 200
        assert client.post("/v1/studies", json=definition(), headers=key).status_code == 403
    lines = [line for line in caplog.messages if line.startswith("POST")]
    assert [f"key={key_id}" in line for line in lines] == [True, True]
    assert secret not in caplog.text


def test_the_log_of_requests_names_the_key_of_a_dashboard_read(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    db = Database.open(settings.resolved_database_url)
    key_id, secret = create_key(db, "one")
    db.close()
    app = create_app(settings.model_copy(update={"require_keys": True}))
    with TestClient(app, base_url="http://localhost") as client, caplog.at_level("INFO"):
        assert client.get("/dashboard", auth=("any", secret)).status_code == 200
    (line,) = [one for one in caplog.messages if one.startswith("GET /dashboard 200")]
    assert f"key={key_id}" in line
