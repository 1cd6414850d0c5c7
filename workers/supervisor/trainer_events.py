"""What the trainer says, and what follows from it at once: go-aheads, stops, entries to write."""

import logging

from workers.protocol.messages import (
    Alive,
    Allow,
    Checkpointed,
    DeviceLost,
    Event,
    Events,
    Failed,
    Finished,
    ProbePoints,
    ProbeRequest,
    Ready,
    Reported,
    RunEnd,
    RunId,
    Started,
    Stopped,
    TrainerMessage,
)
from workers.supervisor import outcomes
from workers.supervisor.deadlines import Deadlines
from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.session import ServeSession
from workers.supervisor.studies import STUDY_ERRORS

logger = logging.getLogger(__name__)

POINTS = 32  # of spaces in which nine points of ten fail, in one of thirty all of these do


class TrainerEvents:
    """Takes the trainer's messages. Events of runs that are not held are ignored."""

    def __init__(self, session: ServeSession, deadlines: Deadlines) -> None:
        self._session = session
        self._deadlines = deadlines
        self.device_lost: DeviceLost | None = None

    def take(self, message: TrainerMessage) -> None:
        """Take one message."""
        match message:
            case Events(events):
                self._take_events(events)
            case ProbeRequest(study_id):
                self._send_probe_points(study_id)
            case Alive():
                self._deadlines.alive(message, self._session.now())
            case DeviceLost():
                self.device_lost = message
            case Ready():
                logger.info("trainer ready on %s", message.device)

    def _send_probe_points(self, study_id: int) -> None:
        """Send points of a study whose first trials failed, for the trainer to try."""
        runs = self._session.held.of(Phase.SENT)
        study = next((run.study for run in runs if run.lease.study_id == study_id), None)
        specs = [] if study is None else study.probe_specs(POINTS)
        self._session.send(ProbePoints(study_id, specs))

    def _take_events(self, events: list[Event]) -> None:
        allowed: list[tuple[RunId, int]] = []
        prunes: list[LeasedTrial] = []
        for event in events:
            self._deadlines.progressed(self._session.now())
            run = self._session.held.runs.get(event.run)
            if run is None:
                continue
            if run.phase is Phase.LOST:  # guard: lost-run
                self._on_lost(run, event)
                continue
            self._on_event(run, event)
            if isinstance(event, Reported) and run.study.prunes and run.stop_mode is None:
                match self._should_prune(run, event):
                    case True:
                        prunes.append(run)
                    case False:
                        allowed.append((run.id, event.step))
        self._answer(allowed, prunes)

    def _should_prune(self, run: LeasedTrial, event: Reported) -> bool | None:
        """Return what the pruner says; None where it failed, which ends the trial."""
        try:
            return event.value is not None and run.study.search.should_prune(run.trial)
        except STUDY_ERRORS as error:
            said = "The pruner failed"
            self._session.give_up(run, outcomes.unsearchable(run, said, error))
            return None

    def _on_lost(self, run: LeasedTrial, event: Event) -> None:
        if isinstance(event, RunEnd):
            self._session.held.remove(run)
        if isinstance(event, Finished) or (isinstance(event, Stopped) and event.model is not None):
            self._session.discard_result(run, self._session.directory.relative(event.model))

    def _on_event(self, run: LeasedTrial, event: Event) -> None:
        session = self._session
        match event:
            case Started():
                run.begun(session.now())
            case Reported():
                self._on_report(run, event)
            case Checkpointed():
                run.checkpointed(event.step)
                session.outbox.checkpoint(run.lease, event.step, session.now())
            case Finished():
                model = session.directory.relative(event.model)
                session.close(run, outcomes.finished(run, event, model=model))
            case Stopped():
                model = session.directory.relative(event.model)
                session.close(run, outcomes.stopped(run, event, model=model))
            case Failed(sole_suspect=sole_suspect):
                if sole_suspect is None:
                    sole_suspect = len(session.held.of(Phase.SENT, Phase.LOST)) == 1
                session.close(run, outcomes.failed(run, event, sole_suspect=sole_suspect))

    def _on_report(self, run: LeasedTrial, event: Reported) -> None:
        report = outcomes.report_of(run, event)
        first = run.reported(report.step)
        self._session.outbox.report(report, self._session.now(), first=first)
        if report.value is not None:
            run.study.search.report(run.trial, report.step, report.value)

    def _answer(self, allowed: list[tuple[RunId, int]], prunes: list[LeasedTrial]) -> None:
        if allowed:
            self._session.send(Allow(allowed))
        # A run may have ended in the same message, after the report for which it is pruned.
        self._session.stop([r for r in prunes if r.id in self._session.held.runs], "prune")
