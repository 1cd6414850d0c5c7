"""Commands on studies, all over REST."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tuner_service.cli import show
from tuner_service.cli.codes import BAD_INPUT, DETACHED, code_of_study
from tuner_service.cli.options import (
    ApiKey,
    AsJson,
    DefinitionFile,
    Device,
    Modules,
    Ref,
    Url,
    connect,
    url_option,
)
from tuner_service.cli.watch import detached_sentence, watch
from tuner_service.client import (
    DEFAULT_URL,
    ConnectionFailedError,
    StudyHandle,
    StudyStatus,
)
from tuner_service.errors import InputError

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show how it goes until it ends.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", help="Stop watching after this long (exit code 124).", metavar="SECONDS", min=0
    ),
]


def submit(
    file: DefinitionFile,
    watching: Watch = False,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Submit a study."""
    _check_timeout(timeout, watching)
    definition = _read(file)
    with closing(connect(url, api_key)) as client:
        study = client.submit(definition)
        if not as_json:
            _announce(study.last_status, url, watching)
        if watching:
            raise typer.Exit(_watch_to_end(study, url, timeout=timeout, as_json=as_json))
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
    definition = _read(file)
    if not run:
        _refuse_modules(given, modules)
    if run:
        _try_here(definition, file, modules, device, as_json)
        return
    try:
        with closing(connect(url, api_key)) as client:
            plan = client.validate(definition)
    except ConnectionFailedError:
        _validate_here(definition, file, as_json)
        return
    if as_json:
        show.as_json(plan)
        return
    show.out.print(f"{file} is a valid study: {plan['slots']} trials.")
    show.pairs(_plan_lines(plan))


