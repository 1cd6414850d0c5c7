"""What the page reads: columns, curves, failures, importances, filters and events."""

import json
import math
from typing import Any

import httpx2
import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import select
from starlette.testclient import TestClient

from tests.integration.api.conftest import served
from tests.integration.api.test_api import definition
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Fail, Finish, Lease, Report, Start
from tuner_service.reads.views import Failure
from tuner_service.settings import Settings
from tuner_service.storage import Database
from tuner_service.storage.schema import slots

TRIALS, EPOCHS = 30, 4
SPACE = {
    "learning_rate": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
    "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
    "momentum": {"type": "float", "low": 0.1, "high": 0.9, "when": {"optimizer": ["sgd"]}},
}


def value_of(parameters: dict[str, Any], step: int) -> float:
    return 0.9 - 0.2 * abs(math.log10(parameters["learning_rate"]) + 2.5) - 0.1 / step


def run(settings: Settings, *, running: int = 2) -> None:
    """Do a worker's part: large learning rates fail, the last trials go on running."""
    db = Database.open(settings.resolved_database_url)
    leases = claim(db, worker_id="w", queue="cpu", limit=TRIALS, lease_seconds=60.0).leases

    def send(batch: Batch) -> dict[tuple[int, int], int]:
        done = flush(db, worker_id="w", batch=batch, lease_seconds=60.0, settings=settings)
        return {key: trial.trial_id for key, trial in done.started.items()}

    ids = send(Batch(starts=[Start(lease, lease.parameters or {}) for lease in leases]))
    batch = Batch()
    for index, lease in enumerate(leases):
        parameters = lease.parameters or {}
        trial = ids[lease.key]
        if parameters["learning_rate"] > 0.02 and index < TRIALS - running:
            failure = Failure(kind="user_code", message="the loss <b>exploded</b>")
            batch.fails.append(Fail(lease, trial, failure, blamed=True))
            continue
        for step in range(1, EPOCHS + 1):
            value = value_of(parameters, step)
            record = {"step": step, "val_accuracy": value, "train_loss": 1.0 / step}
            batch.reports.append(Report(lease, trial, step, value, record))
        if index < TRIALS - running:
            result = (value_of(parameters, EPOCHS),)
            batch.finishes.append(Finish(lease, trial, "COMPLETE", result, {}))
    send(batch)
    db.close()


@pytest.fixture
def study(client: TestClient, settings: Settings) -> str:
    """A study of which trials are complete, failed and running."""
    body = definition(
        parameters=SPACE,
        budget={"trials": TRIALS, "max_failures": TRIALS},
        pruner={"type": "median", "startup_trials": 3},
        resources={"parallel_trials": TRIALS},
    )
    name: str = client.post("/v1/studies", json=body).json()["name"]
    run(settings.model_copy(update={"max_attempts": 1}))
    return name


def test_columns_are_the_trials(client: TestClient, study: str) -> None:
    columns = client.get(f"/v1/studies/{study}/columns").json()
    views = client.get(f"/v1/studies/{study}/trials?limit=500").json()["items"]
    assert columns["total"] == len(views) == TRIALS
    for index, view in enumerate(views):
        named = {n: c[index] for n, c in columns["parameters"].items() if c[index] is not None}
        assert named == view["parameters"]
        assert columns["state"][index] == view["state"]
        assert columns["values"][0][index] == view["value"]


