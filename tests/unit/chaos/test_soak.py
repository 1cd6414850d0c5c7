"""What ends a long run, and what is said of it, when not all went well."""

import subprocess
import sys

import psutil

from tests.chaos.measures import Samples, Series
from tests.chaos.soak import stop

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    f"subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], start_new_session=True); "
    "import time; time.sleep(60)"
)


def test_what_does_not_stop_is_killed_with_all_below_it() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = psutil.Process(process.pid).children()
        assert not stop(process, seconds=0.1)
        _, alive = psutil.wait_procs([child], timeout=60.0)
    assert not alive or all(one.status() == psutil.STATUS_ZOMBIE for one in alive)


def test_what_stops_is_left_to_it() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert stop(process)


def test_a_series_that_is_too_short_takes_no_other_verdict_along() -> None:
    times = [float(second) for second in range(10)]
    samples = Samples({("API", "threads"): Series(times, [5.0] * 10)})
    assert samples.table()[1]
    samples.series["trainer 1", "threads"] = Series([8.0, 9.0], [5.0, 5.0])
    table, flat = samples.table()
    assert not flat
    assert "too few samples: 2" in table
    assert "API             threads             5.00" in table
