"""What the page costs: reads of a large study, and the way of a report to the screen.

    python -m benchmarks.page [--trials 100000] [--pixel]

The reads are those of a page that opens, cold and warm, and after each report of a running trial
(so that every answer is computed anew). `--pixel` needs Chromium: it takes the time from a worker's
flush to the value in the table of the page.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from sqlalchemy import text

from tests.e2e.test_page import Running, report
from tests.integration.api.conftest import served
from tests.integration.api.test_charts import run
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate

ROUNDS = 60
QUESTIONS = {
    "study": "",
    "trials, best first": "/trials?sort=-value&limit=50",
    "trials, filtered": "/trials?sort=-value&limit=50&filter=learning_rate%3C1e-2+optimizer:adam",
    "columns": "/columns",
    "curves": "/curves",
    "failures": "/failures",
    "importances": "/importances",
}
# What a worker's flushes would have written, in a few statements.
FILL = (
    """INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
       SELECT number, 1, 'COMPLETE', '2026-01-01', '2026-01-01'
       FROM tuner_slots WHERE study_id = 1""",
    """INSERT INTO tuner_trials
         (trial_id, study_id, slot_id, number, attempt, state, value, started_at, finished_at)
       SELECT t.trial_id, 1, s.id, t.number, 1, 'COMPLETE',
              0.9 - abs(json_extract(s.parameters, '$.learning_rate') - 0.01), 0.0, 1.0
       FROM trials t JOIN tuner_slots s ON s.study_id = 1 AND s.number = t.number""",
    """INSERT INTO trial_values (trial_id, objective, value, value_type)
       SELECT trial_id, 0, value, 'FINITE' FROM tuner_trials""",
    """INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
       SELECT t.trial_id, 'learning_rate', json_extract(s.parameters, '$.learning_rate'),
         '{"name": "FloatDistribution",
           "attributes": {"step": null, "low": 0.0001, "high": 0.1, "log": true}}'
       FROM tuner_trials t JOIN tuner_slots s ON s.id = t.slot_id""",
    "UPDATE tuner_slots SET state = 'done' WHERE study_id = 1",
    """UPDATE tuner_studies SET state = 'completed', slots_done = slots_open, slots_open = 0,
         revision = revision + 1 WHERE id = 1""",
)


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--pixel", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(data_dir=Path(directory), database_url="", host="127.0.0.1")
        migrate(settings.resolved_database_url)
        with served(settings) as url:
            running = Running(url, settings)
            if options.pixel:
                measure_pixel(running)
            else:
                measure_reads(running, options.trials)


def measure_reads(running: Running, trials: int) -> None:
    """Print how long each read takes."""
    running.submit(name="large", budget={"trials": trials})
    db = Database.open(running.settings.resolved_database_url)
    with db.write() as connection:
        for statement in FILL:
            connection.execute(text(statement))
    with httpx2.Client(base_url=running.url, timeout=120.0) as http:
        for name, path in QUESTIONS.items():
            first = took(lambda path=path: http.get(f"/v1/studies/large{path}").raise_for_status())
            warm = [
                took(lambda path=path: http.get(f"/v1/studies/large{path}")) for _ in range(ROUNDS)
            ]
            anew = []
            for _ in range(ROUNDS // 3):
                bump(db)
                anew.append(took(lambda path=path: http.get(f"/v1/studies/large{path}")))
            print(f"{name:20}", f"first {first:7.1f} ms", told("warm", warm), told("anew", anew))
    db.close()


def bump(db: Database) -> None:
    """Change the study as a report does."""
    with db.write() as connection:
        connection.execute(text("UPDATE tuner_studies SET revision = revision + 1 WHERE id = 1"))


def measure_pixel(running: Running) -> None:
    """Print how long it takes from a flush to the screen."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only here

    running.submit(name="mixed")
    run(running.settings)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(f"{running.url}/studies/mixed")
        row = page.locator("table.trials tbody tr", has_text="running").first
        number = int(row.locator("button").inner_text())
        times = []
        for index in range(ROUNDS):
            value = 0.5 + index / 1000
            begun = time.perf_counter()
            report(running, number, value)
            row.locator("em", has_text=f"{value:.5g}").wait_for()
            times.append(1000 * (time.perf_counter() - begun))
            time.sleep(0.3)
        print(told("report to pixel", times))
        browser.close()


def took(act: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    begun = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - begun)


def told(name: str, times: list[float]) -> str:
    """Return the median and the tail of some times."""
    ordered = sorted(times)
    tail = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{name}: median {statistics.median(times):.1f}, p95 {high:.1f}, p99 {tail:.1f} ms;"


if __name__ == "__main__":
    main()