def list_studies(
    state: Annotated[str | None, typer.Option(help="Only studies in this state.")] = None,
    tag: Annotated[
        str | None, typer.Option(help="Only studies with this tag: key or key=value.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List the studies, the newest first."""
    with closing(connect(url, api_key)) as client:
        found = [study.last_status for study in client.studies(state=state, tag=tag)]
    if as_json:
        show.as_json([study.data for study in found])
    elif found:
        show.table(("name", "state", "trials", "best", "created"), [_row(s) for s in found])
    else:
        show.err.print("No studies. Submit one with `tuner submit FILE`.")


def status(
    ref: Ref,
    watching: Watch = False,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show how a study stands; --watch follows it to its end."""
    _check_timeout(timeout, watching)
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if watching:
            raise typer.Exit(_watch_to_end(study, url, timeout=timeout, as_json=as_json))
        if as_json:
            show.as_json(study.last_status.data)
        else:
            show.status(study.last_status, _failures(study, url))


def trials(
    ref: Ref,
    state: Annotated[
        str | None, typer.Option(help="Only RUNNING, COMPLETE, PRUNED or FAIL trials.")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="number, -number, value or -value (- is downwards).")
    ] = "number",
    limit: Annotated[int, typer.Option(help="At most this many; 0 shows all.", min=0)] = 0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show a study's trials."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        pages = study.iter_trials(state=state.upper() if state else None, sort=sort)
        found = [trial for trial, _ in zip(pages, range(limit or sys.maxsize), strict=False)]
    if as_json:
        show.as_json([trial.data for trial in found])
    elif found:
        show.trials(found)
    else:
        kind = f"{state.upper()} trials" if state else "trials yet"
        show.err.print(f"Study {study.name} has no {kind}.")


def best(ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the best trial (with several objectives: those that no other dominates)."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        found = study.best_trials() or [study.best_trial]  # the latter raises, and says why
    if as_json:
        show.as_json([trial.data for trial in found] if len(found) > 1 else found[0].data)
        return
    for trial in found:
        show.best(trial)


def pause(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Pause a study; running trials are saved and go on after `resume`."""
    with closing(connect(url, api_key)) as client:
        _show_status(client.study(ref).pause(), as_json)


def resume(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Resume a paused study."""
    with closing(connect(url, api_key)) as client:
        _show_status(client.study(ref).resume(), as_json)


def cancel(
    ref: Ref, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Cancel a study: running trials are stopped, finished ones kept."""
    with closing(connect(url, api_key)) as client:
        _show_status(client.study(ref).cancel(), as_json)


def delete(
    ref: Ref,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Delete a study that is not running, with its trials and models."""
    with closing(connect(url, api_key)) as client:
        study = client.study(ref)
        if not yes and not _confirmed(study.last_status):
            raise typer.Exit(BAD_INPUT)
        study.delete()
    show.out.print(f"Deleted {study.name}.")


def export(
    ref: Ref,
    form: Annotated[
        Literal["csv", "json"], typer.Option("--format", "-f", help="csv or json.")
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; by default stdout.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write all trials as CSV or JSON."""
    with closing(connect(url, api_key)) as client:
        text = client.study(ref).export(form)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"Cannot write {output}: {error.strerror}") from error
    show.err.print(f"Wrote {output}.")


def model(
    ref: Ref,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A directory; it is made.", metavar="DIR")
    ],
    trial: Annotated[
        int | None, typer.Option("--trial", help="A trial's number; by default the best.", min=0)
    ] = None,
    exporting: Annotated[
        bool,
        typer.Option("--export", help="Write model.pt2 too, of torch.export; needs torch here."),
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write the best trial's model: weights, and a Python file that predicts with them."""
    with closing(connect(url, api_key)) as client:
        client.study(ref).model(output, trial=trial)
    if (output / "predict.py").exists():
        show.err.print(f"Wrote {output}. Try: python {output / 'predict.py'} ROWS.csv")
    else:  # of a training loop, which alone knows its network
        show.err.print(f"Wrote {output}: weights, and the loop that trained them in loop.py.")
    if exporting:
        from tuner_service.cli.exporting import export  # noqa: PLC0415 - keeps `tuner status` quick

        show.err.print(f"Exported {export(output)}.")


def logs(
    ref: Ref,
    number: Annotated[int, typer.Argument(help="The trial's number.", metavar="NUMBER", min=0)],
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", help="Only the last lines.", min=0)
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show what a trial printed."""
    with closing(connect(url, api_key)) as client:
        text = client.study(ref).logs(number, tail=tail)
    sys.stdout.write(text)


def _check_timeout(timeout: float | None, watching: bool) -> None:
    if timeout is not None and not watching:
        raise InputError(f"--timeout {timeout:g} ends --watch, which is not given: add --watch")


def _refuse_modules(given: typer.Context, modules: Path | None) -> None:
    """Refuse the option; its variable is the machine's, and says nothing of this command."""
    source = given.get_parameter_source("modules")
    if source is not None and source.name == "COMMANDLINE":
        raise InputError(
            f"--modules {modules} is for --run; otherwise the modules of the service's workers "
            "count: add --run, or leave --modules out"
        )


def _read(file: Path) -> dict[Any, Any]:
    from tuner_service.definition import load_study  # noqa: PLC0415 - keeps `tuner status` quick

    if str(file) == "-":
        return load_study(sys.stdin.read())
    try:
        return load_study(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text in UTF-8") from error


def _try_here(
    definition: Any, file: Path, modules: Path | None, device: str, as_json: bool
) -> None:
    from tuner_service.cli.rehearse import lines, rehearse  # noqa: PLC0415 - as below

    findings = rehearse(definition, modules=modules, device=device)
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
    show.out.print(f"Submitted {status.name} ({status.id}), {status.progress.total} trials.")
    if not watching:
        show.out.print(f"Follow it with `tuner status {status.name} --watch{url_option(url)}`.")


def _watch_to_end(study: StudyHandle, url: str, *, timeout: float | None, as_json: bool) -> int:
    try:
        final = watch(study, timeout=timeout, quiet=as_json)
    except KeyboardInterrupt:
        show.err.print(detached_sentence(study.name, url))
        return DETACHED
    if as_json:
        show.as_json(final.data)
        return code_of_study(final)
    show.pairs(show.titled("failed by", _failures(study, url)))
    if final.best_trial is not None:
        show.best(final.best_trial)
    return code_of_study(final)


def _failures(study: StudyHandle, url: str) -> list[str]:
    """Return why slots failed, and how to read what the last of their trials printed."""
    if not study.last_status.progress.failed:
        return []
    coverage = study.coverage()
    slots = {point["slot"] for point in coverage["failed_points"]}
    last = next(
        (t for t in study.iter_trials(state="FAIL", sort="-number") if t.data["slot"] in slots),
        None,
    )
    lines = show.failures(coverage)
    if last is not None:
        lines.append(f"see `tuner logs {study.name} {last.number}{url_option(url)}`")
    return lines


def _show_status(status: StudyStatus, as_json: bool) -> None:
    if as_json:
        show.as_json(status.data)
    else:
        show.status(status)


def _row(study: StudyStatus) -> list[str]:
    best = study.best_trial
    return [
        study.name,
        study.state,
        f"{study.progress.finished}/{study.progress.total}",
        "-" if best is None else show.result(best),
        str(study.data["created_at"])[:16].replace("T", " "),
    ]


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


def _confirmed(status: StudyStatus) -> bool:
    if not sys.stdin.isatty():
        raise InputError(f"Deleting {status.name} cannot be undone: say --yes")
    return typer.confirm(f"Delete {status.name} ({show.counts(status)}) for good?")
