"""What the trainer says, and what follows from it at once: verdicts, stops, entries to write."""

import logging

from workers.protocol.messages import Event, StopMode
from workers.supervisor import outcomes
from workers.supervisor.deadlines import Watch
from workers.supervisor.held_runs import Phase, Run
from workers.supervisor.session import Shift
from workers.supervisor.trainer_process import Message

logger = logging.getLogger(__name__)

POINTS = 32  # of spaces in which nine points of ten fail, one in thirty passes for hopeless

_LAST_WORDS = ("finished", "stopped", "failed")


class Listener:
    """Takes the trainer's messages. Events of runs that are not on the board are ignored."""

    def __init__(self, shift: Shift, watch: Watch) -> None:
        self._shift = shift
        self._watch = watch

    def take(self, message: Message) -> None:
        """Take one message."""
        match message.get("type"):
            case "events":
                self._take_events(message["events"])
            case "doubt":
                self._answer_doubt(message["study"])
            case "alive":
                self._watch.alive(message, self._shift.now())
            case "ready":
                logger.info("trainer ready on %s", message.get("device"))

    def _answer_doubt(self, study_id: int) -> None:
        """Send points of a study whose first trials failed, for the trainer to try."""
        runs = self._shift.board.of(Phase.SENT)
        study = next((run.study for run in runs if run.lease.study_id == study_id), None)
        specs = [] if study is None else study.doubted(POINTS)
        self._shift.send({"type": "try", "study": study_id, "specs": specs})

    def _take_events(self, events: list[Event]) -> None:
        verdicts: list[tuple[int, int]] = []
        prunes: list[Run] = []
        for event in events:
            self._watch.progressed(self._shift.now())
            run = self._shift.board.runs.get(event["trial"])
            if run is None:
                continue
            if run.phase is Phase.GHOST:
                self._on_ghost(run, event)
                continue
            self._on_event(run, event)
            if event["kind"] == "report" and run.study.prunes and run.stop_mode is None:
                if _is_hopeless(run, event):
                    prunes.append(run)
                else:
                    verdicts.append((run.key, event["step"]))
        self._answer(verdicts, prunes)

    def _on_ghost(self, run: Run, event: Event) -> None:
        if event["kind"] in _LAST_WORDS:
            self._shift.board.remove(run)
        if event["kind"] == "finished":
            self._shift.discount(run, self._shift.places.relative(event.get("model")))

    def _on_event(self, run: Run, event: Event) -> None:
        shift = self._shift
        match event["kind"]:
            case "started":
                run.started_at = shift.now()
            case "report":
                self._on_report(run, event)
            case "checkpointed":
                run.checkpoint_step = event["step"]
                shift.outbox.checkpoint(run.lease, event["step"], shift.now())
            case "finished":
                model = shift.places.relative(event.get("model"))
                shift.close(run, outcomes.finished(run, event, model=model))
            case "stopped":
                shift.close(run, outcomes.stopped(run, event))
            case "failed":
                others = len(shift.board.of(Phase.SENT, Phase.GHOST)) > 1
                alone = event.get("alone", not others)
                shift.close(run, outcomes.failed(run, event, alone=alone))

    def _on_report(self, run: Run, event: Event) -> None:
        report = outcomes.report_of(run, event)
        first, run.last_step = run.last_step is None, report.step
        self._shift.outbox.report(report, self._shift.now(), first=first)
        if report.value is not None:
            run.study.search.report(run.trial, report.step, report.value)

    def _answer(self, verdicts: list[tuple[int, int]], prunes: list[Run]) -> None:
        if verdicts:
            self._shift.send({"type": "verdicts", "trials": verdicts})
        # A run may have ended in the same message, after the report that condemns it.
        mode: StopMode = "prune"
        self._shift.stop([r for r in prunes if r.key in self._shift.board.runs], mode)


def _is_hopeless(run: Run, event: Event) -> bool:
    return event.get("value") is not None and run.study.search.should_prune(run.trial)
