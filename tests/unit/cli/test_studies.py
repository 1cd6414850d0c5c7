"""The commands on studies, against a service of a few dictionaries."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console

from tests.unit.client.fake_service import (
    FakeService,
    FakeStudy,
    ends,
    finishes,
    problem,
    starts,
    trial,
)
from tuner_service.cli import run, show
from tuner_service.client import AddressError, TunerClient

Tuner = Callable[..., int]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def tuner(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Tuner:
    """Run a command line and return its exit code."""
    for name in ("TUNER_URL", "TUNER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def client(url: str, *, api_key: str | None = None) -> TunerClient:
        del url
        return service.client(api_key=api_key, retry_seconds=0)

    monkeypatch.setattr("tuner_service.cli.options.TunerClient", client)
    return lambda *arguments: run(arguments)


@pytest.fixture
def study_file(tmp_path: Path) -> str:
    path = tmp_path / "study.yaml"
    path.write_text("name: digits\n")
    return str(path)


Shown = pytest.CaptureFixture[str]


def test_submit_says_how_to_follow(tuner: Tuner, study_file: str, capsys: Shown) -> None:
    assert tuner("submit", study_file) == 0
    assert capsys.readouterr().out == (
        "Submitted digits (st_1), 3 trials.\nFollow it with `tuner status digits --watch`.\n"
    )


def test_suggested_commands_keep_the_address(tuner: Tuner, study_file: str, capsys: Shown) -> None:
    tuner("submit", study_file, "--url", "http://tuner.test")
    assert "`tuner status digits --watch --url http://tuner.test`" in capsys.readouterr().out


def test_submit_reads_stdin(
    tuner: Tuner, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("name: from-stdin"))
    assert tuner("submit", "-") == 0
    assert list(service.submitted.values()) == [{"name": "from-stdin"}]


def test_a_study_that_nobody_can_run_says_so(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.study.reason = "waiting for a worker with CUDA"
    assert tuner("submit", study_file) == 0
    assert capsys.readouterr().err == "Note: the study is waiting for a worker with CUDA\n"


def test_a_changed_name_is_told(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.study.warnings = ["the name digits is taken: this is digits-2"]
    tuner("submit", study_file)
    assert capsys.readouterr().err == "Note: the name digits is taken: this is digits-2\n"


@pytest.mark.parametrize(
    ("state", "trials", "code"),
    [
        ("completed", [finishes(0)], 0),
        ("completed", [finishes(0), finishes(1, None, "FAIL"), finishes(2, 0.1, "PRUNED")], 0),
        ("completed", [finishes(0, None, "FAIL"), finishes(1, None, "FAIL")], 1),
        ("completed", [finishes(0, 0.1, "PRUNED"), finishes(1, None, "FAIL")], 1),
        ("completed", [], 1),
        ("failed", [finishes(0)], 1),
        ("cancelled", [finishes(0)], 3),
        ("cancelled", [], 3),
    ],
)
@pytest.mark.parametrize("command", ["submit", "status"])
def test_watch_ends_with_the_code_of_the_study(
    tuner: Tuner,
    service: FakeService,
    study_file: str,
    capsys: Shown,
    *,
    command: str,
    state: str,
    trials: list[Any],
    code: int,
) -> None:
    service.study.steps = [*trials, ends(state)]
    assert tuner(command, study_file if command == "submit" else "digits", "--watch") == code
    complete = any(one["state"] == "COMPLETE" for one in service.study.trials)
    assert ("No trial has a result." in capsys.readouterr().out) == (not complete)


def test_watch_prints_a_line_per_trial_off_a_terminal(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.study.steps = [starts(0), finishes(1, 0.7), finishes(0, 0.9), ends()]

    tuner("submit", study_file, "--watch")

    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "Submitted digits (st_1), 3 trials.",
        "trial 1  COMPLETE  0.7  learning_rate=0.2, optimizer=adam",
        "trial 0  COMPLETE  0.9  learning_rate=0.1, optimizer=adam",
        "Study digits is completed. 2 of 3 trials done.",
    ]
    assert lines[4] == "trial 0: 0.9"
    assert "    test_accuracy  0.5" in lines


def test_watch_tells_what_the_study_waits_for(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.study.reason = "waiting for a worker"
    service.study.steps = [finishes(0), ends()]

    tuner("submit", study_file, "--watch")

    assert capsys.readouterr().err.splitlines() == ["digits: waiting for a worker"]


def test_watch_times_out_with_124(tuner: Tuner, study_file: str, capsys: Shown) -> None:
    assert tuner("submit", study_file, "--watch", "--timeout", "0") == 124
    assert "still queued after 0 s; it goes on" in capsys.readouterr().err


REFUSED = httpx2.ConnectError("[Errno 111] Connection refused")


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner_service.client.patience.OUTAGE_PAUSE_SECONDS", 0.001)


def goes_away(service: FakeService, *answers: httpx2.Response | Exception) -> Callable[..., None]:
    """A step: the requests that come next are answered so, the first one as usual."""

    def step(study: FakeStudy) -> None:
        study.trials = [trial(0, value=0.5)]
        service.failures = list(answers)

    return step


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (REFUSED, "it cannot be reached"),
        (problem(503, "unavailable", "no space left"), "no space left"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_watch_bears_with_a_service_that_is_away(
    tuner: Tuner,
    service: FakeService,
    quick_pauses: None,
    capsys: Shown,
    *,
    as_json: bool,
    answer: httpx2.Response | Exception,
    why: str,
) -> None:
    service.study.steps = [goes_away(service, answer, answer), ends()]
    assert tuner("status", "digits", "--watch", *["--json"] * as_json) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"The service is away ({why}); the study goes on. Waiting for up to 2 min 0 s.",
        "The service answers again.",
    ]


@pytest.mark.usefixtures("quick_pauses")
def test_watch_of_a_service_that_stays_away_says_how_to_come_back(
    tuner: Tuner, service: FakeService, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setattr("tuner_service.client.patience.OUTAGE_SECONDS", 0.01)
    service.study.steps = [goes_away(service, *[REFUSED] * 100_000)]
    assert tuner("status", "digits", "--watch") == 4
    told = capsys.readouterr().err
    assert "There is no tuner service at http://tuner.test (Connection refused)." in told
    assert told.endswith("Come back with `tuner status digits --watch`.\n")


@pytest.mark.usefixtures("quick_pauses")
def test_a_timeout_of_watch_ends_an_outage_too(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.study.steps = [goes_away(service, *[REFUSED] * 100_000)]
    assert tuner("status", "digits", "--watch", "--timeout", "0.05") == 124
    assert "is over, and the service is away" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_pauses")
@pytest.mark.parametrize(
    "error",
    [problem(500, "internal", "a fault of its own"), AddressError("must look like http://")],
)
def test_what_no_waiting_cures_is_told_at_once(
    tuner: Tuner, service: FakeService, capsys: Shown, error: httpx2.Response | Exception
) -> None:
    service.study.steps = [goes_away(service, error), ends()]
    assert tuner("status", "digits", "--watch") == (2 if isinstance(error, AddressError) else 1)
    told = capsys.readouterr().err
    assert "is away" not in told
    assert ("of its own" in told) or ("must look like" in told)


def test_why_trials_failed_need_not_be_known_for_the_exit_code(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.study.state, service.study.trials = "failed", [trial(0, "FAIL")]
    service.failures = [*[None] * 4, REFUSED]  # healthz, study, its status, trials; coverage
    assert tuner("status", "digits", "--watch") == 1
    shown = capsys.readouterr()
    assert "why trials failed cannot be asked" in shown.err
    assert "Study digits is failed" in shown.out


def test_ctrl_c_detaches_and_never_cancels(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    def ctrl_c(_: FakeStudy) -> None:
        raise KeyboardInterrupt

    service.study.steps = [finishes(0), ctrl_c]

    assert tuner("status", "digits", "--watch") == 130
    assert capsys.readouterr().err == (
        "Detached; the study goes on. Come back with `tuner status digits --watch`, "
        "end it with `tuner cancel digits`.\n"
    )
    assert service.sent("POST") == []


def test_json_is_all_there_is_on_stdout(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.study.steps = [finishes(0), ends()]
    assert tuner("submit", study_file, "--watch", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "completed"


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "digits"),
        ("list",),
        ("trials", "digits"),
        ("best", "digits"),
        ("pause", "digits"),
        ("resume", "digits"),
        ("cancel", "digits"),
        ("refit", "digits"),
        ("validate", "FILE"),
        ("submit", "FILE"),
    ],
    ids=" ".join,
)
def test_every_answer_comes_as_json_too(
    tuner: Tuner,
    service: FakeService,
    study_file: str,
    capsys: Shown,
    arguments: tuple[str, ...],
) -> None:
    service.study.trials = [trial(0, value=0.5)]
    arguments = tuple(study_file if a == "FILE" else a for a in arguments)

    assert tuner(*arguments, "--json") == 0
    json.loads(capsys.readouterr().out)


def test_faults_are_told_with_line_pointer_and_sentence(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    Path(study_file).write_text("name: digits\nsampler:\n  type: tpee\nbudget: {}\n")
    faults = [
        {"pointer": "/sampler/type", "detail": "there is no 'tpee': did you mean 'tpe'?"},
        {"pointer": "/budget/trials", "detail": "trials is required"},
        {"pointer": "", "detail": "`network` is missing"},
    ]
    service.failures = [
        httpx2.Response(200, json={"status": "ok"}),
        problem(422, "invalid_definition", "wrong", errors=faults),
    ]

    assert tuner("submit", study_file) == 2
    assert capsys.readouterr().err.splitlines() == [
        "tuner: the definition is wrong in 3 places:",
        f"  {study_file}:3 /sampler/type there is no 'tpee': did you mean 'tpe'?",
        f"  {study_file}:4 /budget/trials trials is required",
        f"  {study_file}:1 / `network` is missing",
    ]


def test_a_file_that_is_not_yaml_is_bad_input(tuner: Tuner, tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("a: [")
    assert tuner("submit", str(path)) == 2
    assert "this is not YAML: line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "kind"), [("", "nothing"), ("- 1", "a list"), ("study.yaml", "'study.yaml'")]
)
@pytest.mark.parametrize("command", ["submit", "validate"])
def test_a_file_that_holds_no_mapping_is_bad_input(
    tuner: Tuner, tmp_path: Path, capsys: Shown, command: str, text: str, kind: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert tuner(command, str(path)) == 2
    assert f"must be a mapping of names to values, but got {kind}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "binary"])
def test_a_file_that_cannot_be_read_is_bad_input(
    tuner: Tuner, tmp_path: Path, capsys: Shown, content: bytes | None
) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    assert tuner("validate", str(path)) == 2
    assert str(path) in capsys.readouterr().err


def test_a_service_that_is_not_running_is_one_sentence(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.failures = [httpx2.ConnectError("[Errno 111] Connection refused")]
    assert tuner("submit", study_file) == 1
    assert capsys.readouterr().err.splitlines() == [
        "tuner: There is no tuner service at http://tuner.test (Connection refused). "
        "Start one with `tuner up`, or say where it is (--url, TUNER_URL)."
    ]


def test_validate_works_without_a_service(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    example = Path(__file__).parents[3] / "examples" / "digits-grid.yaml"
    service.failures = [httpx2.ConnectError("refused")]
    assert tuner("validate", str(example)) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{example} is a valid study: ")
    assert "no service is running" in shown.err


def test_validate_refuses_an_address_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.delenv("TUNER_URL", raising=False)
    example = Path(__file__).parents[3] / "examples" / "digits-grid.yaml"
    assert run(("validate", str(example), "--url", "ftp://nowhere")) == 2
    assert "must look like http://HOST:PORT" in capsys.readouterr().err


def test_validate_without_a_service_finds_faults(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    service.failures = [httpx2.ConnectError("refused")]
    assert tuner("validate", study_file) == 2
    told = capsys.readouterr().err
    assert "tuner: the definition is wrong in" in told
    assert told.startswith("(checked here, as no service is running: modules of workers are not")


def test_validate_tries_the_first_trial(
    tuner: Tuner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("def train(trial, x): print('hello'); return 1 / x")
    study = {
        "name": "own",
        "network": {"type": "own"},
        "objective": {"metric": "score", "direction": "maximize"},
        "parameters": {"x": {"type": "int", "low": 1, "high": 9}},
        "budget": {"trials": 3},
        "enqueue": [{"x": 1}],
    }
    (tmp_path / "own.json").write_text(json.dumps(study))
    arguments = ("validate", "--run", str(tmp_path / "own.json"), "--modules", str(tmp_path))
    assert tuner(*arguments) == 0
    shown = capfd.readouterr().out
    assert "is a valid study: 3 trials." in shown
    assert "measured     score 1" in shown


def test_modules_without_run_are_refused(
    tuner: Tuner,
    study_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Shown,
) -> None:
    assert tuner("validate", study_file, "--modules", str(tmp_path)) == 2
    assert f"--modules {tmp_path} is for --run" in capsys.readouterr().err
    monkeypatch.setenv("TUNER_MODULES_DIR", str(tmp_path))
    assert tuner("validate", study_file) == 0


def test_a_wrong_variable_is_named_before_the_first_trial(
    tuner: Tuner, study_file: str, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setenv("TUNER_PORT", "")
    assert tuner("validate", "--run", study_file) == 2
    assert capsys.readouterr().err.startswith("tuner: TUNER_PORT: ")


def test_an_unknown_study_is_bad_input(tuner: Tuner, capsys: Shown) -> None:
    assert tuner("status", "nix") == 2
    assert capsys.readouterr().err == "tuner: there is no study with the id or name 'nix'\n"


def test_a_missing_key_says_how_to_give_one(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.failures = [
        httpx2.Response(200, json={"status": "ok"}),
        problem(401, "unauthenticated", "This needs an API key"),
    ]
    assert tuner("list") == 1
    assert "(--api-key, or TUNER_API_KEY)" in capsys.readouterr().err


def test_a_wrong_option_is_bad_input(tuner: Tuner) -> None:
    assert tuner("list", "--bogus") == 2


@pytest.mark.parametrize("command", ["submit", "status"])
def test_a_timeout_without_watch_is_bad_input(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown, command: str
) -> None:
    assert tuner(command, study_file, "--timeout", "3") == 2
    assert capsys.readouterr().err == (
        "tuner: --timeout 3 ends --watch, which is not given: add --watch\n"
    )
    assert service.requests == []


def test_a_wrong_filter_is_not_called_a_definition(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    fault = {"pointer": "/query/state", "detail": "Input should be 'queued'", "code": "enum"}
    service.failures = [
        httpx2.Response(200, json={"status": "ok"}),
        problem(422, "invalid_input", "query/state: Input should be 'queued'", errors=[fault]),
    ]
    assert tuner("list", "--state", "bogus") == 2
    assert capsys.readouterr().err == "tuner: query/state: Input should be 'queued'\n"


def test_trials_are_a_table_of_whole_words(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    how = {"backend": "native", "group": "0123456789", "record": {"samples_per_second": 12345.6}}
    running = {"backend": None, "group": None, "record": {}}
    service.study.trials = [
        trial(0, value=0.5) | how,
        trial(1, "RUNNING") | running,
        trial(2, value=0.25) | how,
    ]
    tuner("trials", "digits")
    assert capsys.readouterr().out.splitlines() == [
        "trial  state     value  learning_rate  optimizer  seconds  samples/s  backend",
        "0      COMPLETE  0.5    0.1            adam       1.5      12,346     native",
        "1      RUNNING   -      0.2            adam       1.5      -          -",
        "2      COMPLETE  0.25   0.3            adam       1.5      12,346     native",
    ]
    tuner("trials", "digits", "--verbose")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[-4:] == ["backend", "slot", "attempt", "group"]
    assert [row.split()[-4:] for row in rows] == [
        ["native", "0", "1", "012345"],
        ["-", "1", "1", "-"],
        ["native", "2", "1", "012345"],
    ]


def test_a_trial_is_called_what_it_is_not_pruned_or_the_studys(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    kinds = ("diverged", "out_of_memory", "timeout")
    service.study.trials = [
        trial(at, "PRUNED") | {"failure": {"kind": kind, "message": "why"}}
        for at, kind in enumerate(kinds)
    ]
    service.study.trials.append(trial(3, "PRUNED", value=0.1))
    service.study.trials.append(trial(4, value=0.9) | {"foreign": True})
    tuner("trials", "digits")
    _, *rows = capsys.readouterr().out.splitlines()
    words = [row[7:].split("  ")[0] for row in rows]
    assert words == ["DIVERGED", "OUT OF MEMORY", "PRUNED", "PRUNED", "COMPLETE (foreign)"]


def test_markup_in_names_stays_text(tuner: Tuner, service: FakeService, capsys: Shown) -> None:
    service.study.name = "[red]x[/red]:smile:"
    tuner("list")
    assert "[red]x[/red]:smile:" in capsys.readouterr().out


def test_trials_can_be_limited(tuner: Tuner, service: FakeService, capsys: Shown) -> None:
    service.study.trials = [trial(n, value=0.5) for n in range(5)]
    tuner("trials", "digits", "--limit", "2", "--json")
    assert [t["number"] for t in json.loads(capsys.readouterr().out)] == [0, 1]


def test_a_failed_trial_says_why(tuner: Tuner, service: FakeService, capsys: Shown) -> None:
    failed = trial(0, "FAIL") | {"failure": {"kind": "user_code", "message": "boom"}}
    service.study.trials = [failed]
    tuner("trials", "digits")
    assert capsys.readouterr().out.splitlines()[1].endswith("user_code: boom")


def test_status_names_what_failed(tuner: Tuner, service: FakeService, capsys: Shown) -> None:
    service.study.trials = [trial(0, "FAIL")]
    service.printed = {"0": "Traceback\n"}
    tuner("status", "digits")
    shown = capsys.readouterr().out.splitlines()
    at = shown.index("  failures   user_code: boom (2 times)")
    assert shown[at + 1].split() == ["see", "`tuner", "logs", "digits", "0`"]


def test_watch_says_where_the_traceback_of_a_failure_is(
    tuner: Tuner, service: FakeService, study_file: str, capsys: Shown
) -> None:
    retried = trial(2, "FAIL") | {"slot": 2}
    service.study.trials = [trial(0, "FAIL"), trial(1, "FAIL") | {"slot": 0}, retried]
    service.study.steps = [ends("failed")]
    service.printed = {"1": "Traceback\n"}
    assert tuner("submit", study_file, "--watch") == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  failed by  user_code: boom (2 times)",
        "             see `tuner logs digits 1`",
    ]


@pytest.mark.parametrize("known", ["traceback", "nothing"])
def test_logs_that_would_say_nothing_are_not_pointed_at(
    tuner: Tuner, service: FakeService, capsys: Shown, known: str
) -> None:
    failure = {"kind": "user_code", "message": "boom"}
    if known == "traceback":
        failure["traceback"] = "Traceback: deep in there"
    service.study.trials = [trial(0, "FAIL") | {"failure": failure}]
    tuner("status", "digits")
    assert ("tuner logs" in capsys.readouterr().out) == (known == "traceback")

    assert tuner("logs", "digits", "0") == 0
    shown = capsys.readouterr()
    assert shown.err == "Trial 0 has printed nothing of its own.\n"
    assert shown.out == failure.get("traceback", "user_code: boom") + "\n"


def test_logs_of_a_trial_that_printed_are_that_alone(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.study.trials = [trial(0, "FAIL")]
    service.printed = {"0": "hello\n"}
    tuner("logs", "digits", "0")
    assert capsys.readouterr() == ("hello\n", "")


def test_best_of_nothing_says_so(tuner: Tuner, capsys: Shown) -> None:
    assert tuner("best", "digits") == 1
    assert "has no trial with a result: it is queued" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "state"), [("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")]
)
def test_actions_show_the_new_state(
    tuner: Tuner, service: FakeService, capsys: Shown, action: str, state: str
) -> None:
    assert tuner(action, "digits") == 0
    assert capsys.readouterr().out.startswith(f"digits {state}\n")


@pytest.mark.parametrize("state", ["running", "completed"])
def test_a_cancel_of_what_has_ended_says_that_it_did_nothing(
    tuner: Tuner, service: FakeService, capsys: Shown, state: str
) -> None:
    service.study.state = state
    assert tuner("cancel", "digits") == 0
    note = "Note: nothing was cancelled; digits is completed already.\n"
    assert capsys.readouterr().err == (note if state == "completed" else "")


def test_cancelled_slots_are_no_trials_that_ended(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.study.cancelled = 3
    service.study.state = "cancelled"
    tuner("list")
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["digits", "cancelled", "0/3"]
    tuner("status", "digits", "--watch")
    assert "0 of 3 trials done, 3 cancelled." in capsys.readouterr().out


def test_a_retry_says_which_attempt_it_is(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    retry = trial(1, "FAIL") | {"slot": 0, "attempt": 2}
    service.study.trials, service.study.state = [trial(0, "FAIL"), retry], "failed"
    tuner("status", "digits", "--watch")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["trial 0", "trial 1 (attempt 2)"]


def test_an_address_that_is_none_is_bad_input(capsys: Shown) -> None:
    assert run(["list", "--url", "127.0.0.1:8000"]) == 2
    assert "must look like http://HOST:PORT" in capsys.readouterr().err


def test_delete_asks_for_yes_off_a_terminal(
    tuner: Tuner, service: FakeService, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert tuner("delete", "digits") == 2
    assert service.sent("DELETE") == []
    assert tuner("delete", "digits", "--yes") == 0
    assert len(service.sent("DELETE")) == 1
    assert capsys.readouterr().out == "Deleted digits.\n"


def test_export_writes_to_stdout_or_a_file(tuner: Tuner, tmp_path: Path, capsys: Shown) -> None:
    assert tuner("export", "digits") == 0
    assert capsys.readouterr().out == "number,value\r\n"
    file = tmp_path / "trials.csv"
    assert tuner("export", "digits", "-o", str(file)) == 0
    assert file.read_bytes() == b"number,value\r\n"
    assert tuner("export", "digits", "-o", str(tmp_path / "no" / "such.csv")) == 2


def test_watch_draws_on_a_terminal(
    tuner: Tuner, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(show, "out", Console(file=screen, force_terminal=True, width=100))
    service.study.reason = "waiting for a worker"
    service.study.steps = [starts(0), *(finishes(n, 0.5 + n / 10) for n in range(3)), ends()]

    assert tuner("status", "digits", "--watch") == 0

    drawn = screen.getvalue()
    for words in ("3 of 3 done", "best 0.7 (trial 2)", "Ctrl-C detaches", "1 trial running"):
        assert words in drawn


def test_one_trial_is_shown_with_its_curve(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    one = trial(0, value=0.5) | {"epochs": [{"step": n, "loss": 1.0 / n} for n in (1, 2, 4)]}
    service.study.trials = [one]
    assert tuner("trial", "digits", "0") == 0
    shown = capsys.readouterr().out
    assert "trial 0: 0.5" in shown
    assert "loss    █▃▁  1 to 0.25" in shown


def test_trials_are_compared_by_what_differs(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.study.trials = [trial(0, value=0.5), trial(1, value=0.7)]
    assert tuner("compare", "digits", "0", "1") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["value", "0.5", "0.7"]
    assert [row[0] for row in rows[3:5]] == ["learning_rate", "optimizer"]
    assert tuner("compare", "digits", "0", "0") == 2


def test_the_best_trials_are_asked_for_by_the_direction(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    service.study.trials = [trial(0, value=0.5), trial(1, value=0.7)]
    assert tuner("trials", "digits", "--best", "1") == 0
    asked = service.sent("GET")[-1].url.params
    assert (asked["sort"], asked["state"]) == ("-value", "COMPLETE")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_logs_are_followed_to_the_trials_end(
    tuner: Tuner, service: FakeService, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.study.trials = [trial(0, "RUNNING")]
    service.printed["0"] = "one\n"

    def later(seconds: float) -> None:
        del seconds
        service.printed["0"] += "two\n"
        service.study.trials = [trial(0, value=0.5)]

    monkeypatch.setattr("tuner_service.cli.studies.time.sleep", later)
    assert tuner("logs", "digits", "0", "--follow") == 0
    assert capsys.readouterr().out == "one\ntwo\n"
