"""Studies that have shown nothing yet but failures: whether any trial of theirs could succeed.

A trial that fails before its study has reported anything may be unlucky, or the first of all. Its
failure is held back while one batch of other points of the search space is tried, up to the first
that trains. If none does, the failure goes out as `nothing_trains`, which ends the study before its
budget is spent. A study whose trials do well costs nothing here. Training loops are no business of
this module: what one of them does cannot be tried for one batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workers.protocol.messages import (
    Checkpointed,
    Event,
    Failed,
    Finished,
    Reported,
    RunEnd,
    RunId,
    TrialStart,
    Working,
)

Ask = Callable[[int], None]
Try = Callable[[dict[str, Any], str | None], bool | None]

_PROOFS = (Reported, Checkpointed, Finished)  # that a trial of the study can be trained
_KINDS = ("user_code", "out_of_memory")
_ADVICE = {
    "user_code": "correct the module or the definition, and try it with tuner validate --run",
    "out_of_memory": "lower batch_size or the size of the network",
}


@dataclass(slots=True)
class _Probe:
    """Failures of one study that are held back; `points` are None until they are known.

    Attributes:
        log: Of the first trial that failed, where the points print.
    """

    log: str | None
    held: list[Failed] = field(default_factory=list)
    points: deque[dict[str, Any]] | None = None
    tried: int = 0


class FirstFailureProbe:
    """Holds failures back until it is known what they say of their study.

    Args:
        ask: Asks the supervisor for points of a study, which come by `answer`; None: failures
            stand as they are.
        trains: Whether one batch of a trial, given as its spec, can be trained; None: it cannot
            be told now. What it prints goes to the log.
        crowded: Whether other trials than this one take memory.
    """

    def __init__(self, ask: Ask | None, trains: Try, crowded: Callable[[RunId], bool]) -> None:
        self._ask = ask
        self._trains = trains
        self._crowded = crowded
        self._starts: dict[RunId, TrialStart] = {}
        self._proven: set[int] = set()
        self._probes: dict[int, _Probe] = {}

    @property
    def pending(self) -> bool:
        """Whether any failure is held back."""
        return bool(self._probes)

    @property
    def runnable(self) -> bool:
        """Whether there is a point to try."""
        return any(probe.points is not None for probe in self._probes.values())

    def expect(self, start: TrialStart) -> None:
        """Take note of a trial that comes on board; the failures of any other are passed on."""
        if self._ask is not None:
            self._starts[start.run] = start

    def answer(self, study: int, points: Sequence[dict[str, Any]]) -> None:
        """Take the points of a study that are to be tried."""
        if study in self._probes:
            self._probes[study].points = deque(points)

    def pass_on(self, events: Iterable[Event]) -> list[Event]:
        """Return the events, without the failures that are held back for now."""
        events = list(events)
        if self._ask is None:
            return events
        passed: list[Event] = []
        known = [event for event in events if event.run in self._starts]
        self._proven |= {self._study(event) for event in known if isinstance(event, _PROOFS)}
        ends = sum(isinstance(event, RunEnd) for event in events)
        for event in events:
            if isinstance(event, Failed) and self._is_to_probe(event):
                # Whose fault a failure is shows only where no other trial was there to cause it.
                if event.sole_suspect is None:
                    sole_suspect = ends == 1 and not self._crowded(event.run)
                    event = replace(event, sole_suspect=sole_suspect)
                self._hold(event, self._ask)
            else:
                passed.append(event)
            if isinstance(event, RunEnd):
                self._starts.pop(event.run, None)
        for study in [study for study in self._probes if study in self._proven]:
            passed += self._probes.pop(study).held
        return passed

    def turn(self) -> Sequence[Event]:
        """Try one point; return the failures that are settled by it."""
        for study, probe in self._probes.items():
            if probe.points is None:
                continue
            if not probe.points:
                return self._settle(study)
            trains = self._trains(probe.points.popleft(), probe.log)
            if trains is None:  # others hold the memory: it tells nothing of the study
                return self._probes.pop(study).held
            if trains:
                return self._settle(study)
            probe.tried += 1
            if probe.points:
                # The trainer moves, though none of these trials does.
                return [Working(run=one.run) for one in probe.held]
            return [_nothing_trains(event, probe.tried) for event in self._settle(study)]
        return []

    def release(self) -> Sequence[Event]:
        """Return every failure that is held back, as it is."""
        return [event for study in list(self._probes) for event in self._settle(study)]

    def _study(self, event: Event) -> int:
        return self._starts[event.run].study

    def _is_to_probe(self, event: Failed) -> bool:
        if event.run not in self._starts or event.failure.kind not in _KINDS:
            return False
        return self._study(event) not in self._proven

    def _hold(self, event: Failed, ask: Ask) -> None:
        study = self._study(event)
        if study not in self._probes:
            self._probes[study] = _Probe(self._starts[event.run].log)
            ask(study)
        self._probes[study].held.append(event)

    def _settle(self, study: int) -> list[Failed]:
        # Asked once, whatever came of it: what is tried once in a study's life costs little.
        self._proven.add(study)
        return self._probes.pop(study).held


def _nothing_trains(event: Failed, tried: int) -> Failed:
    failure = event.failure
    others = f"{tried} other points of the search space fail too" if tried > 1 else (
        "another point of the search space fails too"
    )  # fmt: skip
    why = f"{failure.message} ({others}; {_ADVICE[failure.kind]})"
    return replace(event, failure=replace(failure, nothing_trains=why))
