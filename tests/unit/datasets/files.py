"""Small files of every format, made on the spot."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def picture(size: tuple[int, int], value: int, *, form: str = "PNG", mode: str = "RGB") -> bytes:
    """Return an image (width, height) of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def flowers(rows: int = 12, size: tuple[int, int] = (6, 4)) -> dict[str, bytes]:
    """Return images of two classes: `rose` is bright, `tulip` dark."""
    values = {"rose": 200, "tulip": 20}
    return {
        f"flowers/{label}/{i}.{'png' if i % 2 else 'jpg'}": picture(
            size, value + i, form="PNG" if i % 2 else "JPEG"
        )
        for label, value in values.items()
        for i in range(rows // 2)
    }
