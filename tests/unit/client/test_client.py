"""The client against a service of a few dictionaries."""

import base64
import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.unit.client.fake_service import (
    FakeService,
    FakeStudy,
    ends,
    finishes,
    problem,
    starts,
    trial,
)
from tuner_service.client import (
    AccessError,
    AddressError,
    ApiError,
    ConflictError,
    ConnectionFailedError,
    InvalidInputError,
    NoResultError,
    NotFoundError,
    ServiceError,
    TunerClient,
    WaitTimeoutError,
    transport,
)
from tuner_service.errors import DefinitionError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNER_URL", raising=False)
    monkeypatch.delenv("TUNER_API_KEY", raising=False)
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


def test_submit_sends_the_definition_and_returns_a_handle(service: FakeService) -> None:
    with service.client() as client:
        study = client.submit({"name": "digits"})

    assert (study.id, study.name) == ("st_1", "digits")
    assert list(service.submitted.values()) == [{"name": "digits"}]


def test_submit_reads_a_yaml_file_as_yaml_1_2(service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: digits\nrate: 1e-5\nflag: no\n")

    service.client().submit(file)
    service.client().submit(str(file))

    assert list(service.submitted.values()) == [{"name": "digits", "rate": 1e-5, "flag": "no"}] * 2


def test_a_file_that_is_not_yaml_names_line_and_column(
    service: FakeService, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: [1\n")

    with pytest.raises(DefinitionError, match=r"line 2, column 1"):
        service.client().submit(file)
    assert service.requests == []


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        httpx2.ReadTimeout("late"),
        problem(503, "unavailable", "the database cannot be reached"),
        httpx2.Response(502, text="bad gateway"),
        httpx2.Response(429, headers={"Retry-After": "1"}),
    ],
    ids=repr,
)
def test_submit_is_sent_again_with_the_same_key(
    service: FakeService, failure: httpx2.Response | Exception
) -> None:
    service.failures = [failure, failure]

    service.client().submit({"name": "digits"})

    keys = {request.headers["idempotency-key"] for request in service.sent("POST")}
    assert (len(service.requests), len(keys)) == (3, 1)


def test_two_submits_have_two_keys(service: FakeService) -> None:
    client = service.client()
    client.submit({"name": "digits"})
    client.submit({"name": "digits"})

    assert len(service.submitted) == 2


def test_what_is_refused_is_not_sent_again(service: FakeService) -> None:
    quota = httpx2.Response(429, headers={"Retry-After": "60"}, json={"code": "quota_exceeded"})
    refusals = {problem(422, "invalid_definition", "wrong"): InvalidInputError, quota: ApiError}
    for number, (refusal, kind) in enumerate(refusals.items(), 1):
        service.failures = [refusal]
        with pytest.raises(kind):
            service.client().submit({"name": "digits"})
        assert len(service.requests) == number


def test_a_service_that_stays_away_is_named_with_the_way_to_start_one(
    service: FakeService,
) -> None:
    service.failures = [httpx2.ConnectError("[Errno 111] Connection refused")] * 3

    with pytest.raises(ConnectionFailedError) as caught:
        service.client(retry_seconds=0).studies()
    assert str(caught.value) == (
        "There is no tuner service at http://tuner.test (Connection refused). "
        "Start one with `tuner up`, or say where it is (--url, TUNER_URL)."
    )
    assert len(service.requests) == 1


def test_a_proxy_before_a_service_that_restarts_is_waited_for(service: FakeService) -> None:
    service.failures = [httpx2.Response(502, text="<html>")] * 2
    client = service.client()
    client.ping()
    assert client.study("digits").name == "digits"

    service.failures = [httpx2.Response(502, text="<html>")]
    with pytest.raises(ServiceError, match="A proxy answered HTTP 502"):
        service.client(retry_seconds=0).study("digits")


def test_the_proxy_of_the_environment_is_named_and_not_its_password(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.test:3128")
    service.failures = [httpx2.ConnectError("[Errno 111] Connection refused")]
    with pytest.raises(ConnectionFailedError) as caught:
        service.client(retry_seconds=0).studies()
    assert "by way of the proxy proxy.test:3128 (Connection refused)" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_socks_proxy_without_its_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy.test:1080")
    with pytest.raises(AddressError, match=r"httpx2\[socks\]") as caught:
        TunerClient("http://tuner.example:8000", retry_seconds=0)
    assert "proxy.test:1080" in str(caught.value)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "tuner.example")
    TunerClient("http://tuner.example:8000", retry_seconds=0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.1.1", "[::1]", "localhost", socket.gethostname()]
)
def test_every_name_of_this_machine_is_direct(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    monkeypatch.setenv("no_proxy", "other.example")
    assert transport._proxy_of(f"http://{host}:8000") == ""
    assert transport._proxy_of("http://tuner.example") == "http://proxy.invalid:1"


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
        port = closed.getsockname()[1]
        with pytest.raises(ConnectionFailedError, match=r"Connection refused\)\. Start one"):
            TunerClient(f"http://127.0.0.1:{port}", retry_seconds=0).studies()


def test_certificates_of_the_environment_count_for_this_machine_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "mine.pem"))
    with pytest.raises(FileNotFoundError):  # read at once, or never
        TunerClient("https://localhost:1", retry_seconds=0)


