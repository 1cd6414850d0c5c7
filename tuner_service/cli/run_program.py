"""`tuner run`: a search over the options of a command, from the directory of a script."""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from tuner_service import extras
from tuner_service.cli import show
from tuner_service.cli.codes import DETACHED
from tuner_service.cli.options import ApiKey, AsJson, DataDir, Url, connect
from tuner_service.cli.service import settings_of
from tuner_service.cli.watch import watch_to_end
from tuner_service.client import (
    DEFAULT_URL,
    ApiError,
    ConflictError,
    InvalidInputError,
    StudyHandle,
    TunerClient,
)
from tuner_service.errors import InputError

COMMAND = "run"
OFFER_SECONDS = 60.0  # a worker that has just been started imports torch first
_DIRECTIONS = {"max": "maximize", "min": "minimize"}


class MetricOption(NamedTuple):
    """What `--metric NAME:max=PATTERN` says."""

    name: str
    direction: str | None
    pattern: str | None


def run(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND", help="With {NAME} for each parameter."),
    ],
    metric: Annotated[
        list[str],
        typer.Option(
            "--metric",
            "-m",
            metavar="NAME:max|min[=PATTERN]",
            help="What to improve; PATTERN finds it in the output, with a group for the number.",
        ),
    ],
    param: Annotated[
        list[str],
        typer.Option(
            "--param",
            "-p",
            metavar="NAME=SPEC",
            help="Low..high, low..high:log, low..high:STEP, or choices: 16,32,64.",
        ),
    ],
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, help="How many.")] = 20,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="How many at once; by default one per core.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="For the whole search.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="tpe, random, qmc or grid.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="none, median, …")] = "none",
    seed: Annotated[int | None, typer.Option(help="Of the search, and {seed}.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the study.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print one command, filled in, and end.")
    ] = False,
    data_dir: DataDir = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Search the best options of a command; starts a service where none runs."""
    extras.require("all", "`tuner run`")
    metrics = [_metric(text) for text in metric]
    domains = _domains(param)
    study = name or f"{Path(command[-1] if len(command) == 1 else _script(command)).stem}-{_now()}"
    # Of its own: another study of that name must not find its command changed.
    project = f"run_{re.sub(r'[^A-Za-z0-9]', '_', study[:40])}_{secrets.token_hex(3)}"
    written = _project(command, metrics)
    _check_names(written, domains)
    if dry_run:
        show.out.print(_line(written, {key: _example(one) for key, one in domains.items()}, seed))
        return
    definition = {
        "name": study,
        "network": {"type": f"{project}.{COMMAND}"},
        "objective": [_objective(one) for one in metrics],
        "parameters": domains,
        "sampler": {"type": sampler, **({} if seed is None else {"seed": seed})},
        "pruner": {"type": pruner},
        "training": {} if seed is None else {"seed": seed},
        "budget": {"trials": trials, **({} if timeout is None else {"timeout": timeout})},
        "resources": {"parallel_trials": parallel or os.cpu_count() or 1},
    }
    settings = settings_of(data_dir=data_dir)
    found = shutil.which(command[0])
    if found is None:
        raise InputError(f"the command {command[0]!r} was not found on PATH")
    # This shell's python, not that of the service, which may be of another environment.
    resolved = written.model_copy(update={"run": (str(Path(found).absolute()), *command[1:])})
    folder = settings.directory.programs / project
    _register(folder, resolved)
    with _service(settings, url, api_key, parallel or os.cpu_count() or 1) as (client, address):
        try:
            handle = _submit(client, definition, started=address != url)
        except (InputError, InvalidInputError, ConflictError):  # no study names it
            shutil.rmtree(folder, ignore_errors=True)
            raise
        code = _follow(handle, address, written, seed, as_json=as_json)
        if code == DETACHED and address != url:
            show.err.print(
                "A service that was started for `tuner run` ends with it: the study stands still "
                "then, and goes on at the next `tuner up` or `tuner run`."
            )
    raise typer.Exit(code)


def _follow(handle: StudyHandle, url: str, written: Any, seed: int | None, *, as_json: bool) -> int:
    if not as_json:
        show.out.print(f"Study {handle.name}: {url}/studies/{handle.name}")
    code = watch_to_end(handle, url, timeout=None, as_json=as_json)
    best = handle.status().best_trial
    if best is not None and not as_json:
        show.out.print("\nThe best command:")
        show.out.print(f"  {_line(written, best.params, seed)}", soft_wrap=True, highlight=False)
    return code


@contextlib.contextmanager
def _service(
    settings: Any, url: str, api_key: str | None, loops: int
) -> Iterator[tuple[TunerClient, str]]:
    """Yield a client of the service that is there, or of one that is started for this command.

    Without another URL it is the one of the data directory, where the program is registered.
    """
    from tuner_service.up.embedded import embedded  # noqa: PLC0415 - brings SQLAlchemy

    if url != DEFAULT_URL:
        with closing(connect(url, api_key)) as client:
            yield client, url
        return
    with (
        embedded(settings, loops=loops, say=show.err.print) as address,
        closing(connect(address, api_key)) as client,
    ):
        yield client, address


def _submit(client: TunerClient, definition: Any, *, started: bool) -> StudyHandle:
    """Submit as soon as a worker offers the program.

    Raises:
        ApiError: The study is refused for another reason, or no worker offers it.
    """
    deadline = time.monotonic() + OFFER_SECONDS
    while True:
        try:
            return client.submit(definition)
        except ApiError as error:
            waits = any(fault.get("pointer") == "/network/type" for fault in error.errors or ())
            if not waits:
                raise
            if time.monotonic() > deadline:
                where = "" if started else ", if it was started with another --data-dir"
                raise InputError(
                    f"no worker offers the program within {OFFER_SECONDS:g} s{where}: {error}"
                ) from error
        time.sleep(0.2)


def _register(folder: Path, written: Any) -> None:
    from tuner_service.files import private_folder  # noqa: PLC0415
    from tuner_service.programs import PROJECT_FILE  # noqa: PLC0415

    private_folder(folder)
    draft = folder / f".{PROJECT_FILE}"
    draft.write_text(json.dumps({"commands": {COMMAND: written.model_dump()}}, indent=1))
    draft.replace(folder / PROJECT_FILE)


def _project(command: Sequence[str], metrics: Sequence[MetricOption]) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415

    from tuner_service.programs import ProgramCommand  # noqa: PLC0415

    patterns = {one.name: one.pattern for one in metrics if one.pattern is not None}
    try:
        return ProgramCommand(run=tuple(command), metrics=patterns, directory=str(Path.cwd()))
    except ValidationError as error:
        said = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        raise InputError(said) from error


def _check_names(written: Any, domains: Any) -> None:
    for name in written.placeholders:
        if name not in domains:
            missing = f"the command names {{{name}}}, which no --param gives"
            raise InputError(f"{missing}: add --param {name}=LOW..HIGH")
    for name in domains:
        if name not in written.placeholders and not written.takes_any:
            raise InputError(
                f"--param {name} is not in the command: write {{{name}}} where its value goes, "
                "or {overrides} for all as name=value"
            )


def _line(written: Any, parameters: Any, seed: int | None) -> str:
    """Return a command line for the user's shell."""
    given = {
        "seed": str(seed or 0),
        "device": "cpu",
        "checkpoint_dir": "checkpoints",
        "output_dir": "outputs",
        "parameters_file": "parameters.json",
    }
    return shlex.join(written.filled(parameters, given))


