"""The REST API on both databases, without workers."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from tests.disk import full, small_disk
from tests.integration.api.conftest import served
from tests.integration.lifecycle.hands import Hand
from tuner_service import dashboard
from tuner_service.access.keys import create_key, revoke_key
from tuner_service.api.app import create_app
from tuner_service.api.http import rates
from tuner_service.api.routes import events
from tuner_service.api.server import bind
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Finish, Report, Start
from tuner_service.settings import Settings
from tuner_service.storage import Database


def definition(**changes: Any) -> dict[str, Any]:
    """A small random study, changed."""
    base = {
        "name": "small",
        "dataset": {"name": "iris"},
        "network": {"type": "mlp"},
        "objective": {"metric": "val_accuracy"},
        "parameters": {"learning_rate": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}},
        "sampler": {"type": "random", "seed": 3},
        "training": {"epochs": 3},
        "budget": {"trials": 3},
    }
    return {**base, **changes}


def run_trials(settings: Settings, values: list[float]) -> None:
    """Claim and finish a slot per value, as a worker would."""
    db = Database.open(settings.resolved_database_url)
    for value in values:
        claimed = claim(db, worker_id="w", queue="cpu", limit=1, lease_seconds=30.0)
        (lease,) = claimed.leases

        def send(**parts: Any) -> Any:
            batch = Batch(**parts)
            return flush(db, worker_id="w", batch=batch, lease_seconds=30.0, settings=settings)

        start = Start(lease, lease.parameters or {})
        trial = send(starts=[start]).started[lease.key].trial_id
        record = {"step": 1, "val_accuracy": value}
        send(
            reports=[Report(lease, trial, 1, value, record)],
            finishes=[
                Finish(
                    lease, trial, "COMPLETE", (value,), {"test_accuracy": value, "seconds": 0.25}
                )
            ],
        )
    db.close()


def test_a_submitted_study_can_be_read_by_id_and_by_name(client: TestClient) -> None:
    answer = client.post("/v1/studies", json=definition())
    assert answer.status_code == 202
    study = answer.json()
    assert answer.headers["location"] == f"/v1/studies/{study['id']}"
    assert (study["state"], study["reason"]) == ("queued", "waiting for a worker")
    for ref in (study["id"], "small"):
        assert client.get(f"/v1/studies/{ref}").json()["id"] == study["id"]
    assert [s["id"] for s in client.get("/v1/studies").json()["items"]] == [study["id"]]


def test_trials_best_coverage_and_export(client: TestClient, settings: Settings) -> None:
    client.post("/v1/studies", json=definition())
    run_trials(settings, [0.5, 0.9, 0.7])
    study = client.get("/v1/studies/small").json()
    assert (study["state"], study["best_trial"]["value"]) == ("completed", 0.9)
    assert study["progress"]["done"] == 3
    page = client.get("/v1/studies/small/trials", params={"sort": "-value", "limit": 2}).json()
    assert [trial["value"] for trial in page["items"]] == [0.9, 0.7]
    more = {"sort": "-value", "limit": 2, "cursor": page["next_cursor"]}
    assert len(client.get("/v1/studies/small/trials", params=more).json()["items"]) == 1
    (best,) = client.get("/v1/studies/small/best").json()
    assert (best["number"], best["epochs"][0]["val_accuracy"]) == (1, 0.9)
    assert best["record"]["test_accuracy"] == 0.9
    assert client.get("/v1/studies/small/trials/2").json()["value"] == 0.7
    assert client.get("/v1/studies/small/coverage").json()["done"] == 3
    rows = client.get("/v1/studies/small/export", params={"format": "json"}).json()
    assert [row["value"] for row in rows] == [0.5, 0.9, 0.7]
    assert rows[0]["test_accuracy"] == 0.5
    assert rows[0]["seconds"] == client.get("/v1/studies/small/trials/0").json()["seconds"]
    assert rows[0]["record_seconds"] == 0.25
    text = client.get("/v1/studies/small/export").text
    assert "params_learning_rate" in text.splitlines()[0]
    assert len(text.splitlines()) == 4


def test_the_study_is_held_until_its_revision_changes(
    client: TestClient, settings: Settings
) -> None:
    study = client.post("/v1/studies", json=definition()).json()
    old = client.get(f"/v1/studies/{study['id']}", params={"wait": 0.2})
    assert old.json()["revision"] == study["revision"]
    unchanged = client.get("/v1/studies/small", headers={"If-None-Match": old.headers["etag"]})
    assert unchanged.status_code == 304
    run_trials(settings, [0.1])
    seen = client.get("/v1/studies/small", params={"wait": 30, "revision": study["revision"]})
    assert seen.json()["revision"] > study["revision"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b'{"a": NaN}', 400, "malformed_json"),
        (b'{"a": 1, "a": 2}', 400, "malformed_json"),
        (b"[" * 100, 400, "malformed_json"),
        (b'"\\u0000"', 400, "malformed_json"),
        (b"\xff", 400, "malformed_json"),
        (b"[]", 422, "invalid_definition"),
        (b"null", 422, "invalid_definition"),
        (b"{}", 422, "invalid_definition"),
        (b'"' + b"x" * 2_000_000 + b'"', 413, "limit"),
    ],
)
def test_a_bad_body_is_refused(client: TestClient, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/studies", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_fault_comes_with_its_pointer(client: TestClient) -> None:
    bad = definition(
        networ={}, parameters={"learning_rate": {"type": "float", "low": 1, "high": 0}}
    )
    answer = client.post("/v1/studies", json=bad)
    assert answer.status_code == 422
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert {"/networ", "/parameters/learning_rate/high"} <= pointers
    assert client.get("/v1/studies").json()["items"] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/studies/nope", 404),
        ("GET", "/v1/studies/small/trials/7", 404),
        ("GET", "/v1/studies/small/trials/x", 422),
        ("GET", "/v1/studies?limit=0", 422),
        ("GET", "/v1/studies?cursor=zzz", 422),
        ("GET", "/v1/studies/small/trials?state=waiting", 422),
        ("PUT", "/v1/studies", 405),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/studies/small", 409),
        ("POST", "/v1/studies/nope/cancel", 404),
    ],
)
def test_what_cannot_be_answered_is_a_problem(
    client: TestClient, method: str, path: str, status: int
) -> None:
    client.post("/v1/studies", json=definition())
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.parametrize("value", [b"Basic \xff", b"Bearer \xff", b"Basic OnA\xff="])
def test_a_key_that_is_no_text_opens_nothing(client: TestClient, value: bytes) -> None:
    answer = client.get("/v1/studies", headers={b"Authorization": value})
    assert answer.status_code == (200 if value.startswith(b"Basic") else 401)


def test_a_key_stands_for_the_points_as_they_were_sent(client: TestClient) -> None:
    def answer(point: float) -> int:
        body = definition(enqueue=[{"learning_rate": point}])
        body["parameters"]["learning_rate"] = {"type": "float", "low": 0.01, "high": 1}
        headers = {"Idempotency-Key": "points"}
        return client.post("/v1/studies", json=body, headers=headers).status_code

    assert [answer(1), answer(1), answer(1.0)] == [202, 202, 422]


def test_a_form_post_is_not_taken_for_json(client: TestClient) -> None:
    answer = client.post(
        "/v1/studies", content=json.dumps(definition()), headers={"Content-Type": "text/plain"}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_an_idempotency_key_gives_the_same_study(client: TestClient) -> None:
    headers = {"Idempotency-Key": "one"}
    first = client.post("/v1/studies", json=definition(), headers=headers).json()
    again = client.post("/v1/studies", json=definition(), headers=headers).json()
    assert first["id"] == again["id"]
    other = client.post("/v1/studies", json=definition(priority=3), headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_the_states_follow_the_table(client: TestClient) -> None:
    client.post("/v1/studies", json=definition())
    states = []
    for action in ("pause", "pause", "resume", "resume", "cancel", "cancel"):
        states.append(client.post(f"/v1/studies/small/{action}").json()["state"])
    assert states == ["paused", "paused", "running", "running", "cancelled", "cancelled"]
    assert client.post("/v1/studies/small/resume").status_code == 409
    assert client.patch("/v1/studies/small", json={"trials": 9}).status_code == 409
    assert client.patch("/v1/studies/small", json={"tags": {"a": "b"}}).json()["tags"] == {"a": "b"}
    assert client.delete("/v1/studies/small").status_code == 204
    assert client.get("/v1/studies/small").status_code == 404


def test_a_patch_names_what_is_wrong(client: TestClient) -> None:
    client.post("/v1/studies", json=definition())
    answer = client.patch("/v1/studies/small", json={"trials": "many", "nope": 1})
    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/trials", "/nope"}
    answer = client.patch("/v1/studies/small", json={"network": {"type": "cnn"}})
    assert "network cannot be changed; what can be changed is trials, " in answer.text
    assert client.patch("/v1/studies/small", json={"trials": 1}).status_code == 422
    raised = client.patch("/v1/studies/small", json={"trials": 5, "priority": 2}).json()
    assert (raised["progress"]["total"], raised["priority"]) == (5, 2)


def test_readiness_tells_what_is_missing(client: TestClient) -> None:
    checks = client.get("/readyz").json()["checks"]
    assert checks == dict.fromkeys(("database", "schema", "broker", "files"), "ok")
    assert client.get("/healthz").json()["status"] == "ok"
    assert "tuner_http_requests" in client.get("/metrics").text


def test_a_full_disk_is_told(client: TestClient, settings: Settings) -> None:
    with small_disk(settings.data_dir, megabytes=1) as disk:
        if disk is None:
            pytest.skip("no small disk to fill: that takes the right to mount")
        with full(disk):
            answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert "no space left" in answer.json()["checks"]["files"]
        assert client.get("/readyz").json()["checks"]["files"] == "ok"


def test_metrics_count_studies_and_what_is_to_be_run(client: TestClient) -> None:
    assert "tuner_studies{" not in client.get("/metrics").text
    for trials in (3, 4):
        client.post("/v1/studies", json=definition(budget={"trials": trials}))
    client.post("/v1/studies/small/cancel")
    told = client.get("/metrics").text
    for line in (
        'tuner_studies{state="queued"} 1.0',
        'tuner_studies{state="cancelled"} 1.0',
        'tuner_slots_open{state="queued"} 4.0',
        'tuner_slots_open{state="cancelled"} 0.0',
    ):
        assert line in told


def test_without_its_broker_the_service_is_degraded_and_not_away(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with bind("127.0.0.1", 0) as taken:
        url = f"redis://:secret@127.0.0.1:{taken.getsockname()[1]}/0"
    settings = settings.model_copy(update={"broker_url": SecretStr(url)})
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["checks"]["broker"] == "the broker cannot be reached"
    assert "Connection refused" in caplog.text
    assert "secret" not in caplog.text


def test_the_dashboard_is_read_only(client: TestClient) -> None:
    client.post("/v1/studies", json=definition())
    assert "Optuna Dashboard" in client.get("/dashboard").text
    assert client.get("/api/studies").json()["study_summaries"][0]["study_name"] == "small"
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/api/studies/1").status_code == 405
    assert len(client.get("/api/studies").json()["study_summaries"]) == 1


def test_a_study_too_large_for_the_dashboard_is_refused_at_its_door(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = client.post("/v1/studies", json=definition()).json()["id"]
    db = Database.open(settings.resolved_database_url)
    Hand(db).claim_and_start()
    db.close()
    (summary,) = client.get("/api/studies").json()["study_summaries"]
    number = summary["study_id"]
    assert client.get(f"/api/studies/{number}").status_code == 200
    monkeypatch.setattr(
        dashboard.Dashboard, "_too_large", lambda *_: (46_000, f"/v1/studies/{study}")
    )
    for path in (
        f"/api/studies/{number}",
        f"/api/studies/{number}/param_importances",
        f"/csv/{number}",
    ):
        answer = client.get(path)
        assert (answer.status_code, "46,000 trials" in answer.json()["reason"]) == (413, True)
    page = client.get(f"/dashboard/studies/{number}")
    assert (page.status_code, f'href="/v1/studies/{study}/export"' in page.text) == (413, True)
    assert client.get("/dashboard").status_code == 200
    assert client.get("/api/studies").status_code == 200


def test_how_large_a_study_is_is_counted_in_optunas_trials(
    client: TestClient, settings: Settings
) -> None:
    study = client.post("/v1/studies", json=definition()).json()["id"]
    (summary,) = client.get("/api/studies").json()["study_summaries"]
    db = Database.open(settings.resolved_database_url)
    for _ in range(2):
        Hand(db).claim_and_start()
    for most, found in ((2, None), (1, (2, f"/v1/studies/{study}"))):
        door = dashboard.Dashboard(db, most_trials=most)
        assert door._too_large(summary["study_id"]) == found
        door.close()
    db.close()


def test_another_hosts_name_is_refused(client: TestClient) -> None:
    for path in ("/dashboard", "/v1/studies"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["code"]) == (400, "unknown_host")


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    """Bound where others can reach it."""
    return settings.model_copy(update={"host": "0.0.0.0"})


def test_keys_and_scopes_guard_everything_off_loopback(open_settings: Settings) -> None:
    db = Database.open(open_settings.resolved_database_url)
    _, full = create_key(db, "full")
    reader_id, reader = create_key(db, "reader", ["read"])
    with TestClient(create_app(open_settings), raise_server_exceptions=False) as client:
        assert client.get("/v1/studies").status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/dashboard").status_code == 401
        assert client.get("/healthz").status_code == 200
        read = {"Authorization": f"Bearer {reader}"}
        assert client.get("/v1/studies", headers=read).status_code == 200
        assert client.get("/dashboard", auth=("any", reader)).status_code == 200
        assert client.post("/v1/studies", json=definition(), headers=read).status_code == 403
        write = {"X-API-Key": full}
        assert client.post("/v1/studies", json=definition(), headers=write).status_code == 202
        revoke_key(db, reader_id)
        assert client.get("/v1/studies", headers=read).status_code == 401
        assert client.get("/dashboard", auth=("any", reader)).status_code == 401
    db.close()


def test_no_address_is_without_its_guard(
    open_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation that there is: without a key, with one that may only read, with one gone."""
    monkeypatch.setattr(rates, "WRONG_KEYS_AT_ONCE", 1000.0)
    monkeypatch.setattr(events, "STREAM_SECONDS", 0.0)  # else a list that is followed has no end
    db = Database.open(open_settings.resolved_database_url)
    _, reader = create_key(db, "reader", ["read"])
    gone, revoked = create_key(db, "gone")
    revoke_key(db, gone)
    db.close()
    app = create_app(open_settings)
    operations = [
        (method.upper(), re.sub(r"\{\w+\}", "1", path))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path not in ("/healthz", "/readyz")
    ]
    assert len(operations) > 20
    with TestClient(app, raise_server_exceptions=False) as client:
        for method, path in operations:
            assert client.request(method, path).status_code == 401, (method, path)
            stale = client.request(method, path, headers={"X-API-Key": revoked})
            assert stale.status_code == 401, (method, path)
            answer = client.request(method, path, headers={"X-API-Key": reader})
            writes = method not in ("GET", "HEAD") and path != "/v1/studies/validate"
            assert (answer.status_code == 403) == writes, (method, path, answer.status_code)
        for path in (
            "/docs",
            "/docs/start.js",
            "/openapi.json",
            "/dashboard",
            "/api/studies",
            "/csv/1",
        ):
            assert client.get(path).status_code == 401, path


