"""Where a trial's printing goes."""

# ruff: noqa: T201

import sys
from pathlib import Path

import pytest

from workers.training.trials import log as trial_log
from workers.training.trials.log import printing_to


def test_printing_goes_to_the_file_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "deep" / "1.log"
    for text in ("one", "two é"):
        with printing_to(str(log)):
            print(text)
            print("aside", file=sys.stderr)
    print("after")
    assert log.read_text(encoding="utf-8") == "one\naside\ntwo é\naside\n"
    assert capsys.readouterr().out == "after\n"


def test_silence_makes_no_file(tmp_path: Path) -> None:
    with printing_to(str(tmp_path / "1.log")):
        pass
    assert not list(tmp_path.iterdir())


def test_a_flood_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_log, "MAX_BYTES", 1000)
    log = tmp_path / "1.log"
    for _ in range(3):
        with printing_to(str(log)):
            for _ in range(100):
                print("x" * 99)
    assert log.stat().st_size < 1000 + 3 * 100 + 3 * len(trial_log._CUT)
    assert "left out" in log.read_text()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with printing_to(str(blocked / "1.log")):
        print("lost")
        print("lost too")


@pytest.mark.parametrize("flush", [False, True])
def test_a_full_disk_stops_nothing(*, flush: bool) -> None:
    with printing_to("/dev/full"):
        print("lost", flush=flush)
        print("x" * 100_000, flush=flush)  # more than the file's buffer


def test_what_is_raised_inside_comes_out(tmp_path: Path) -> None:
    log = tmp_path / "1.log"

    def talk_and_raise() -> None:
        with printing_to(str(log)):
            print("before")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        talk_and_raise()
    assert log.read_text() == "before\n"