def test_https_where_http_is_spoken_is_told(service: FakeService) -> None:
    service.failures = [httpx2.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number")]
    with pytest.raises(ConnectionFailedError, match="does not speak https"):
        service.client(retry_seconds=0).studies()


@pytest.mark.parametrize("url", ["", "localhost:8000", "127.0.0.1:80", "ftp://h", "http://h:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(AddressError, match="must look like http://HOST:PORT"):
        TunerClient(url or "x", retry_seconds=0).studies()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInputError),
        (401, AccessError),
        (403, AccessError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, InvalidInputError),
        (415, InvalidInputError),
        (422, InvalidInputError),
        (418, ApiError),
        (500, ServiceError),
        (503, ServiceError),
    ],
)
def test_each_status_has_its_error(service: FakeService, status: int, kind: type[ApiError]) -> None:
    service.failures = [problem(status, "some_code", "A sentence.")]

    with pytest.raises(ApiError) as caught:
        service.client(retry_seconds=0).study("digits")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail, str(error)) == (
        status,
        "some_code",
        "A sentence.",
        "A sentence.",
    )


def test_every_fault_of_a_definition_is_told(service: FakeService) -> None:
    faults = [
        {"pointer": "/name", "detail": "is missing", "code": "missing"},
        {"pointer": "", "detail": "has too much", "code": "extra"},
    ]
    service.failures = [problem(422, "invalid_definition", "It is wrong.", errors=faults)]

    with pytest.raises(InvalidInputError) as caught:
        service.client().submit({})
    assert caught.value.errors == faults
    assert str(caught.value) == "It is wrong.\n  /name: is missing\n  /: has too much"


def test_another_program_at_the_address_is_noticed(service: FakeService) -> None:
    service.failures = [httpx2.Response(404, text="<html>")] * 2

    with pytest.raises(NotFoundError, match="not by a tuner service"):
        service.client().study("digits")
    with pytest.raises(ConnectionFailedError, match="is not a tuner service"):
        service.client().ping()


