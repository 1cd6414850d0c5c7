"""What every sampler and every pruner must do: contracts that each one's test inherits."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.unit.search.builders import choice, floats, ints, space
from tuner_service.definition.space import Space, contains
from tuner_service.search.distributions import distributions
from tuner_service.search.history import History, HistoryTrial
from tuner_service.search.pruners.registry import Pruner, PrunerContext
from tuner_service.search.samplers.registry import Sampler

SPACE = space(
    kind=choice("a", "b", None),
    rate=floats(1e-5, 1.0, log=True),
    share=floats(0.0, 1.0, step=0.25),
    width=ints(1, 512, log=True),
    depth=ints(1, 4, when={"kind": ["a"]}),
)


def history_of(
    known: Space, count: int, *, values: Callable[[int], float] = float, reports: int = 0
) -> History:
    """Return a history of COMPLETE trials with these values, and one that runs."""
    by_name = distributions(known)
    history = History(by_name)
    for number in range(count + 1):
        point: dict[str, Any] = {"kind": "ab"[number % 2], "rate": 10.0 ** -(1 + number % 5)}
        point |= {"share": 0.25 * (number % 5), "width": 1 + number}
        point |= {"depth": 1 + number % 4} if point["kind"] == "a" else {}
        done = number < count
        history.merge(
            [
                HistoryTrial(
                    trial_id=number + 1,
                    number=number,
                    state="COMPLETE" if done else "RUNNING",
                    params=point,
                    distributions={name: by_name[name] for name in point},
                    values=[values(number)] if done else None,
                    intermediate_values={e: values(number) for e in range(1, reports + 1)},
                )
            ]
        )
    return history


class SamplerContract:
    """Inherit, and say in `make` how the sampler is made."""

    def make(self, known: Space, *, seed: int, maximize: bool) -> Sampler:
        """Return a new sampler."""
        raise NotImplementedError

    def ask(self, count: int, slot: int, *, seed: int = 1, fixed: Mapping[str, Any] = {}) -> Any:
        sampler = self.make(SPACE, seed=seed, maximize=False)
        return sampler.ask(history_of(SPACE, count), slot=slot, fixed=fixed)

    @pytest.mark.parametrize("count", [0, 1, 30])
    def test_a_point_lies_in_the_space_and_has_what_applies(self, count: int) -> None:
        for slot in range(20):
            point = self.ask(count, slot)
            wanted = SPACE.active(point)
            assert set(point) == wanted, f"of {point} only {wanted} apply"
            for name in wanted:
                parameter, value = SPACE[name], point[name]
                assert contains(parameter, value), f"{name}={value!r} is none of {parameter!r}"

    @pytest.mark.parametrize("count", [0, 30])
    def test_the_same_history_seed_and_slot_give_the_same_point(self, count: int) -> None:
        assert self.ask(count, 5) == self.ask(count, 5)

    @pytest.mark.parametrize("count", [0, 30])
    def test_another_slot_or_seed_gives_another_point(self, count: int) -> None:
        points = [self.ask(count, slot, seed=seed) for slot in range(4) for seed in (1, 2)]
        assert len({repr(point) for point in points}) > 1

    @pytest.mark.parametrize("count", [0, 30])
    def test_fixed_values_stand(self, count: int) -> None:
        fixed = {"kind": "a", "width": 77, "depth": 3}
        for slot in range(5):
            assert fixed.items() <= self.ask(count, slot, fixed=fixed).items()

    def test_asking_again_on_a_longer_history_changes_no_trial(self) -> None:
        sampler = self.make(SPACE, seed=1, maximize=True)
        history = history_of(SPACE, 20)
        before = [repr(trial) for trial in history.finished]
        for slot in range(3):
            sampler.ask(history, slot=slot, fixed={})
        assert [repr(trial) for trial in history.finished] == before


class PrunerContract:
    """Inherit, and say in `make` how the pruner is made; `prunes`: whether it ever does."""

    prunes = True

    def make(self, context: PrunerContext) -> Pruner:
        """Return a new pruner that stops what is bad for certain."""
        raise NotImplementedError

    def said(self, own: list[float], *, maximize: bool) -> bool:
        """Return what is said of a running trial with these values, beside 40 that ended."""
        better = 1.0 if maximize else -1.0
        history = history_of(SPACE, 40, values=lambda n: better * (100 + n), reports=9)
        running = history[41]
        running.intermediate_values = dict(enumerate(own, start=1))
        context = PrunerContext("a-study", maximize=maximize, epochs=27)
        said = self.make(context).should_prune(history, running)
        assert self.make(context).should_prune(history, running) is said, "not a pure function"
        return said

    @pytest.mark.parametrize("maximize", [False, True])
    def test_a_trial_that_has_reported_nothing_goes_on(self, maximize: bool) -> None:
        assert self.said([], maximize=maximize) is False

    @pytest.mark.parametrize("maximize", [False, True])
    def test_the_best_trial_goes_on(self, maximize: bool) -> None:
        sign = 1.0 if maximize else -1.0
        values = [sign * (1000.0 + step) for step in range(9)]
        assert all(not self.said(values[:n], maximize=maximize) for n in range(1, 10))

    @pytest.mark.parametrize("maximize", [False, True])
    def test_the_worst_trial_is_stopped_at_some_epoch(self, maximize: bool) -> None:
        sign = 1.0 if maximize else -1.0
        values = [sign * (-1000.0 - step) for step in range(9)]
        stopped = any(self.said(values[:n], maximize=maximize) for n in range(1, 10))
        assert stopped is self.prunes

    def test_a_value_that_is_no_number_is_no_error(self) -> None:
        for values in ([math.nan], [1.0, math.nan], [math.inf, -math.inf, math.nan]):
            assert self.said(values, maximize=True) in (False, True)
