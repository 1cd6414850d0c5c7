"""What torch can do in this process, as one JSON object on standard output, for `tuner doctor`.

    python -m workers.device_report

Asked of torch, not of nvidia-smi: a driver that torch was not built for is listed by that, too. Run
as a process of its own, because a broken driver may end it, and CUDA cannot be had without threads.
"""

import json
import sys
from typing import Any

import torch


def report() -> dict[str, Any]:
    """Return torch's version, the CUDA it was built for, and what it did on each GPU."""
    found: dict[str, Any] = {"version": torch.__version__, "cuda_build": torch.version.cuda}
    try:
        found["gpus"] = [_tried(number) for number in range(torch.cuda.device_count())]
        if not found["gpus"]:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # says why there is none
    except Exception as error:  # noqa: BLE001  whatever a driver does
        found["gpus"] = []
        found["reason"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _tried(number: int) -> str:
    """Return a GPU's name, once it has multiplied."""
    device = torch.device("cuda", number)
    ones = torch.ones(8, 8, device=device)
    product = float((ones @ ones).sum().item())
    if product != 512.0:
        raise RuntimeError(f"GPU {number} multiplies wrongly: 512 expected, but got {product:g}")
    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(report())}\n")
