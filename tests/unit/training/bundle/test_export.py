"""A model as one program: what it gives, and what is said where there can be none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.training.bundle import export, predict
from workers.training.nets import networks
from workers.training.trials.best_models import scripts

LOAD = """
import numpy, sys, torch
program = torch.export.load(sys.argv[1]).module()
rows = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], torch.cat([program(rows[:1]), program(rows[1:])]).detach().numpy())
"""


def model(network: Any, shape: tuple[int, ...], outputs: int, *, numbers: bool = False) -> Any:
    if isinstance(network, dict):
        torch.manual_seed(0)
        network = networks.build(network, inputs=shape, outputs=outputs)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    columns = [1] * (len(shape) - 1)
    mean = np.full([shape[0], *columns] if len(shape) == 3 else [*columns, shape[-1]], 0.5)
    return predict.Model(
        network=network.eval(),
        loss="mse" if numbers else "cross_entropy",
        shape=shape,
        mean=mean,
        deviation=np.full_like(mean, 2.0),
        classes=None if numbers else ["a", "b", "c"][: max(outputs, 2)],
        columns=None,
    )


@pytest.mark.parametrize(
    ("network", "shape", "outputs"),
    [
        ({"type": "mlp", "norm": "batch"}, (4,), 3),
        ({"type": "mlp"}, (4,), 1),
        ({"type": "cnn", "norm": "layer", "channels": 2}, (1, 6, 6), 3),
        ({"type": "lstm", "bidirectional": True, "hidden_units": 4}, (3, 2), 3),
        ({"type": "transformer", "width": 8, "layers": 1}, (3, 2), 3),
    ],
)
def test_the_program_gives_the_models_scores(
    tmp_path: Path, network: dict[str, Any], shape: tuple[int, ...], outputs: int
) -> None:
    one = model(network, shape, outputs)
    export.export(one, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    rows = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    for count in (1, 5):
        with torch.no_grad():
            scores = program(torch.from_numpy(rows[:count])).numpy()
        np.testing.assert_allclose(scores, one.scores(rows[:count]), rtol=1e-5, atol=1e-6)


def test_encoded_rows_are_what_the_program_of_a_table_takes(tmp_path: Path) -> None:
    columns: list[dict[str, Any]] = [
        {"kind": "one_hot", "categories": ["a", "b"], "fill": None},
        {"kind": "number", "fill": None},
    ]
    one = dataclasses.replace(model({"type": "mlp"}, (3,), 3), encoding=columns)
    export.export(one, tmp_path / "model.pt2")
    rows = np.array([["a", "1"], ["b", "2.5"]], dtype=object)
    encoded = torch.from_numpy(predict.encode(rows, columns).astype(np.float32))
    program = torch.export.load(tmp_path / "model.pt2").module()
    np.testing.assert_allclose(
        program(encoded).detach().numpy(), one.scores(rows), rtol=1e-5, atol=1e-6
    )


def test_the_program_is_checked_against_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = export.Whole.forward
    monkeypatch.setattr(export.Whole, "forward", lambda self, rows: forward(self, rows + 1.0))
    with pytest.raises(ValueError, match="gives other numbers"):
        export.export(model({"type": "mlp"}, (4,), 3), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x) + torch.zeros(len(x), 3)


class Branching(Fixed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x) if x.sum() > 0 else -self.line(x)


@pytest.mark.parametrize(
    ("network", "said"),
    [(Fixed(), "fixes the number of rows"), (Branching(), "ataDependent")],
)
def test_what_does_not_export_is_told(tmp_path: Path, network: nn.Module, said: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever torch.export raises
        export.export(model(network, (4,), 3), tmp_path / "model.pt2")
    assert said in export.reason(caught.value)  # type: ignore[arg-type]
    assert not (tmp_path / "model.pt2").exists()


def test_the_files_work_where_nothing_else_is(tmp_path: Path) -> None:
    """As `tuner model` writes them, for a network of one's own, run in clean processes."""
    source = "from torch import nn\ndef build(inputs, outputs): return nn.Linear(2, outputs)\n"
    files = {**scripts(), "network.py": source}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    told = {"network": {"type": "own"}, "build": {"inputs": [2], "outputs": 3}, "loss": "mse",
            "input_shape": [2], "outputs": 3}  # fmt: skip
    prepared = {"mean": [1.0, 2.0], "deviation": [3.0, 4.0], "classes": None, "columns": None}
    (tmp_path / "model.json").write_text(json.dumps(told))
    (tmp_path / "preprocessing.json").write_text(json.dumps(prepared))
    save_file(dict(nn.Linear(2, 3).state_dict()), tmp_path / "model.safetensors")
    rows = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    run(tmp_path / "export.py")
    (tmp_path / "load.py").write_text(LOAD)
    run(tmp_path / "load.py", tmp_path / "model.pt2", tmp_path / "rows.npy", tmp_path / "out.npy")
    wanted = predict.Model.load(tmp_path).scores(rows)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-5, atol=1e-6)


def run(*command: Path) -> None:
    subprocess.run([sys.executable, "-I", *map(str, command)], check=True, timeout=300)
