"""`tuner model --export`: what the model's own script says is what is said."""

from pathlib import Path

import pytest

from tuner_service.cli.exporting import ExportFailedError, export

WRITES = "from pathlib import Path\nPath(__file__).with_name('model.pt2').touch()\n"


def test_the_script_of_the_model_is_run(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text(WRITES)
    assert export(tmp_path) == tmp_path / "model.pt2"
    assert (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; print('noise', file=sys.stderr); sys.exit('it branches')", "it branches"),
        ("import nothing_like_torch", "No module named 'nothing_like_torch'"),
        ("import os; os.kill(os.getpid(), 9)", "export.py was killed by SIGKILL"),
        ("raise SystemExit(7)", "export.py ended with exit code 7"),
        (None, "only a training loop knows its network"),
    ],
)
def test_a_model_that_cannot_be_exported_is_there_all_the_same(
    tmp_path: Path, script: str | None, said: str
) -> None:
    (tmp_path / "model.pt2").write_text("of the weights that were here before")
    if script is not None:
        (tmp_path / "export.py").write_text(script)
    with pytest.raises(ExportFailedError, match=said) as caught:
        export(tmp_path)
    assert f"{tmp_path} is complete but for model.pt2" in str(caught.value)
    assert "noise" not in str(caught.value)
    assert not (tmp_path / "model.pt2").exists()


def test_the_script_of_the_model_gets_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_API_KEY", "secret")
    monkeypatch.setenv("OTHER", "kept")
    (tmp_path / "export.py").write_text(
        "import os, sys; sys.exit(str((os.environ.get('TUNER_API_KEY'), os.environ['OTHER'])))"
    )
    with pytest.raises(ExportFailedError, match=r"\(None, 'kept'\)"):
        export(tmp_path)
