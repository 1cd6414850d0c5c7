"""What the trainer says, and what follows from it at once: verdicts, stops, entries to write."""

import logging

from workers.protocol.messages import Event, StopMode
from workers.supervisor import outcomes
from workers.supervisor.deadlines import Deadlines
from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.session import ServeSession
from workers.supervisor.trainer_process import Message

logger = logging.getLogger(__name__)

POINTS = 32  # of spaces in which nine points of ten fail, one in thirty passes for hopeless

_LAST_WORDS = ("finished", "stopped", "failed")


class TrainerEvents:
    """Takes the trainer's messages. Events of runs that are not on the board are ignored."""

    def __init__(self, session: ServeSession, deadlines: Deadlines) -> None:
        self._session = session
        self._deadlines = deadlines

    def take(self, message: Message) -> None:
        """Take one message."""
        match message.get("type"):
            case "events":
                self._take_events(message["events"])
            case "doubt":
                self._answer_doubt(message["study"])
            case "alive":
                self._deadlines.alive(message, self._session.now())
            case "ready":
                logger.info("trainer ready on %s", message.get("device"))

    def _answer_doubt(self, study_id: int) -> None:
        """Send points of a study whose first trials failed, for the trainer to try."""
        runs = self._session.held.of(Phase.SENT)
        study = next((run.study for run in runs if run.lease.study_id == study_id), None)
        specs = [] if study is None else study.doubted(POINTS)
        self._session.send({"type": "try", "study": study_id, "specs": specs})

    def _take_events(self, events: list[Event]) -> None:
        verdicts: list[tuple[int, int]] = []
        prunes: list[LeasedTrial] = []
        for event in events:
            self._deadlines.progressed(self._session.now())
            run = self._session.held.runs.get(event["trial"])
            if run is None:
                continue
            if run.phase is Phase.LOST:  # guard: lost-run
                self._on_lost(run, event)
                continue
            self._on_event(run, event)
            if event["kind"] == "report" and run.study.prunes and run.stop_mode is None:
                if _nothing_trains(run, event):
                    prunes.append(run)
                else:
                    verdicts.append((run.key, event["step"]))
        self._answer(verdicts, prunes)

    def _on_lost(self, run: LeasedTrial, event: Event) -> None:
        if event["kind"] in _LAST_WORDS:
            self._session.held.remove(run)
        if event["kind"] == "finished":
            self._session.discount(run, self._session.directory.relative(event.get("model")))

    def _on_event(self, run: LeasedTrial, event: Event) -> None:
        session = self._session
        match event["kind"]:
            case "started":
                run.started_at = session.now()
            case "report":
                self._on_report(run, event)
            case "checkpointed":
                run.checkpoint_step = event["step"]
                session.outbox.checkpoint(run.lease, event["step"], session.now())
            case "finished":
                model = session.directory.relative(event.get("model"))
                session.close(run, outcomes.finished(run, event, model=model))
            case "stopped":
                session.close(run, outcomes.stopped(run, event))
            case "failed":
                others = len(session.held.of(Phase.SENT, Phase.LOST)) > 1
                alone = event.get("alone", not others)
                session.close(run, outcomes.failed(run, event, alone=alone))

    def _on_report(self, run: LeasedTrial, event: Event) -> None:
        report = outcomes.report_of(run, event)
        first, run.last_step = run.last_step is None, report.step
        self._session.outbox.report(report, self._session.now(), first=first)
        if report.value is not None:
            run.study.search.report(run.trial, report.step, report.value)

    def _answer(self, verdicts: list[tuple[int, int]], prunes: list[LeasedTrial]) -> None:
        if verdicts:
            self._session.send({"type": "verdicts", "trials": verdicts})
        # A run may have ended in the same message, after the report that condemns it.
        mode: StopMode = "prune"
        self._session.stop([r for r in prunes if r.key in self._session.held.runs], mode)


def _nothing_trains(run: LeasedTrial, event: Event) -> bool:
    return event.get("value") is not None and run.study.search.should_prune(run.trial)