def test_guessing_keys_is_slowed_down_and_shuts_nobody_out(
    open_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "WRONG_KEYS_PER_SECOND", 1e-3)  # however slow this machine is
    db = Database.open(open_settings.resolved_database_url)
    _, secret = create_key(db, "right")
    db.close()
    right = {"X-API-Key": secret}
    with TestClient(create_app(open_settings), raise_server_exceptions=False) as client:
        guesses = [
            client.get("/v1/studies", headers={"Authorization": f"Bearer guess-{number}"})
            for number in range(25)
        ]
        assert [answer.status_code for answer in guesses] == [401] * 20 + [429] * 5
        assert int(guesses[-1].headers["retry-after"]) > 0
        assert client.get("/dashboard", auth=("any", "guess")).status_code == 429
        assert client.get("/v1/studies", headers=right).status_code == 200
        assert client.get("/dashboard", auth=("any", secret)).status_code == 200


def test_who_guesses_cannot_name_another_address(
    open_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "WRONG_KEYS_PER_SECOND", 1e-3)  # however slow this machine is
    with served(open_settings) as url, httpx2.Client(base_url=url) as client:
        for number in range(21):
            headers = {"X-API-Key": "guess", "X-Forwarded-For": f"192.0.2.{number}"}
            status = client.get("/v1/studies", headers=headers).status_code
    assert status == 429


