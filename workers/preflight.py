"""A study's first trial, tried for one batch: `tuner validate --run`.

    python -m workers.preflight --result FD --data-dir DIR [--modules DIR] … < DEFINITION.json

The definition comes by standard input, the answer goes to the pipe: `{"findings": …}`, `{"faults":
[…]}` of the definition, or `{"failure": {message, traceback}}`. Standard output and error belong to
the user's code.
"""

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tuner_service.data_directory import DataDirectory
from tuner_service.datasets import DatasetStore
from tuner_service.definition import parse_definition, resolve, resolve_user_loop, total_slots
from tuner_service.errors import DataError, DefinitionError
from tuner_service.search.samplers.uniform import first_point
from workers.offers import offers_of
from workers.options import add_training_options, data_directories
from workers.trainer.main import pick_device
from workers.training.data import STREAMED, Room
from workers.training.engine.preflight import PreflightError, preflight, preflight_user_loop

LOOP_SECONDS = 60.0


def run(data: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the answer about a definition."""
    directory = DataDirectory(options.data_dir)
    modules = offers_of(options.modules, directory.programs).read()
    uploads = DatasetStore(directory.datasets, max_bytes=0).all()
    try:
        definition = parse_definition(
            data,
            modules=modules.sound,
            uploads={one.name: one for one in uploads},
            refused=modules.refused,
        )
    except DefinitionError as error:
        return {"faults": [[f.pointer, f.detail, f.code] for f in error.faults]}
    point, device = first_point(definition), pick_device(options.device)
    try:
        if definition.is_user_loop:
            findings = preflight_user_loop(
                resolve_user_loop(definition, point),
                device=device,
                modules_dir=options.modules,
                programs=(directory.programs,),
                timeout_seconds=LOOP_SECONDS,
            )
        else:
            findings = preflight(
                resolve(definition, point),
                room=Room(device, options.data_dir / STREAMED),
                data_dirs=data_directories(options),
                modules_dir=options.modules,
            )
    except PreflightError as error:
        return {"failure": {"message": str(error), "traceback": error.traceback}}
    except DataError as error:  # its sentence says what to change; where we noticed says nothing
        return {"failure": {"message": str(error), "traceback": None}}
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a user's code raises
        text = "".join(traceback.format_exception(error))
        said = f"{type(error).__name__}: {error}"
        return {"failure": {"message": said, "traceback": text}}
    slots = total_slots(definition)
    return {"findings": {**findings, "parameters": point, "device": device.type, "slots": slots}}


def main(arguments: Sequence[str]) -> None:
    """Answer about the definition on standard input."""
    parser = argparse.ArgumentParser(prog="workers.preflight")
    parser.add_argument("--result", type=int, required=True)
    add_training_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    answer = run(json.load(sys.stdin), options)
    with os.fdopen(options.result, "w") as pipe:
        json.dump(answer, pipe)


if __name__ == "__main__":
    main(sys.argv[1:])
