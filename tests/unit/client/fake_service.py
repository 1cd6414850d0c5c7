"""A service of a few dictionaries, reached through httpx2's mock transport.

It answers as design §7 has it: ETag and 304 by revision, pages with cursors, problems with a
code. Every held request (`?wait`) lets the study take its next step, so that nothing sleeps.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tuner_service.client import TunerClient

URL = "http://tuner.test"


def trial(number: int, state: str = "COMPLETE", value: float | None = None) -> dict[str, Any]:
    """Return a trial as the API has it."""
    return {
        "number": number,
        "trial_id": 100 + number,
        "state": state,
        "slot": number,
        "attempt": 1,
        "retry_of": None,
        "parameters": {"learning_rate": 0.1 * (number + 1), "optimizer": "adam"},
        "value": value,
        "values": None if value is None else [value],
        "last_step": 3,
        "failure": None,
        "worker": "w",
        "device": "cpu",
        "backend": "plain",
        "backend_reason": None,
        "group": None,
        "started_at": "2026-01-01T00:00:00Z",
        "finished_at": None,
        "seconds": 1.5,
        "record": {"test_accuracy": 0.5},
        "has_model": False,
        "epochs": None,
    }


def problem(status: int, code: str, detail: str, **more: Any) -> httpx2.Response:
    """Return a problem+json answer."""
    body = {"status": status, "code": code, "detail": detail, **more}
    return httpx2.Response(status, json=body)


@dataclass
class FakeStudy:
    """One study; `steps` are what happens to it at the next held requests."""

    id: str = "st_1"
    name: str = "digits"
    state: str = "queued"
    reason: str | None = None
    total: int = 3
    revision: int = 1
    cancelled: int = 0  # slots
    trials: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Callable[["FakeStudy"], None]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def view(self) -> dict[str, Any]:
        """Return the study as the API has it."""
        done = [t for t in self.trials if t["state"] in ("COMPLETE", "PRUNED")]
        scored = [t for t in done if t["value"] is not None]
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "revision": self.revision,
            "definition": {},
            "tags": self.tags,
            "created_at": "2026-01-01T00:00:00Z",
            "progress": {
                "total": self.total,
                "open": self.total - len(self.trials),
                "leased": 0,
                "done": len(done),
                "failed": sum(t["state"] == "FAIL" for t in self.trials),
                "cancelled": self.cancelled,
                "pruned": sum(t["state"] == "PRUNED" for t in done),
            },
            "best_trial": max(scored, key=lambda t: t["value"], default=None),
            "eta_seconds": 4.0,
            "warnings": self.warnings,
            "added_by_a_newer_service": True,
        }

    def step(self) -> None:
        """Let the next thing happen, if there is one."""
        if self.steps:
            self.steps.pop(0)(self)
            self.revision += 1


def finishes(number: int, value: float | None = 0.9, state: str = "COMPLETE") -> Any:
    """A step: a trial finishes."""

    def step(study: FakeStudy) -> None:
        study.state = "running"
        others = [t for t in study.trials if t["number"] != number]
        study.trials = sorted([*others, trial(number, state, value)], key=lambda t: t["number"])

    return step


def starts(number: int) -> Any:
    """A step: a trial starts."""
    return finishes(number, None, "RUNNING")


def ends(state: str = "completed", reason: str | None = None) -> Any:
    """A step: the study ends."""

    def step(study: FakeStudy) -> None:
        study.state, study.reason = state, reason

    return step


@dataclass
class FakeService:
    """Answers requests; `failures` come first, one per request; None answers as usual."""

    study: FakeStudy = field(default_factory=FakeStudy)
    failures: list[httpx2.Response | Exception | None] = field(default_factory=list)
    requests: list[httpx2.Request] = field(default_factory=list)
    page: int = 2
    submitted: dict[str, Any] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)  # by the trial's number

    def client(self, **options: Any) -> TunerClient:
        """Return a client of this service."""
        return TunerClient(URL, transport=httpx2.MockTransport(self), **options)

    def sent(self, method: str) -> list[httpx2.Request]:
        """Return the requests of a method."""
        return [request for request in self.requests if request.method == method]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            if failure is not None:
                return failure
        return self._answer(request)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path.removeprefix("/v1")
        own = (f"/studies/{self.study.id}", f"/studies/{self.study.name}")
        match request.method, path:
            case "GET", "/healthz":
                return httpx2.Response(200, json={"status": "ok"})
            case "POST", "/studies":
                return self._submit(request)
            case "POST", "/studies/validate":
                return httpx2.Response(200, json=PLAN)
            case "GET", "/studies":
                return httpx2.Response(
                    200, json={"items": [self.study.view()], "next_cursor": None}
                )
            case "GET", p if p in own:
                return self._study(request)
            case "DELETE", p if p in own:
                return httpx2.Response(204)
            case "PATCH", p if p in own:
                changes = json.loads(request.content)
                self.study.total = changes.get("trials", self.study.total)
                self.study.tags = changes.get("tags", self.study.tags)
                return httpx2.Response(200, json=self.study.view())
            case _, p if p.startswith(own):
                return self._part(request, p.rsplit("/", 1)[1])
        return problem(404, "not_found", f"there is no study with the id or name {path[9:]!r}")

    def _submit(self, request: httpx2.Request) -> httpx2.Response:
        key = request.headers["idempotency-key"]
        self.submitted[key] = json.loads(request.content)
        return httpx2.Response(202, json=self.study.view())

    def _study(self, request: httpx2.Request) -> httpx2.Response:
        known = request.headers.get("if-none-match")
        if "wait" in request.url.params:
            self.study.step()
        if known == f'"{self.study.revision}"':
            return httpx2.Response(304)
        return httpx2.Response(200, json=self.study.view())

    def _part(self, request: httpx2.Request, part: str) -> httpx2.Response:
        match part:
            case "trials":
                return httpx2.Response(200, json=self._trials(request))
            case "best":
                best = self.study.view()["best_trial"]
                return httpx2.Response(200, json={"items": [best] if best else []})
            case "logs":
                return httpx2.Response(
                    200, text=self.printed.get(request.url.path.split("/")[-2], "")
                )
            case "coverage":
                return httpx2.Response(200, json=self._coverage())
            case "export" if request.url.params["format"] == "json":
                rows = [{"number": t["number"], "value": t["value"]} for t in self.study.trials]
                return httpx2.Response(200, json=rows)
            case "export":
                return httpx2.Response(200, text="number,value\r\n")
            case "refit":
                return httpx2.Response(202, json=self.study.view())
            case "pause" | "resume" | "cancel":
                states = {"pause": "paused", "resume": "running", "cancel": "cancelled"}
                self.study.state = states[part]
                return httpx2.Response(200, json=self.study.view())
        return httpx2.Response(200, json=self.study.trials[int(part)])

    def _coverage(self) -> dict[str, Any]:
        failed = any(t["state"] == "FAIL" for t in self.study.trials)
        failure = {"kind": "user_code", "message": "boom"}
        points = [{"slot": 0, "parameters": {"x": 0.5}, "failure": failure}] * 2 * failed
        counts = dict.fromkeys(("leased", "open", "cancelled"), 0)
        return {
            "total": self.study.total,
            "done": self.study.total - len(points),
            "failed": len(points),
            **counts,
            "failed_points": points,
        }

    def _trials(self, request: httpx2.Request) -> dict[str, Any]:
        query = request.url.params
        found = [t for t in self.study.trials if query.get("state") in (None, t["state"])]
        if query.get("sort") == "-number":
            found.reverse()
        begin = int(query.get("cursor", 0))
        end = begin + self.page
        more = str(end) if end < len(found) else None
        return {"items": found[begin:end], "next_cursor": more}


PLAN = {
    "slots": 3,
    "grid_size": None,
    "parallel_trials": 4,
    "parameters": ["learning_rate"],
    "fusible": ["learning_rate"],
    "fusible_on_cpu": [],
    "structural": [],
    "warnings": [],
}
