"""`tuner doctor`: what this machine can do."""

import os
from functools import partial
from typing import Annotated, Any

import typer

from tuner_service.cli import show
from tuner_service.cli.codes import DONE, FAILED
from tuner_service.cli.options import AsJson, DataDir
from tuner_service.cli.service import Host, Port, settings_of

SIGNS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM", "absent": "-"}


def doctor(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Train one trial for one epoch, too.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do, and what to do about what it cannot."""
    from tuner_service.cli.preflight import preflight  # noqa: PLC0415 - keeps `tuner status` quick
    from tuner_service.doctor import Finding, examine  # noqa: PLC0415 - as above

    if data_dir is not None:
        os.environ["TUNER_DATA_DIR"] = str(data_dir.absolute())  # the trial reads it
    settings = settings_of(host=host, port=port)
    try_trial = partial(preflight, modules=None, device="auto") if trial else None
    found: list[Finding] = []
    for finding in examine(settings, try_trial):
        found.append(finding)
        if not as_json:
            _tell(finding)
    if as_json:
        show.as_json([one.as_dict() for one in found])
    failed = any(one.state == "problem" for one in found)
    raise typer.Exit(FAILED if failed else DONE)


def _tell(finding: Any) -> None:
    show.out.print(f"{SIGNS[finding.state]:<8} {finding.name:<9} {finding.detail}")
    if finding.remedy:
        show.out.print(f"{'':<18} -> {finding.remedy}")
