"""Export this model as one program of `torch.export`, which needs no Python source to run.

    python export.py            writes model.pt2 beside this file

    program = torch.export.load("model.pt2").module()
    program(rows)               # [n, …inputs] -> what Model.scores returns, for any n

Rows are raw numbers, as `predict.py` takes them; of a table with categories or gaps, what
`predict.encode` makes of them. The program is checked against `predict.py` before it is written.
"""

# Copied beside the weights like `predict.py`, so it must stand alone as well.

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROGRAM = "model.pt2"
TRIED_ROWS = (1, 2, 7)


class Whole(nn.Module):
    """Scaling, the network, and what makes scores of its outputs."""

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = model.network
        self.classes = model.classes is not None
        self.register_buffer("mean", torch.from_numpy(model.mean))
        self.register_buffer("deviation", torch.from_numpy(model.deviation))
        self.target = model.target
        for name in ("mean", "deviation"):
            constant = torch.tensor((model.target or {}).get(name, 0.0), dtype=torch.float64)
            self.register_buffer(f"target_{name}", constant)

    def forward(self, rows: Tensor) -> Tensor:
        """[n, …inputs] -> [n, classes] probabilities, or [n, targets] numbers."""
        scaled = (rows.double() - self.mean) / self.deviation
        outputs: Tensor = self.network(scaled.to(rows.dtype))
        if not self.classes and self.target is not None:
            numbers = outputs.double() * self.target_deviation + self.target_mean
            return numbers.exp() if self.target["log"] else numbers
        if not self.classes:
            return outputs
        if outputs.shape[1] == 1:  # one logit for two classes
            second = torch.sigmoid(outputs)
            return torch.cat([1 - second, second], dim=1)
        return torch.softmax(outputs, dim=1)


def export(model: Any, path: Path) -> None:
    """Write the model's program.

    Args:
        model: Of `predict.Model`.

    Raises:
        ValueError: What was exported does not agree with the model.
        Exception: Whatever `torch.export` raises of a network that it cannot take.
    """
    whole = Whole(model).eval()
    numbers = dataclasses.replace(model, encoding=None)  # rows come encoded
    dtype = next(model.network.parameters()).dtype
    example = torch.rand(3, *model.shape, dtype=dtype)
    rows = torch.export.Dim("rows", min=1)
    with torch.no_grad():
        program = torch.export.export(whole, (example,), dynamic_shapes=({0: rows},), strict=False)
        runs = program.module()
        for count in TRIED_ROWS:
            tried = torch.rand(count, *model.shape, dtype=dtype)
            wanted = torch.from_numpy(numbers.scores(tried.numpy()))
            if not torch.allclose(runs(tried), wanted, rtol=1e-5, atol=1e-6):
                raise ValueError(f"the exported program gives other numbers for {count} rows")
    torch.export.save(program, path)


def reason(error: Exception) -> str:
    """Return in one line why a network could not be exported."""
    said = str(error).strip()
    if "specialized it to be a constant" in said:
        return "its code fixes the number of rows; take that from x.shape[0], not from len(x)"
    return f"{type(error).__name__}: {said.partition(chr(10))[0]}"


def main() -> None:
    """Export the model beside this file."""
    place = Path(__file__).resolve().parent
    source = importlib.util.spec_from_file_location("predict", place / "predict.py")
    if source is None or source.loader is None:
        raise FileNotFoundError(f"there is no predict.py in {place}")
    predict = importlib.util.module_from_spec(source)
    source.loader.exec_module(predict)
    try:
        export(predict.Model.load(place), place / PROGRAM)
    except Exception as error:  # noqa: BLE001  a user's network may not export for any reason
        sys.exit(f"this network cannot be exported: {reason(error)}")
    sys.stdout.write(f"{place / PROGRAM}\n")


if __name__ == "__main__":
    main()
