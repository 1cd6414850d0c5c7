"""`tuner submit` and `tuner validate`: what is done with a study file."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tuner_service.cli import show
from tuner_service.cli.codes import BAD_INPUT
from tuner_service.cli.options import (
    ApiKey,
    AsJson,
    DefinitionFile,
    Device,
    Modules,
    Timeout,
    Url,
    Watch,
    check_timeout,
    connect,
    url_option,
)
from tuner_service.cli.watch import watch_to_end
from tuner_service.client import (
    DEFAULT_URL,
    AddressError,
    ApiError,
    ConnectionFailedError,
    StudyStatus,
)
from tuner_service.errors import DefinitionError, InputError


def submit(
    file: DefinitionFile,
    watching: Watch = False,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Submit a study."""
    check_timeout(timeout, watching)
    text = _text(file)
    with _faults_located(file, text):
        definition = _study(text)
    with closing(connect(url, api_key)) as client:
        with _faults_located(file, text):
            study = client.submit(definition)
        if not as_json:
            _announce(study.last_status, url, watching)
        if watching:
            raise typer.Exit(watch_to_end(study, url, timeout=timeout, as_json=as_json))
        if as_json:
            show.as_json(study.last_status.data)


def validate(
    given: typer.Context,
    file: DefinitionFile,
    run: Annotated[
        bool, typer.Option("--run", help="Try the first trial here, for one batch; needs torch.")
    ] = False,
    modules: Modules = None,
    device: Device = "auto",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Check a study file and say what it would do, without submitting it."""
    text = _text(file)
    with _faults_located(file, text):
        definition = _study(text)
        if run:
            _try_here(definition, file, modules, device, as_json)
            return
        _refuse_modules(given, modules)
        try:
            with closing(connect(url, api_key)) as client:
                plan = client.validate(definition)
        except AddressError:
            raise
        except ConnectionFailedError:
            _validate_here(definition, file, as_json)
            return
    if as_json:
        show.as_json(plan)
        return
    show.out.print(f"{file} is a valid study: {plan['slots']} trials.")
    show.pairs(_plan_lines(plan))


def _refuse_modules(given: typer.Context, modules: Path | None) -> None:
    """Refuse the option; its variable is the machine's, and says nothing of this command."""
    source = given.get_parameter_source("modules")
    if source is not None and source.name == "COMMANDLINE":
        raise InputError(
            f"--modules {modules} is for --run; otherwise the modules of the service's workers "
            "count: add --run, or leave --modules out"
        )


@contextmanager
def _faults_located(file: Path, text: str) -> Iterator[None]:
    """Tell the faults of a definition with their lines in the file."""
    from tuner_service.definition import lines_of  # noqa: PLC0415 - keeps `tuner status` quick

    try:
        yield
    except DefinitionError as error:
        faults = [fault.as_dict() for fault in error.faults]
    except ApiError as error:
        if error.code != DefinitionError.code or not error.errors:
            raise
        faults = error.errors
    else:
        return
    show.faults(faults, "stdin" if str(file) == "-" else str(file), lines_of(text))
    raise typer.Exit(BAD_INPUT)


def _study(text: str) -> dict[Any, Any]:
    from tuner_service.definition import load_study  # noqa: PLC0415 - keeps `tuner status` quick

    return load_study(text)


def _text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text in UTF-8") from error


def _try_here(
    definition: Any, file: Path, modules: Path | None, device: str, as_json: bool
) -> None:
    from tuner_service.cli.preflight import lines, preflight  # noqa: PLC0415 - as below

    findings = preflight(definition, modules=modules, device=device)
    if as_json:
        show.as_json(findings)
        return
    show.out.print(f"{file} is a valid study: {findings['slots']} trials.")
    show.pairs(lines(findings))


def _validate_here(definition: Any, file: Path, as_json: bool) -> None:
    from tuner_service.definition import (  # noqa: PLC0415 - keeps `tuner status` quick
        parse_definition,
        total_slots,
    )

    show.err.print(
        "(checked here, as no service is running: modules of workers are not known; "
        "`--run --modules DIR` reads them)"
    )
    slots = total_slots(parse_definition(definition))
    if as_json:
        show.as_json({"slots": slots})
    else:
        show.out.print(f"{file} is a valid study: {slots} trials.")


def _announce(status: StudyStatus, url: str, watching: bool) -> None:
    for warning in status.warnings:
        show.err.print(f"Note: {warning}")
    if status.reason and not watching:  # watching says it, too
        show.err.print(f"Note: the study is {status.reason}")
    show.out.print(f"Submitted {status.name} ({status.id}), {status.progress.total} trials.")
    if not watching:
        show.out.print(f"Follow it with `tuner status {status.name} --watch{url_option(url)}`.")


def _plan_lines(plan: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("parameters", ", ".join(plan["parameters"])),
        ("at once", f"up to {plan['parallel_trials']} trials"),
    ]
    free, on_cpu = plan["fusible"], plan["fusible_on_cpu"]
    if free or on_cpu:
        lines.append(("fused", f"trials may differ in {', '.join([*free, *on_cpu])}"))
        if on_cpu:
            lines.append(("on a GPU", f"they train in groups by {', '.join(on_cpu)}"))
        if plan["structural"]:
            lines.append(("in groups", f"by {', '.join(plan['structural'])}"))
    lines += [("note", warning) for warning in plan["warnings"]]
    return lines
