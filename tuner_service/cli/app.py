"""The command tree, and what becomes of errors."""

import sys
from collections.abc import Callable, Sequence

import typer

from tuner_service import __version__
from tuner_service.cli import (
    catalogue,
    changes,
    data,
    doctor,
    insight,
    run_program,
    service,
    show,
    studies,
    submit,
)
from tuner_service.cli.codes import DONE, FAILED, code_of
from tuner_service.client import AccessError, ApiError
from tuner_service.errors import DefinitionError, TunerError

app = typer.Typer(
    name="tuner",
    help="Hyperparameter tuning for PyTorch. Start with `tuner up`, then `tuner submit FILE -w`.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "up": service.up,
    "run": run_program.run,
    "doctor": doctor.doctor,
    "submit": submit.submit,
    "validate": submit.validate,
    "list": studies.list_studies,
    "status": studies.status,
    "watch": studies.watch,
    "trials": studies.trials,
    "trial": insight.trial,
    "compare": insight.compare,
    "importance": insight.importance,
    "best": studies.best,
    "coverage": changes.coverage,
    "pause": studies.pause,
    "resume": studies.resume,
    "refit": studies.refit,
    "cancel": studies.cancel,
    "update": changes.update,
    "delete": studies.delete,
    "export": studies.export,
    "model": studies.model,
    "logs": studies.logs,
    "workers": catalogue.workers,
    "catalogue": catalogue.catalogue,
    "serve": service.serve,
    "worker": service.worker,
    "migrate": service.migrate,
    "storage-url": service.storage_url,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(service.keys, name="keys")
app.add_typer(data.data, name="data")


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    if version:
        show.out.print(f"tuner {__version__}")
    elif context.invoked_subcommand is None:
        show.out.print(context.get_help())


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are told in a sentence."""
    try:
        app(args=arguments, prog_name="tuner")
    except SystemExit as ended:  # how typer ends, also after a wrong option (2)
        return ended.code if isinstance(ended.code, int) else FAILED
    except TunerError as error:
        _tell(error)
        return code_of(error)
    except OSError as error:
        show.err.print(f"tuner: {error}")
        return FAILED
    return DONE


def _tell(error: TunerError) -> None:
    if isinstance(error, DefinitionError):
        show.faults([fault.as_dict() for fault in error.faults])
    elif isinstance(error, ApiError) and error.errors and error.code == DefinitionError.code:
        show.faults(error.errors)
    elif isinstance(error, AccessError):
        show.err.print(f"tuner: {error} (--api-key, or TUNER_API_KEY)")
    else:
        show.err.print(f"tuner: {error}")
