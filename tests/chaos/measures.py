"""What a running service takes, sampled: memory, handles, threads, rows, bytes and files."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import inspect, text

from tests.chaos.flat import Tolerance, judge
from tuner_service.errors import UnavailableError
from tuner_service.storage import Database

TOLERANCES = {
    "private MB": Tolerance(0.03, 3.0),
    "PSS MB": Tolerance(0.05, 5.0),
    "handles": Tolerance(0.0, 2.0),
    "threads": Tolerance(0.0, 1.0),
    "rows": Tolerance(0.10, 0.0),
    "database MB": Tolerance(0.05, 1.0),
    "files": Tolerance(0.10, 20.0),
    "files MB": Tolerance(0.10, 5.0),
    "log MB": Tolerance(0.10, 5.0),
}


@dataclass
class Series:
    """One thing that was measured again and again."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class Samples:
    """All series, and which process had which role since when."""

    series: dict[tuple[str, str], Series] = field(default_factory=dict)
    pids: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def take(self, up: psutil.Process, db: Database, directory: Path, now: float) -> None:
        """Measure everything once; what has just ended or is away is left out."""
        for name, process in roles(up).items():
            with contextlib.suppress(psutil.Error, OSError):
                self._note(name, now, process_measures(process))
                seen = self.pids.setdefault(name, [])
                if not seen or seen[-1][1] != process.pid:
                    seen.append((now, process.pid))
        with contextlib.suppress(UnavailableError):
            self._note("database", now, database_measures(db))
        self._note("data directory", now, file_measures(directory))

    def _note(self, name: str, now: float, measures: Mapping[str, float]) -> None:
        for measure, value in measures.items():
            series = self.series.setdefault((name, measure), Series())
            series.times.append(now)
            series.values.append(value)

    def table(self) -> tuple[str, bool]:
        """Return a line for each series, and whether all are flat; too few samples are not."""
        lines = [f"{'':30s}{'median':>10s}{'grew':>10s}{'allowed':>10s}{'an hour':>10s}"]
        flat = True
        for (name, measure), series in self.series.items():
            try:
                verdict = judge(series.times, series.values, TOLERANCES[measure])
            except ValueError:
                flat = False
                lines.append(f"{name:16s}{measure:14s}  too few samples: {len(series.times)}")
                continue
            flat &= verdict.is_flat
            numbers = (verdict.median, verdict.growth, verdict.allowed, verdict.per_hour)
            row = "".join(f"{number:10.2f}" for number in numbers)
            lines.append(f"{name:16s}{measure:14s}{row}{'' if verdict.is_flat else '  GROWS'}")
        for name, seen in self.pids.items():
            if len(seen) > 1:  # its growth would be hidden
                flat = False
                lines.append(
                    f"{name} was started again after {[round(at) for at, _ in seen[1:]]} s"
                )
        return "\n".join(lines), flat

    def csv(self) -> str:
        """Return every sample as `name,measure,seconds,value`."""
        rows = [
            f"{name},{measure},{at:.1f},{value:.6g}"
            for (name, measure), series in self.series.items()
            for at, value in zip(series.times, series.values, strict=True)
        ]
        return "\n".join(["name,measure,seconds,value", *rows, ""])


def roles(up: psutil.Process) -> dict[str, psutil.Process]:
    """Return the lasting processes of a `tuner up` by role."""
    found = {"up": up}
    children = sorted(up.children(), key=lambda process: process.pid)
    for child in children:
        words = " ".join(child.cmdline())
        if "serve" in words:
            found["API"] = child
        elif "-m workers" in words:
            number = sum(name.startswith("supervisor") for name in found) + 1
            found[f"supervisor {number}"] = child
            for below in child.children():
                if "-m workers.trainer " in " ".join(below.cmdline()):
                    found[f"trainer {number}"] = below
    return found


def process_measures(process: psutil.Process) -> dict[str, float]:
    """Return memory in MB, open files and sockets, and threads."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    private = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return {
        "private MB": int(private.split()[1]) / 1024,
        "PSS MB": process.memory_full_info().pss / (1 << 20),
        "handles": process.num_fds(),
        "threads": process.num_threads(),
    }


def database_measures(db: Database) -> dict[str, float]:
    """Return the rows of all tables, and what the database takes, free pages included."""
    with db.read() as connection:
        tables = inspect(connection).get_table_names()
        count = " + ".join(f'(SELECT count(*) FROM "{table}")' for table in tables)
        rows = int(connection.execute(text(f"SELECT {count}")).scalar_one())
        if db.dialect == "sqlite":
            pages, size = (
                connection.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("page_count", "page_size")
            )
            bytes_ = pages * size
        else:
            bytes_ = connection.execute(
                text("SELECT pg_database_size(current_database())")
            ).scalar_one()
    return {"rows": rows, "database MB": bytes_ / (1 << 20)}


def file_measures(directory: Path) -> dict[str, float]:
    """Return how many files the data directory has, how large they are, and the service's logs."""
    count, size, log = 0, 0, 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            if not path.is_file() or path.name.startswith("tuner.db"):
                continue
            bytes_ = path.stat().st_size
            if "service" in path.parts:
                log += bytes_
            else:
                count, size = count + 1, size + bytes_
    return {"files": count, "files MB": size / (1 << 20), "log MB": log / (1 << 20)}