def test_columns_follow_the_revision(client: TestClient, settings: Settings) -> None:
    client.post("/v1/studies", json=definition(name="later", parameters=SPACE))
    address = "/v1/studies/later/columns"
    first = client.get(address)
    assert first.json()["number"] == []
    assert client.get(address, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    run(settings, running=1)
    assert client.get(address).json()["state"].count("COMPLETE") > 0


def test_a_running_trial_has_its_latest_values(client: TestClient, study: str) -> None:
    page = client.get(f"/v1/studies/{study}/trials?state=RUNNING").json()["items"]
    assert len(page) == 2
    for trial in page:
        assert trial["latest"]["val_accuracy"] == value_of(trial["parameters"], EPOCHS)
    assert client.get(f"/v1/studies/{study}/best").json()[0]["latest"] is None


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("learning_rate<1e-2", lambda p, s: p["learning_rate"] < 1e-2),
        (
            "state:complete optimizer:ADAM",
            lambda p, s: s == "COMPLETE" and p["optimizer"] == "adam",
        ),
        ("momentum:n/a", lambda p, s: "momentum" not in p),
        ("momentum>=0.5 state!=FAIL", lambda p, s: p.get("momentum", 0) >= 0.5 and s != "FAIL"),
    ],
)
def test_a_filter_finds_what_it_says(client: TestClient, study: str, text: str, fits: Any) -> None:
    everything = client.get(f"/v1/studies/{study}/trials?limit=500").json()["items"]
    wanted = [t["number"] for t in everything if fits(t["parameters"], t["state"])]
    found: list[int] = []
    cursor = None
    while True:
        query = {"filter": text, "limit": 4, **({"cursor": cursor} if cursor else {})}
        page = client.get(f"/v1/studies/{study}/trials", params=query).json()
        found += [trial["number"] for trial in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == wanted
    assert 0 < len(found) < TRIALS


@pytest.mark.parametrize("text", ["lr<1", "learning_rate<many", "rubbish", "state:'running"])
def test_a_filter_that_is_wrong_says_why(client: TestClient, study: str, text: str) -> None:
    answer = client.get(f"/v1/studies/{study}/trials", params={"filter": text})
    assert answer.status_code == 422
    assert "filter" in answer.json()["detail"] or "needs a number" in answer.json()["detail"]


def test_curves_have_the_pruners_threshold(client: TestClient, study: str) -> None:
    curves = client.get(f"/v1/studies/{study}/curves").json()
    complete = [c for c in curves["curves"] if c["state"] == "COMPLETE"]
    assert {"val_accuracy", "train_loss"} <= set(curves["metrics"])
    threshold = curves["threshold"]
    assert (threshold["steps"], threshold["trials"]) == ([1, 2, 3, 4], len(complete))
    middle = sorted(curve["values"][0] for curve in complete)
    half = len(middle) // 2
    median = middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2
    assert threshold["values"][0] == pytest.approx(median)
    losses = client.get(f"/v1/studies/{study}/curves?metric=train_loss").json()
    assert losses["curves"][0]["values"] == [1.0, 0.5, pytest.approx(1 / 3), 0.25]
    assert losses["threshold"] is None


def test_curves_since_a_revision_are_those_that_changed(
    client: TestClient, settings: Settings, study: str
) -> None:
    address = f"/v1/studies/{study}/curves"
    known = client.get(address).json()["revision"]
    assert client.get(f"{address}?since={known}").json()["curves"] == []
    client.post(f"/v1/studies/{study}/pause")  # a revision that changes no finished trial
    again = client.get(f"{address}?since={known}").json()["curves"]
    assert {curve["state"] for curve in again} == {"RUNNING"}


def test_failures_come_with_the_region_that_explains_them(client: TestClient, study: str) -> None:
    found = client.get(f"/v1/studies/{study}/failures").json()
    (group,) = found["groups"]
    assert (group["kind"], group["message"]) == ("user_code", "the loss <b>exploded</b>")
    side = group["region"][0]
    assert (side["parameter"], side["high"]) == ("learning_rate", None)
    assert 0.02 < side["low"] < 0.1
    assert group["inside"] == group["count"] == found["failed"]
    assert group["inside"] == group["region_trials"]


def test_the_parameter_that_matters_is_named(client: TestClient, study: str) -> None:
    found = client.get(f"/v1/studies/{study}/importances").json()["importances"]
    assert max(found, key=lambda name: found[name]) == "learning_rate"
    assert sum(found.values()) == pytest.approx(1.0)


def test_events_go_on_where_they_were(settings: Settings) -> None:
    with served(settings) as url, httpx2.Client(timeout=20.0) as http:
        http.post(f"{url}/v1/studies", json=definition()).raise_for_status()

        def events(address: str, known: str | None, act: str | None) -> list[tuple[str, str]]:
            """Read one event, act, and read the next."""
            headers = {"Last-Event-ID": known} if known else {}
            found = []
            with http.stream("GET", f"{url}{address}", headers=headers) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                kind = ident = ""
                for line in answer.iter_lines():
                    name, _, text = line.partition(": ")
                    kind = text if name == "event" else kind
                    ident = text if name == "id" else ident
                    if name == "data":
                        found.append((kind, ident))
                        if kind == "study":
                            assert str(json.loads(text)["revision"]) == ident
                        if len(found) == 2 or act is None:
                            return found
                        httpx2.post(f"{url}/v1/studies/small/{act}").raise_for_status()
            raise AssertionError("the stream ended")

        address = "/v1/studies/small/events"
        (kind, first), (_, second) = events(address, None, "pause")
        assert kind == "study"
        assert int(second) > int(first)
        ((_, again),) = events(address, first, None)
        assert again == second
        (kind, old), (_, new) = events("/v1/events", None, "resume")
        assert kind == "studies"
        assert old != new
        assert http.get(f"{url}/v1/studies/nobody/events").status_code == 404


def test_optuna_knows_the_metrics_name(client: TestClient, settings: Settings, study: str) -> None:
    storage = RDBStorage(settings.resolved_database_url)
    try:
        assert optuna.load_study(study_name=study, storage=storage).metric_names == ["val_accuracy"]
    finally:
        storage.remove_session()
        storage.engine.dispose()


def test_points_are_tried_and_a_trial_is_tried_again(client: TestClient, study: str) -> None:
    before = client.get(f"/v1/studies/{study}").json()["progress"]
    added = client.post(
        f"/v1/studies/{study}/points",
        json={"points": [{"learning_rate": 0.003}, {"optimizer": "adam"}]},
    ).json()
    assert added["progress"]["total"] == before["total"] + 2
    assert added["progress"]["open"] == before["open"] + 2
    trial = client.get(f"/v1/studies/{study}/trials/0").json()
    again = client.post(f"/v1/studies/{study}/trials/0/rerun").json()
    assert again["progress"]["total"] == before["total"] + 3
    service = client.app.state.service  # type: ignore[attr-defined]
    leases = claim(service.db, worker_id="w", queue="cpu", limit=3, lease_seconds=60.0).leases
    points = {lease.number: lease.parameters or {} for lease in leases}
    assert points[TRIALS]["learning_rate"] == 0.003
    assert points[TRIALS + 2] == trial["parameters"]


@pytest.mark.parametrize(
    ("points", "pointer"),
    [
        ([{"learning_rate": 7}], "/points/0/learning_rate"),
        ([{"optimizer": "adam"}, {"depth": 1}], "/points/1/depth"),
        ([], "/points"),
    ],
)
def test_a_point_that_is_wrong_says_where(
    client: TestClient, study: str, points: list[Any], pointer: str
) -> None:
    answer = client.post(f"/v1/studies/{study}/points", json={"points": points})
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


def test_a_grid_takes_no_points(client: TestClient) -> None:
    space = {"optimizer": {"type": "categorical", "choices": ["sgd", "adam"]}}
    body = definition(name="grid", parameters=space, sampler={"type": "grid"})
    del body["budget"]
    assert client.post("/v1/studies", json=body).status_code == 202
    answer = client.post("/v1/studies/grid/points", json={"points": [{"optimizer": "sgd"}]})
    assert answer.status_code == 422


def test_a_running_trial_is_stopped_and_keeps_its_value(
    client: TestClient, settings: Settings, study: str
) -> None:
    page = client.get(f"/v1/studies/{study}/trials?state=RUNNING").json()["items"]
    number, other = page[0]["number"], page[1]["number"]
    assert client.post(f"/v1/studies/{study}/trials/{number}/stop").status_code == 200
    db = Database.open(settings.resolved_database_url)
    leases = {n: held_lease(db, client, study, n) for n in (number, other)}
    batch = Batch(renew=list(leases.values()))
    told = flush(db, worker_id="w", batch=batch, lease_seconds=60.0, settings=settings)
    assert told.stop == {leases[number].key: "asked"}
    ended = Finish(leases[number], page[0]["trial_id"], "PRUNED", None, {})
    flush(db, worker_id="w", batch=Batch(finishes=[ended]), lease_seconds=60.0, settings=settings)
    db.close()
    trial = client.get(f"/v1/studies/{study}/trials/{number}").json()
    assert (trial["state"], trial["value"]) == ("PRUNED", value_of(trial["parameters"], EPOCHS))
    refused = client.post(f"/v1/studies/{study}/trials/{number}/stop")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert client.post(f"/v1/studies/{study}/trials/999/stop").status_code == 404


def held_lease(db: Database, client: TestClient, study: str, number: int) -> Lease:
    """Return the lease under which a trial runs."""
    trial = client.get(f"/v1/studies/{study}/trials/{number}").json()
    with db.read() as connection:
        row = connection.execute(select(slots).where(slots.c.trial_id == trial["trial_id"])).one()
    return Lease(
        row.id, row.fencing_token, row.study_id, row.number, row.parameters, None,
        row.trial_id, number, None, row.attempts, False,
    )  # fmt: skip
