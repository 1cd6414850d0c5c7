"""`make demo`: the main job, from nothing to the best trial.

Starts `tuner up` on a free port, submits `examples/digits-tpe.yaml` over the REST API, shows how
it goes, prints the trials and the best one, and stops every process it started. The study stays
in the data directory, so that `make up` shows it afterwards.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from tuner_service.client import ClientError, StudyHandle, Trial, TunerClient
from tuner_service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
STUDY_FILE = ROOT / "examples" / "digits-tpe.yaml"
START_SECONDS = 180.0
STOP_SECONDS = 30.0
STUDY_SECONDS = 900.0

console = Console(highlight=False)


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def service() -> Iterator[str]:
    """Run `tuner up` for the block and yield its URL; afterwards none of its processes is left."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile(prefix="tuner-demo-", suffix=".log") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the other.
        process = psutil.Popen(
            [str(Path(sys.executable).with_name("tuner")), "up", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_ready(process, url, Path(log.name))
            yield url
        finally:
            stop(process)


def wait_until_ready(process: psutil.Popen, url: str, log: Path) -> None:
    """Wait until the API answers and a worker is there.

    Raises:
        DemoError: The service ended, or took too long; with the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(url):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            what = f"ended with exit code {process.poll()}" if ended else "did not become ready"
            raise DemoError(f"`tuner up` {what}. The end of its log:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    """Return whether the API is ready and lists a worker."""
    with contextlib.suppress(httpx2.HTTPError):
        if httpx2.get(f"{url}/readyz").status_code == 200:
            return bool(httpx2.get(f"{url}/v1/workers").json()["items"])
    return False


def stop(process: psutil.Popen) -> None:
    """Stop the service in order; kill, and name, what does not go."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for straggler in left:
            console.print(f"killing {straggler.pid}, which did not stop", style="yellow")
            with contextlib.suppress(psutil.NoSuchProcess):
                straggler.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)


def trials_table(trials: Sequence[Trial], best: Trial) -> Table:
    """Return the table of all trials, the best one marked."""
    names = sorted({name for trial in trials for name in trial.params})
    table = Table(
        title=f"\n{len(trials)} trials",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("trial", "state", "val_accuracy", "epochs", *names):
        # Spaces let a heading wrap, so that the table fits 80 columns.
        heading = name.replace("_", " ")
        table.add_column(heading, justify="left" if name in ("state", "optimizer") else "right")
    for trial in trials:
        table.add_row(
            str(trial.number),
            trial.state,
            shown(trial.value),
            shown(trial.data["last_step"]),
            *(shown(trial.params.get(name)) for name in names),
            style="bold green" if trial.number == best.number else None,
        )
    return table


def shown(value: object) -> str:
    """Return a cell's text."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def tell_best(study: StudyHandle, best: Trial, seconds: float) -> None:
    """Print the best trial with its parameters and what it reaches on the test part."""
    console.print(f"\n[bold]Best trial: {best.number}[/bold]")
    console.print(f"  validation accuracy  {best.value:.4f}")
    console.print(f"  test accuracy        {best.record['test_accuracy']:.4f}")
    for name, value in sorted(best.params.items()):
        console.print(f"  {name:<20} {shown(value)}")
    done = study.last_status.progress.done
    console.print(f"\n{done} trials in {seconds:.1f} s, {done / seconds:.1f} per second.")


def tell_how_to_go_on(study: StudyHandle) -> None:
    """Print how to keep the service running and where the dashboard is."""
    data_dir = Settings().data_dir
    console.print(
        f"\nThe study is kept in {data_dir}, named {study.name!r}.\n"
        "  make up                keeps the service running until Ctrl-C\n"
        "  the API                http://127.0.0.1:8000/docs\n"
        "  the dashboard          http://127.0.0.1:8000/dashboard\n"
        f"  .venv/bin/tuner submit {STUDY_FILE.relative_to(ROOT)} --watch",
        soft_wrap=True,
    )


def run() -> None:
    """Run the study through a service of its own.

    Raises:
        DemoError: Something did not work.
    """
    console.print("Starting the API, the dashboard and the workers (`tuner up`) ...")
    with service() as url, TunerClient(url) as client:
        console.print(f"Submitting {STUDY_FILE.relative_to(ROOT)} to {url}/v1/studies")
        start = time.monotonic()
        study = client.submit(STUDY_FILE)
        status = study.wait(progress=True, timeout=STUDY_SECONDS)
        seconds = time.monotonic() - start
        if status.state != "completed":
            raise DemoError(f"the study is {status.state}: {status.reason}")
        best = study.best_trial
        console.print(trials_table(study.trials(), best))
        tell_best(study, best, seconds)
    tell_how_to_go_on(study)


def main() -> int:
    """Run the demonstration; 0: it worked, 1: it did not, 130: Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.pop("TUNER_URL", None)
    try:
        run()
    except KeyboardInterrupt:
        console.print("\nStopped. The study, if it was submitted, goes on with `make up`.")
        return 130
    except (DemoError, ClientError) as error:
        console.print(f"demo: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
