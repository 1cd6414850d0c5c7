"""`tuner update` and `tuner coverage`, against a service of a few dictionaries."""

import json

import pytest

from tests.unit.cli.test_studies import Shown, Tuner, service, tuner
from tests.unit.client.fake_service import FakeService, trial

__all__ = ["service", "tuner"]


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["--trials", "9"], {"trials": 9}),
        (["--timeout", "2h", "--priority", "-5"], {"timeout": "2h", "priority": -5}),
        (
            ["--parallel-trials", "2", "--max-failures", "0"],
            {"parallel_trials": 2, "max_failures": 0},
        ),
        (
            ["--tag", "owner=me", "--tag", "a=b=c"],
            {"tags": {"old": "1", "owner": "me", "a": "b=c"}},
        ),
        (["--tag", "old=2"], {"tags": {"old": "2"}}),
    ],
    ids=str,
)
def test_update_sends_what_is_given(
    tuner: Tuner, service: FakeService, arguments: list[str], sent: dict[str, object]
) -> None:
    service.study.tags = {"old": "1"}
    assert tuner("update", "digits", *arguments) == 0
    (request,) = service.sent("PATCH")
    assert json.loads(request.content) == sent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Nothing to change"),
        (["--tag", "owner"], "A tag looks like KEY=VALUE, but got 'owner'"),
    ],
)
def test_an_update_of_nothing_is_bad_input(
    tuner: Tuner, service: FakeService, capsys: Shown, arguments: list[str], words: str
) -> None:
    assert tuner("update", "digits", *arguments) == 2
    assert words in capsys.readouterr().err
    assert service.requests == []


def test_coverage_names_the_failed_points(
    tuner: Tuner, service: FakeService, capsys: Shown
) -> None:
    assert tuner("coverage", "digits") == 0
    assert capsys.readouterr().out == "3 in all: 3 done\n"
    service.study.trials = [trial(0, "FAIL")]
    assert tuner("coverage", "digits") == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 in all: 1 done, 2 failed",
        "point  x    failure",
        "0      0.5  user_code: boom",
        "0      0.5  user_code: boom",
    ]
    assert tuner("coverage", "digits", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["failed_points"]) == 2