def test_a_keys_limits(open_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its own: what one key has under way takes nothing from another."""
    # Eight requests, and hardly any more, however slow this machine is.
    monkeypatch.setattr(rates, "BURST_SECONDS", 800.0)
    limits = {"key_studies": 2, "key_open_slots": 6, "key_requests_per_second": 0.01}
    db = Database.open(open_settings.resolved_database_url)
    one, other = ({"X-API-Key": create_key(db, name)[1]} for name in ("one", "other"))
    db.close()
    app = create_app(Settings(**{**open_settings.model_dump(exclude_unset=True), **limits}))
    with TestClient(app, raise_server_exceptions=False) as client:

        def submit(key: dict[str, str], trials: int) -> Any:
            body = definition(budget={"trials": trials})
            return client.post("/v1/studies", json=body, headers=key)

        assert submit(one, 4).status_code == 202
        for refused in (
            submit(one, 3),  # seven open slots
            client.patch("/v1/studies/small", json={"trials": 7}, headers=one),
        ):
            assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
            assert int(refused.headers["retry-after"]) > 0
        assert submit(one, 1).status_code == 202
        assert "TUNER_KEY_STUDIES=2" in submit(one, 1).json()["detail"]
        assert submit(other, 6).status_code == 202
        page = client.get("/v1/studies", headers=other)
        assert sorted(study["progress"]["total"] for study in page.json()["items"]) == [1, 4, 6]
        answers = [client.get("/v1/studies", headers=one) for _ in range(10)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["code"] == "too_many_requests"
        assert int(refused.headers["retry-after"]) > 0
        pages = [client.get("/docs", auth=("any", one["X-API-Key"])) for _ in range(4)]
        assert 429 in [answer.status_code for answer in pages]


def test_an_expired_key_lets_nobody_in(
    open_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database.open(open_settings.resolved_database_url)
    with TestClient(create_app(open_settings), raise_server_exceptions=False) as client:
        key = {"X-API-Key": create_key(db, "brief", expires_seconds=60.0)[1]}
        assert client.get("/v1/studies", headers=key).status_code == 200
        now = Database.now
        monkeypatch.setattr(Database, "now", lambda self, connection: now(self, connection) + 61)
        assert client.get("/v1/studies", headers=key).status_code == 401
    db.close()


def test_a_database_that_is_away_answers_503(tmp_path: Path, migrated_sqlite: Path) -> None:
    file = tmp_path / "tuner.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    app = create_app(Settings(data_dir=tmp_path, database_url="", host="127.0.0.1"))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        app.state.service.db.close()  # SQLite keeps what is open; the next request opens anew
        file.rename(file.with_suffix(".away"))
        file.mkdir()
        answer = client.get("/v1/studies")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"]
        assert client.get("/readyz").status_code == 503
        file.rmdir()
        file.with_suffix(".away").rename(file)
        assert client.get("/v1/studies").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/studies?tag=a%00", "/v1/studies?cursor=%00", "/v1/studies/%00"]
)
def test_a_nul_in_an_address_is_refused(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 422


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"max_failures": 10**12}, "/max_failures"),
        ({"tags": {"": "x"}}, "/tags//[key]"),
        ({"tags": {"a": "\u001f"}}, "/tags/a"),
        ({"timeout": "-2h"}, "/timeout"),
        ({"trials": True}, "/trials"),
    ],
)
def test_a_patch_cannot_bring_in_what_a_definition_could_not(
    client: TestClient, change: dict[str, Any], pointer: str
) -> None:
    client.post("/v1/studies", json=definition())
    answer = client.patch("/v1/studies/small", json=change)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
