"""A study and a search in memory."""

from types import SimpleNamespace
from typing import Any

from tuner_service.definition import Pruner
from tuner_service.lifecycle.messages import StudyWork
from workers.supervisor.studies import ActiveStudy


class FakeSearch:
    """Asks 1, 2, 3, …; prunes trials whose reported value is negative."""

    def __init__(self, extra: dict[str, Any] | None = None) -> None:
        self.extra = extra or {}
        self.asked: list[int] = []
        self.finished_before_ask: list[int] = []
        self.log: list[tuple[Any, ...]] = []
        self.values: dict[int, float] = {}
        self.last_trial_id = 0
        self.unfinished: set[int] = set()

    @property
    def has_results(self) -> bool:
        return bool(self.values)

    def merge(self, trials: Any) -> None:
        pass

    def ask(self, slot: int, fixed: Any) -> dict[str, Any]:
        self.asked.append(slot)
        self.finished_before_ask.append(sum(entry[0] == "finished" for entry in self.log))
        return {"value": float(slot), **self.extra, **(fixed or {})}

    def withdraw(self, params: Any) -> None:
        self.log.append(("withdrawn",))

    def started(self, trial_id: int, params: Any) -> None:
        self.log.append(("started", trial_id))

    def report(self, trial_id: int, step: int, value: float) -> None:
        self.values[trial_id] = value

    def finished(self, trial_id: int, state: str, values: Any, infeasible: bool) -> None:
        self.log.append(("finished", trial_id, state, values, infeasible))

    def forget(self, trial_id: int) -> None:
        self.log.append(("forgotten", trial_id))

    def should_prune(self, trial_id: int) -> bool:
        return self.values[trial_id] < 0


class FakeStudy(ActiveStudy):
    """A study whose specs are its parameters, so that tests can tell the fake trainer anything."""

    def spec(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return dict(parameters)


def open_fake_study(work: StudyWork) -> ActiveStudy:
    """Open a study from what `add_study` put in place of a definition."""
    options = work.definition
    definition: Any = SimpleNamespace(
        is_user_loop=options.get("is_user_loop", False),
        pruner=Pruner(type=options.get("pruner", "none")),
        budget=SimpleNamespace(trial_timeout=options.get("trial_timeout")),
        training=SimpleNamespace(keep_models=options.get("keep_models", 1)),
    )
    search: Any = FakeSearch(options.get("ask"))
    return FakeStudy(work, definition, search)
