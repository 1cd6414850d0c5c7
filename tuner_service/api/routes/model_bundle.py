"""A trained model as a zip: weights, what they came from, and a file that predicts with them."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from tuner_service.errors import NotKeptError
from tuner_service.reads.trial_files import TrialFiles, read_note
from tuner_service.reads.views import TrialView

IN_MEMORY: Final = 16 << 20
CHUNK: Final = 1 << 18
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same model is the same zip


def write_bundle(files: TrialFiles, trial: TrialView) -> IO[bytes]:
    """Return the zip, open at its beginning; large ones lie in a temporary file.

    Raises:
        NotKeptError: The trial's weights were not kept.
    """
    if files.model is None:
        raise NotKeptError(
            f"the weights of trial {files.number} were not kept; keep_models says of how many of "
            "the best trials they are"
        )
    note = read_note(files.model)
    bundle: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  the answer closes it
    try:
        with zipfile.ZipFile(bundle, "w") as archive:
            for name, text in texts(files, trial, note).items():
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
            _add_weights(archive, files.model)
    except BaseException:
        bundle.close()
        raise
    bundle.seek(0)
    return bundle


def texts(files: TrialFiles, trial: TrialView, note: dict[str, Any]) -> dict[str, str]:
    """Return the files beside the weights."""
    described = {key: value for key, value in note.items() if key not in ("files", "preprocessing")}
    return {
        "definition.json": _json(files.definition),
        "trial.json": trial.model_dump_json(indent=2) + "\n",
        "model.json": _json({"study": files.study, "trial": files.number, **described}),
        "preprocessing.json": _json(note["preprocessing"]),
        **{name: str(text) for name, text in note.get("files", {}).items()},
    }


def chunks(bundle: IO[bytes]) -> Iterator[bytes]:
    """Yield the zip piece by piece, and close it."""
    with bundle:
        while piece := bundle.read(CHUNK):
            yield piece


def _add_weights(archive: zipfile.ZipFile, model: Path) -> None:
    entry = zipfile.ZipInfo("model.safetensors", _EPOCH)
    try:
        with model.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
            while piece := source.read(CHUNK):
                target.write(piece)
    except FileNotFoundError as error:  # a better trial has finished meanwhile
        raise NotKeptError(f"the model file {model.name} was just outdone; ask again") from error


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