def test_the_key_comes_from_the_argument_or_the_environment(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_API_KEY", "of-environment")
    service.client().studies()
    service.client(api_key="given").studies()

    sent = [request.headers["authorization"] for request in service.requests]
    assert sent == ["Bearer of-environment", "Bearer given"]


def test_a_name_with_odd_characters_stays_one_segment(service: FakeService) -> None:
    with pytest.raises(NotFoundError):
        service.client().study("a/b c?d#e%2F")

    assert service.requests[0].url.raw_path == b"/v1/studies/a%2Fb%20c%3Fd%23e%252F"


def test_wait_returns_the_final_status(service: FakeService) -> None:
    service.study.steps = [finishes(0), finishes(1), ends("failed", "out of luck")]

    status = service.client().study("digits").wait()

    assert (status.state, status.reason, status.progress.done) == ("failed", "out of luck", 2)


def test_wait_holds_requests_with_the_known_revision(service: FakeService) -> None:
    service.study.steps = [finishes(0), ends()]

    service.client().study("digits").wait()

    held = [r for r in service.requests if "wait" in r.url.params]
    assert [r.headers["if-none-match"] for r in held] == ['"1"', '"2"']
    assert {r.url.params["wait"] for r in held} == {"30"}


def test_updates_yield_changes_only(service: FakeService) -> None:
    service.study.steps = [finishes(0), ends()]
    service.failures = [
        httpx2.Response(200, json=service.study.view()),
        httpx2.Response(200, json=service.study.view()),
        httpx2.Response(304),
        httpx2.Response(304),
    ]

    revisions = [s.revision for s in service.client().study("digits").updates()]

    assert revisions == [1, 2, 3]


def test_wait_gives_up_after_its_time_and_says_that_the_study_goes_on(
    service: FakeService,
) -> None:
    with pytest.raises(WaitTimeoutError, match="still queued after 0 s; it goes on"):
        service.client().study("digits").wait(timeout=0)


def test_wait_survives_a_service_that_restarts(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner_service.client.patience.OUTAGE_PAUSE_SECONDS", 0.001)
    service.study.steps = [ends()]
    study = service.client(retry_seconds=0).study("digits")
    service.failures = [
        httpx2.Response(200, json=service.study.view()),
        httpx2.ConnectError("refused"),
        problem(503, "unavailable", "the database cannot be reached"),
        httpx2.ConnectError("refused"),
    ]

    assert study.wait().state == "completed"


def test_wait_shows_a_line_per_trial_off_a_terminal(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.study.steps = [finishes(1), finishes(0, 0.5), finishes(2, None, "FAIL"), ends()]

    service.client().study("digits").wait(progress=True)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "trial 1  COMPLETE  0.9  learning_rate=0.2, optimizer=adam",
        "trial 0  COMPLETE  0.5  learning_rate=0.1, optimizer=adam",
        "trial 2  FAIL  no value  learning_rate=0.3, optimizer=adam",
        "Study digits is completed. 2 of 3 trials done, 1 failed.",
    ]


def test_the_feed_gives_each_finished_trial_once(service: FakeService) -> None:
    study = service.client().study("digits")
    feed = study.feed()
    told: list[int] = []
    # Pages of two: the first page stays open while later ones fill, then settles.
    for step in (starts(0), finishes(1), finishes(2), finishes(3), finishes(4), finishes(0)):
        step(service.study)
        told += [trial.number for trial in feed.new()]

    assert told == [1, 2, 3, 4, 0]
    assert list(feed.new()) == []


def test_the_feed_does_not_read_settled_pages_again(service: FakeService) -> None:
    service.study.trials = [trial(n, value=0.5) for n in range(9)]
    feed = service.client().study("digits").feed()
    assert len(list(feed.new())) == 9
    service.requests.clear()

    assert list(feed.new()) == []
    assert [r.url.params.get("cursor") for r in service.requests] == ["8"]


def test_best_trial_has_value_parameters_and_record(service: FakeService) -> None:
    service.study.trials = [trial(0, value=0.4), trial(1, value=0.6)]

    best = service.client().study("digits").best_trial

    assert (best.number, best.value, best.state) == (1, 0.6, "COMPLETE")
    assert best.params == {"learning_rate": 0.2, "optimizer": "adam"}
    assert best.record == {"test_accuracy": 0.5}


def test_best_trial_of_a_study_without_results_says_how_it_stands() -> None:
    service = FakeService(FakeStudy(state="failed", reason="the file is gone"))

    with pytest.raises(NoResultError, match=r"is failed \(the file is gone\), 0 of 3 trials done"):
        _ = service.client().study("digits").best_trial


def test_trials_come_from_all_pages_and_by_state(service: FakeService) -> None:
    service.study.trials = [trial(n, value=0.1) for n in range(4)] + [trial(4, "FAIL")]
    study = service.client().study("digits")

    assert [t.number for t in study.trials()] == [0, 1, 2, 3, 4]
    assert [t.number for t in study.trials(state="FAIL")] == [4]


def test_trials_dataframe_has_a_row_per_trial(service: FakeService) -> None:
    service.study.trials = [trial(0, value=0.4), trial(1, value=0.6)]

    table = service.client().study("digits").trials_dataframe()

    assert table.to_dict("list") == {"number": [0, 1], "value": [0.4, 0.6]}


@pytest.mark.parametrize(
    ("action", "state"), [("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")]
)
def test_actions_return_the_new_status(service: FakeService, action: str, state: str) -> None:
    study = service.client().study("digits")

    assert getattr(study, action)().state == state
    assert study.last_status.state == state


def test_update_sends_what_changes(service: FakeService) -> None:
    assert service.client().study("digits").update(trials=9).progress.total == 9


def test_a_deleted_study_may_be_deleted_again(service: FakeService) -> None:
    study = service.client().study("digits")
    service.failures = [httpx2.ReadError("reset"), problem(404, "not_found", "no such study")]

    study.delete()  # the first request did it, the answer was lost

    service.failures = [problem(404, "not_found", "no such study")]
    with pytest.raises(NotFoundError):
        study.delete()


def test_export_and_coverage(service: FakeService) -> None:
    study = service.client().study("digits")

    assert study.export("csv") == "number,value\r\n"
    assert study.export("json") == "[]"
    assert study.coverage()["failed_points"] == []


def test_the_client_stays_light() -> None:
    heavy = "{'fastapi', 'sqlalchemy', 'torch', 'optuna', 'celery', 'pandas', 'pydantic', 'rich'}"
    code = f"import sys, tuner_service.client; sys.exit(str({heavy} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_an_upload_sends_the_whole_file_each_time(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(b"a,b\n1,2\n" * 20_000)
    bodies: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.read())
        digest = base64.b64encode(hashlib.sha256(bodies[-1]).digest()).decode()
        assert request.headers["content-digest"] == f"sha-256=:{digest}:"
        assert request.headers["content-length"] == str(len(bodies[-1]))
        assert request.url.path == "/v1/datasets/mine"
        if len(bodies) == 1:
            return problem(503, "unavailable", "the database is away")
        return httpx2.Response(201, json={"name": "mine"})

    with TunerClient("http://tuner.test", transport=httpx2.MockTransport(answer)) as client:
        assert client.upload_dataset("mine", file) == {"name": "mine"}
    assert bodies == [file.read_bytes()] * 2