def _metric(text: str) -> MetricOption:
    head, _, pattern = text.partition("=")
    name, colon, direction = head.partition(":")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or (
        colon and direction not in _DIRECTIONS
    ):
        raise InputError(
            f"--metric is NAME:max or NAME:min, perhaps with =PATTERN, but got {text!r}"
        )
    return MetricOption(name, _DIRECTIONS.get(direction), pattern or None)


def _objective(metric: MetricOption) -> dict[str, Any]:
    from tuner_service.definition.sections import objective_metric  # noqa: PLC0415

    if metric.direction is None and objective_metric(metric.name) is None:
        raise InputError(f"say whether more is better: --metric {metric.name}:max or :min")
    direction = {} if metric.direction is None else {"direction": metric.direction}
    return {"metric": metric.name, **direction}


def _domains(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    domains: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, domain = _parameter(text)
        if name in domains:
            raise InputError(f"--param {name} is given twice")
        domains[name] = domain
    return domains


def _parameter(text: str) -> tuple[str, dict[str, Any]]:
    """Return a parameter's name and domain.

    Raises:
        InputError: It is none; the message shows the forms there are.
    """
    name, _, spec = text.partition("=")
    if not name.isidentifier() or not spec:
        raise InputError(f"--param is NAME=LOW..HIGH or NAME=ONE,TWO,…, but got {text!r}")
    if ".." not in spec:
        if "" in spec.split(","):
            raise InputError(f"--param {name} has an empty choice, in {spec!r}")
        return name, {"type": "categorical", "choices": [_scalar(one) for one in spec.split(",")]}
    bounds, _, how = spec.partition(":")
    low, _, high = bounds.partition("..")
    numbers = _scalar(low), _scalar(high)
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise InputError(f"--param {name} needs two numbers, as 1e-5..1e-1, but got {bounds!r}")
    whole = all(isinstance(one, int) for one in numbers)
    domain = {"type": "int" if whole else "float", "low": numbers[0], "high": numbers[1]}
    if how == "log":
        return name, {**domain, "log": True}
    if how:
        return name, {**domain, "step": _step(name, how)}
    return name, domain


def _step(name: str, text: str) -> float:
    step = _scalar(text)
    if not isinstance(step, int | float) or isinstance(step, bool):
        raise InputError(f"--param {name}: after the bounds stands log or a step, but got {text!r}")
    return step


def _scalar(text: str) -> Any:
    """Return a number or a truth value as such, anything else as the text it is."""
    readers: tuple[Callable[[str], Any], ...] = (int, float)
    for read in readers:
        with contextlib.suppress(ValueError):
            return read(text)
    return {"true": True, "false": False}.get(text, text)


def _example(domain: Any) -> Any:
    return domain["choices"][0] if "choices" in domain else domain["low"]


def _script(command: Sequence[str]) -> str:
    return next((one for one in command[1:] if not one.startswith("-")), command[0])


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
