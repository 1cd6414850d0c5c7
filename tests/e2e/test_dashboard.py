"""The dashboard in a real browser: headless Chromium on a study with trials.

Screenshots go to `TUNER_SCREENSHOTS` if that is set, else beside the test's other files.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.integration.api.conftest import served
from tests.integration.api.test_api import definition
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import Batch, Fail, Finish, Report, Start
from tuner_service.reads.views import Failure
from tuner_service.settings import Settings
from tuner_service.storage import Database, migrate

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
NAME = "digits-in-the-browser"
TRIALS, EPOCHS = 12, 5
PATIENCE = 60_000.0  # ms; two cores, shared

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with one finished study, one of whose trials failed."""
    data_dir = tmp_path_factory.mktemp("dashboard")
    settings = Settings(data_dir=data_dir, database_url="", host="127.0.0.1", max_attempts=1)
    migrate(settings.resolved_database_url)
    parameters = {
        "learning_rate": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "hidden_units": {"type": "int", "low": 8, "high": 64},
        "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
    }
    study = definition(name=NAME, parameters=parameters, budget={"trials": TRIALS})
    with served(settings) as url:
        httpx2.post(f"{url}/v1/studies", json=study).raise_for_status()
        _run(settings)
        yield url


def _run(settings: Settings) -> None:
    """Do what a worker does, with made-up curves."""
    db = Database.open(settings.resolved_database_url)
    made_up = random.Random(7)
    leases = claim(db, worker_id="w", queue="cpu", limit=TRIALS, lease_seconds=60.0).leases

    def send(batch: Batch) -> dict[tuple[int, int], int]:
        done = flush(db, worker_id="w", batch=batch, lease_seconds=60.0, settings=settings)
        return {key: trial.trial_id for key, trial in done.started.items()}

    ids = send(Batch(starts=[Start(lease, lease.parameters or {}) for lease in leases]))
    failing, *fine = leases
    curves = {
        lease.key: sorted(made_up.uniform(0.2, 0.97) for _ in range(EPOCHS)) for lease in fine
    }
    send(
        Batch(
            reports=[
                Report(lease, ids[lease.key], step, value, {"step": step, "val_accuracy": value})
                for lease in fine
                for step, value in enumerate(curves[lease.key], start=1)
            ],
            finishes=[
                Finish(lease, ids[lease.key], "COMPLETE", (curves[lease.key][-1],), {})
                for lease in fine
            ],
            fails=[
                Fail(
                    failing,
                    ids[failing.key],
                    Failure(kind="user_code", message="the shapes do not match"),
                    blamed=True,
                )
            ],
        )
    )
    db.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def keep(page: Page, name: str, directory: Path) -> None:
    """Keep a screenshot to look at."""
    folder = Path(os.environ.get("TUNER_SCREENSHOTS") or directory)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / f"{name}.png"))


def test_the_list_names_the_study_and_leads_to_it(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}/dashboard")
    card = page.get_by_text(NAME).first
    expect(card).to_be_visible(timeout=PATIENCE)
    keep(page, "studies", tmp_path)
    card.click()
    expect(page).to_have_url(f"{address}/dashboard/studies/1", timeout=PATIENCE)


def test_the_studys_page_draws_its_charts(page: Page, address: str, tmp_path: Path) -> None:
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{address}/dashboard/studies/1")
    expect(page.get_by_text(NAME).first).to_be_visible(timeout=PATIENCE)
    chart = page.locator("#plot-history .main-svg").first
    expect(chart).to_be_visible(timeout=PATIENCE)
    # One point per COMPLETE trial.
    points = page.locator("#plot-history .scatterlayer .trace").first.locator(".points path")
    expect(points).to_have_count(TRIALS - 1, timeout=PATIENCE)
    keep(page, "study", tmp_path)
    assert faults == []


def test_the_trials_page_shows_parameters_and_the_failure(
    page: Page, address: str, tmp_path: Path
) -> None:
    page.goto(f"{address}/dashboard/studies/1/trials?numbers=0")
    expect(page.get_by_text("the shapes do not match").first).to_be_visible(timeout=PATIENCE)
    keep(page, "failed-trial", tmp_path)
    page.goto(f"{address}/dashboard/studies/1/trials?numbers=1")
    expect(page.get_by_text("learning_rate").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Complete").first).to_be_visible(timeout=PATIENCE)
    keep(page, "trial", tmp_path)


def test_nothing_can_be_changed_from_the_browser(page: Page, address: str) -> None:
    page.goto(f"{address}/dashboard")
    for method, path in (("DELETE", "/api/studies/1"), ("POST", "/api/trials/1/tell")):
        status = page.evaluate(
            "([method, path]) => fetch(path, {method, body: '{}'}).then(answer => answer.status)",
            [method, path],
        )
        assert status == 405
    assert httpx2.get(f"{address}/v1/studies/{NAME}").status_code == 200


def test_our_own_pages_load_nothing_from_elsewhere(
    page: Page, address: str, tmp_path: Path
) -> None:
    asked: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: refused.append(message.text))
    page.goto(f"{address}/")
    expect(page.locator("h1")).to_have_text("Studies", timeout=PATIENCE)
    expect(page.get_by_role("link", name=NAME)).to_be_visible(timeout=PATIENCE)
    keep(page, "home", tmp_path)
    page.goto(f"{address}/docs")
    expect(page.locator("h1")).to_contain_text("tuner", timeout=PATIENCE)
    submit = page.locator(".opblock-post", has_text="/v1/studies").first
    submit.locator(".opblock-summary-control").click(timeout=PATIENCE)
    expect(submit).to_contain_text("Parameters", timeout=PATIENCE)
    keep(page, "docs", tmp_path)
    assert any(url.endswith("/openapi.json") for url in asked)
    assert all(url.startswith((address, "data:")) for url in asked)
    assert not refused
